"""Every store does what the reference does, whatever is done to it in whatever order."""

import asyncio
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import Toy, all_of, batches, names, run, texts

from abduce.memory.in_memory import InMemory
from abduce.memory.postgres import PostgresStore
from abduce.memory.sqlite import SqliteStore
from abduce.serving.entries import Entry, Evidence
from abduce.serving.errors import UsageError

deeds = st.lists(
    st.tuples(st.just("write"), batches)
    | st.tuples(st.just("credit"), st.dictionaries(names, st.booleans(), max_size=3))
    | st.tuples(st.just("rollback"), st.integers(0, 6))
    | st.tuples(st.just("forget"), st.lists(names, max_size=2))
    | st.tuples(st.just("close"), st.none()),
    max_size=7,
)
queries = st.tuples(
    texts,
    st.integers(1, 5),
    st.sampled_from([(), ("note",), ("routine", "lesson"), ("unheard of",)]),
    st.sampled_from(["", "", "grids", "nowhere"]),
)
_numbers = itertools.count()


@pytest.fixture(params=["sqlite", "postgres"])
def make(request, tmp_path):
    """Makes an empty store."""
    if request.param == "sqlite":
        return lambda embedder: SqliteStore(tmp_path / f"{next(_numbers)}.db", embedder)
    url = request.getfixturevalue("database")

    def made(embedder):
        import psycopg

        with psycopg.connect(url, autocommit=True) as server:
            for table in ("vectors", "entries", "changes", "words", "made"):
                server.execute(f"DROP TABLE IF EXISTS abduce_memory_{table}")
            server.execute("DROP TABLE IF EXISTS abduce_memory")
        return PostgresStore(url, embedder)

    return made


async def do(store, deed):
    """What one deed returns, or why it is refused."""
    kind, what = deed
    try:
        if kind == "close":
            return await store.close()
        if kind == "rollback":
            return await store.rollback(what, reason="back")
        return await (store.write(what, reason="test") if kind == "write" else getattr(store, kind)(what))
    except UsageError as error:
        return str(error)


@pytest.mark.parametrize("embedder", [None, Toy()], ids=["words", "vectors"])
def test_it_does_as_the_reference(make, embedder, request):
    n = 12 if "postgres" in request.node.name else 30

    @settings(max_examples=n, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(deeds, st.lists(queries, max_size=3), st.integers(0, 5))
    def law(deeds, queries, at):
        async def both():
            store, reference = make(embedder), InMemory(embedder)
            try:
                for deed in deeds:
                    assert await do(store, deed) == await do(reference, deed)
                assert await all_of(store, at=at) == await all_of(reference, at=at)
                for query, k, kinds, domain in queries:
                    found = await store.search(query, k, kinds=kinds, domain=domain)
                    assert found == await reference.search(query, k, kinds=kinds, domain=domain)
            finally:
                await store.close()

        run(both)

    law()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request, tmp_path):
    if request.param == "memory":
        return InMemory()
    if request.param == "sqlite":
        return SqliteStore(tmp_path / "m.db")
    return PostgresStore(request.getfixturevalue("database"))


async def test_a_version_is_a_write_that_changes_something(store):
    assert await store.version() == 0
    assert await store.write([]) == 0
    assert await store.write([Entry("a", "one"), Entry("b", "two")]) == 1
    assert await store.write([Entry("a", "one")]) == 1
    assert await store.write([Entry("a", "one", uses=3)]) == 1  # counts are no change
    assert (await store.get(["a"]))[0].uses == 3
    assert await store.write([Entry("a", "other")]) == 2
    assert (await store.get(["a"]))[0].uses == 3  # and never fall
    await store.credit({"a": True, "unknown": True})
    assert await store.version() == 2
    assert [(c.version, c.name, c.entry.text) for c in await store.history("a")] == [
        (1, "a", "one"),
        (2, "a", "other"),
    ]
    await store.close()


async def test_who_writes_after_a_version_overwrites_nobody(store):
    assert await store.write([Entry("a", "one")], after=0) == 1
    assert await store.write([Entry("a", "two"), Entry("b", "two")], after=0) == 0
    assert [e.text for e in await store.everything()] == ["one"]
    assert await store.write([Entry("a", "two", uses=5)], after=0) == 0  # nor are counts
    assert (await store.get(["a"]))[0].uses == 0
    assert await store.write([Entry("a", "one")], after=0) == 1  # as one does who has not heard of it
    assert await store.write([Entry("a", "two")], after=1) == 2

    async def add(i):
        while True:  # of all who try at once one gets through
            before, [old] = await store.version(), await store.get(["a"])
            if await store.write([Entry("a", f"{old.text} {i}")], after=before):
                return

    await asyncio.gather(*map(add, range(8)))
    [a] = await store.get(["a"])
    assert sorted(a.text.split()[1:]) == sorted(map(str, range(8)))
    await store.close()


async def test_a_write_with_a_name_is_made_once_and_counts_with_it(store):
    seeds = [Entry("a", "one"), Entry("b", "one")]
    assert await store.write(seeds, credit={"a": True, "unknown": True}, once="r1:0.0") == 1
    assert await store.write([Entry("a", "two")]) == 2
    for _ in range(2):  # what the first has told is told again, whatever is there by now
        assert await store.write(seeds, credit={"a": True}, once="r1:0.0") == 1
    assert await store.write([Entry("a", "three")], credit={"a": True}, after=1, once="r1:1.0") == 0
    assert await store.write([Entry("a", "three")], credit={"a": False}, after=2, once="r1:1.0") == 3
    await store.close()
    assert await store.write([], credit={"b": True}, once="r1:2.0") == 3
    assert await store.write([], credit={"b": True}, once="r1:2.0") == 3
    assert await store.write([], credit={"b": True}, once="r2:2.0") == 3
    a, b = await store.everything()
    assert (a.text, a.uses, a.wins, b.text, b.uses, b.wins) == ("three", 2, 1, "one", 2, 2)
    await store.close()


async def test_rollback_makes_the_old_version_anew_but_for_the_counts(store):
    await store.write([Entry("a", "one")])
    await store.write([Entry("a", "other"), Entry("b", "two")], action="merged", reason="why not")
    await store.credit({"a": True})
    assert await store.rollback(1, reason="mistake") == 3
    [a] = await store.everything()
    assert (a.text, a.uses, a.wins) == ("one", 1, 1)
    assert [(c.name, c.action, c.reason) for c in (await store.history())[-2:]] == [
        ("a", "rolled back", "mistake"),
        ("b", "removed", "mistake"),
    ]
    assert await store.rollback(2) == 4
    assert [e.text for e in await store.everything()] == ["other", "two"]
    with pytest.raises(UsageError, match=r"no version 9. It has 0 to 4"):
        await store.rollback(9)
    await store.close()


async def test_what_was_forgotten_is_in_no_version(store):
    await store.write([Entry("a", "one"), Entry("b", "two")])
    await store.write([Entry("a", "one and a half")])
    assert await store.forget(["a", "nobody", "a"]) == 1
    assert [change.name for change in await store.history()] == ["b"]
    assert await store.search("half one", 5) == ()
    assert [e.name for e in await store.everything(at=1)] == ["b"]
    await store.rollback(1)
    assert await store.get(["a"]) == ()
    await store.close()


async def test_every_read_says_why(store):
    await store.write(
        [Entry("a", "The areas of circles"), Entry("b", "the primes"), Entry("c", "the circle")]
    )
    first, *rest = await store.search("what is the area of a circle", 3)
    assert first.entry.name == "a"
    assert first.why.startswith("shares ") and "area" in first.why and "circle" in first.why
    assert all("by words alone, without an embedder" in match.why for match in (first, *rest))
    assert [match.score for match in (first, *rest)] == sorted(
        (m.score for m in (first, *rest)), reverse=True
    )
    await store.close()


async def test_retired_entries_are_kept_and_not_found(store):
    await store.write([Entry("a", "circle", status="retired"), Entry("b", "circle")])
    assert [m.entry.name for m in await store.search("circles", 9)] == ["b"]
    assert [e.name for e in await store.everything()] == ["a", "b"]
    await store.write([Entry("a", "circle")], action="restored")
    assert [m.entry.name for m in await store.search("circles", 9)] == ["a", "b"]  # ties by name
    await store.close()


@pytest.mark.parametrize(
    "query", ["", "?!", '" OR 1=1 --', "NEAR(a b) AND NOT c*", "x" * 10_000, "%s $1 \0", "\ud800"]
)
async def test_no_query_is_read_as_syntax(store, query):
    await store.write([Entry("n", "something else")])
    assert await store.search(query, 3) == ()
    await store.close()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Entry("", "x"), "An entry's name has 1 to 200 characters"),
        (Entry("n" * 201, "x"), "An entry's name has 1 to 200 characters"),
        (Entry("n", "x" * 100_001), "has 100001 characters. Keep at most"),
        (Entry("n", "x", data={"f": float("nan")}), "Write plain JSON"),
        (Entry("n", "x", data={"f": object()}), "Write plain JSON"),
        (Entry("n", "x", status="gone"), "write 'active' or 'retired'"),
        (Entry("n", "x", uses=1, wins=2), "write 0 to 1, its uses"),
        (Entry("n", "x", evidence=(Evidence(confidence=1.5),)), "write 0 to 1"),
        (Entry("a", "twice"), "is written twice at once"),
    ],
)
async def test_what_cannot_be_kept_is_told_and_nothing_is_written(store, wrong, said):
    with pytest.raises(UsageError, match=said):
        await store.write([Entry("a", "good"), wrong])
    with pytest.raises(UsageError, match="action cannot be 'removed'"):
        await store.write([Entry("a", "good")], action="removed")
    assert await store.version() == 0
    await store.close()


async def test_texts_that_no_database_holds_are_kept_all_the_same(store):
    await store.write([Entry("a\0", "half \ud800 a pair \0", data={"k\0": ["\ud800", 2**80, 1.5, None]})])
    [kept] = await store.everything()
    assert (kept.name, kept.text) == ("a\ufffd", "half ? a pair \ufffd")
    assert kept.data == {"k\ufffd": ["?", 2**80, 1.5, None]}
    await store.close()
