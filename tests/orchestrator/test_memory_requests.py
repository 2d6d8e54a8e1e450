"""`Recall` and `Remember`: what a store is asked, what comes back, and that a replay asks nothing again."""

import pytest

from abduce.memory.in_memory import InMemory
from abduce.memory.sqlite import SqliteStore
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.journal import Journal
from abduce.orchestrator.services import Services
from abduce.orchestrator.telemetry.attributes import Served, content_of_call, of_call
from abduce.orchestrator.trace import Called
from abduce.serving.entries import Entry, Evidence, Match
from abduce.serving.errors import UsageError
from abduce.serving.flow import Failure, Recall, Remember, Usage

ENTRIES = (
    Entry(
        "crop",
        "crop to the object",
        "routine",
        {"cues": ["small output"]},
        evidence=(Evidence("r", read=("x",)),),
    ),
    Entry("old", "crop it all", "routine", status="retired"),
    Entry("tip", "count the objects first", "lesson"),
)


def asking(*batches):
    """A flow that asks these, and returns what it is told."""
    told = []
    for batch in batches:
        told.append((yield list(batch)))
    return told


async def answers(store, *batches, journal=None):
    return await Driver(Services(memory=store), journal=journal).run(asking(*batches))


async def test_entries_are_recalled_by_query_kind_name_or_all():
    store = InMemory()
    await store.write(ENTRIES)
    [[found, of_kind, named, everything, routines]] = await answers(
        store,
        [
            Recall("which object", 1),
            Recall("which object", 9, kinds=("routine",)),
            Recall(names=("tip", "none", "old")),
            Recall(k=0),
            Recall(k=0, kinds=("routine",)),
        ],
    )
    assert [match.entry.name for match in found] == ["crop"] and "shares object" in found[0].why
    assert [match.entry.name for match in of_kind] == ["crop"]
    assert [(match.entry.name, match.why) for match in named] == [
        ("tip", "by its name"),
        ("old", "by its name"),
    ]
    assert [match.entry.name for match in everything] == ["crop", "tip"]  # the active ones
    assert [match.entry.name for match in routines] == ["crop"]


async def test_remembering_tells_the_version_and_credits():
    store = InMemory()
    replies = await answers(
        store,
        [Remember(ENTRIES, reason="seeds")],
        [Remember(credit={"crop": True, "tip": False})],
        [Remember(ENTRIES[:1])],  # as it is
        [Remember((Entry("new", "x"),), {"crop": False})],
        [Remember((Entry("new", "y"),), {"crop": True}, after=1)],  # what was read is old
        [Remember((Entry("new", "z"),), after=2)],
    )
    assert replies == [[1], [1], [1], [2], [0], [3]]
    assert [match.entry.text for match in (await answers(store, [Recall(names=("new",))]))[0][0]] == ["z"]
    crop, _, _, tip = await store.everything()
    assert (crop.uses, crop.wins, tip.uses, tip.wins) == (2, 1, 1, 0)
    assert (await store.history("crop"))[0].reason == "seeds"


async def test_a_replay_asks_the_memory_nothing(tmp_path):
    store = SqliteStore(tmp_path / "m.db")
    batches = [[Remember(ENTRIES, {"crop": True})], [Recall("object", 4), Remember(credit={"crop": True})]]
    with_journal = Journal(tmp_path / "journal.db")
    first = await answers(store, *batches, journal=with_journal)
    with_journal.close()
    counted = await store.get(["crop"])
    again = Journal(tmp_path / "journal.db")
    assert await answers(None, *batches, journal=again) == first
    again.close()
    assert await store.get(["crop"]) == counted
    await store.close()


@pytest.mark.parametrize("wrong", [Entry("", "x"), Entry("n", "x", data={"a": object()})])
async def test_what_cannot_be_kept_is_a_failure_that_says_why(wrong):
    store = InMemory()
    [[reply]] = await answers(store, [Remember((wrong,), {"crop": True})])
    assert isinstance(reply, Failure) and reply.kind == "memory" and UsageError.__name__ in reply.message
    assert await store.version() == 0


def test_spans_tell_what_was_found_and_written():
    found = (Match(ENTRIES[0], 0.5, "shares object"),)
    recalled = Called((0, 0), Recall("object"), found, Usage(), 0.0, 0.1)
    assert of_call(recalled, Served())["abduce.found"] == 1
    assert '"id":"crop","score":0.5' in content_of_call(recalled)["gen_ai.retrieval.documents"]
    told = of_call(Called((0, 0), Remember(ENTRIES), 7, Usage(), 0.0, 0.1), Served())
    assert (told["abduce.version"], told["abduce.written"]) == (7, 3)
    failed = Called((0, 0), Remember(ENTRIES), Failure("memory", "full"), Usage(), 0.0, 0.1)
    assert of_call(failed, Served())["error.type"] == "memory"
