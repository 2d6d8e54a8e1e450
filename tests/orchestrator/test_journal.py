"""The journal: what is in it stays in it, and what does not fit is said."""

import asyncio
import math
import os
import sqlite3

import pytest
from flows import Echo, ask, chain

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.journal import Entry, Journal
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.services import Services
from abduce.serving.errors import AbduceError, BudgetExhausted, JournalError
from abduce.serving.flow import CallTool, Completion, Failure, Rate, Usage

ENTRY = Entry((Completion("56", n_tokens=1),), Usage(input_tokens=3, output_tokens=1, calls=1), 0.5, 0.25)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "journal.db"


@pytest.fixture(params=["sqlite", "postgres"])
def opened(request, file, tmp_path, monkeypatch):
    """Opens one and the same journal, in a file or in PostgreSQL."""
    if request.param == "sqlite":
        return lambda: Journal(file)
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path))
    run = Runs(request.getfixturevalue("database")).create({})
    return run.journal


async def write(opened, *names: str, entry: Entry = ENTRY) -> None:
    journal = opened()
    await asyncio.gather(*(journal.append((0, i), ask(name), entry) for i, name in enumerate(names)))
    journal.close()


async def test_replies_survive_closing_and_opening(opened):
    await write(opened, "a", "b")
    journal = opened()
    assert len(journal) == 2
    assert sorted(journal) == ["0.0", "0.1"]
    assert journal.get((0, 1), ask("b")) == ENTRY
    assert journal.get((0, 2), ask("c")) is None
    assert journal.elapsed_s == 0.75
    journal.close()


async def test_replies_survive_a_journal_that_was_never_closed(opened):
    journal = opened()
    await journal.append((0, 0), ask("a"), ENTRY)
    beside = opened()
    assert beside.get((0, 0), ask("a")) == ENTRY
    beside.close()
    journal.close()


@pytest.mark.parametrize("turns", [1, 2, 5])
async def test_what_is_in_flight_is_committed_on_closing(opened, turns):
    journal = opened()
    waiting = [asyncio.ensure_future(journal.append((0, 0), ask("a"), ENTRY))]
    for i in range(turns):
        await asyncio.sleep(0)
        waiting.append(asyncio.ensure_future(journal.append((1, i), ask("a"), ENTRY)))
    await asyncio.sleep(0)
    journal.close()
    await asyncio.gather(*waiting)
    journal = opened()
    assert len(journal) == turns + 1
    journal.close()


async def test_a_call_that_is_cancelled_while_it_is_stored_is_stored(opened):
    journal = opened()
    waiting = asyncio.ensure_future(journal.append((0, 0), ask("a"), ENTRY))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    journal.close()
    journal = opened()
    assert len(journal) == 1
    journal.close()


async def test_any_reply_comes_back_as_it_was(opened):
    entries = [
        Entry(
            (Completion("\x00 ü 字 \ud800", n_tokens=1, logprobs=(-0.5, -math.inf)),),
            Usage(),
            0.1 + 0.2,
            1e-9,
        ),
        Entry((Completion("x" * 300_000),), Usage(cost_usd=0.1, joules=1e300), 2.0**40, 0.0),
        Entry(Failure("engine", "no \x00"), Usage(calls=1), 0.0, 0.0),
        Entry(BudgetExhausted("tokens", 8.0), Usage(), 0.0, 0.0),
    ]
    journal = opened()
    await asyncio.gather(*(journal.append((i,), ask("a"), entry) for i, entry in enumerate(entries)))
    journal.close()
    journal = opened()
    assert list(map(repr, (journal.get((i,), ask("a")) for i in range(4)))) == list(map(repr, entries))
    journal.close()


async def test_of_two_replies_to_a_path_the_last_holds(opened):
    journal = opened()
    await journal.append((0, 0), ask("a"), ENTRY)
    await journal.append((0, 0), ask("b"), ENTRY)
    journal.close()
    journal = opened()
    assert journal.get((0, 0), ask("b")) == ENTRY
    journal.close()


async def test_replies_of_one_turn_of_the_loop_share_a_transaction(file):
    said: list[str] = []
    journal = Journal(file)
    journal._rows.db.set_trace_callback(said.append)
    await asyncio.gather(*(journal.append((0, i), ask("a"), ENTRY) for i in range(50)))
    assert said.count("COMMIT") == 1
    await journal.append((1, 0), ask("a"), ENTRY)
    assert said.count("COMMIT") == 2
    journal._rows.db.set_trace_callback(None)
    journal.close()


async def test_a_reply_is_committed_before_the_flow_sees_it(file):
    def flow():
        for i in range(3):
            yield [ask("a"), ask("b")]
            seen = sqlite3.connect(file)
            assert seen.execute("SELECT count(*) FROM replies").fetchone() == (2 * i + 2,)
            seen.close()

    journal = Journal(file)
    await Driver(Services({"policy": Echo()}), journal=journal).run(flow())
    journal.close()


async def test_another_request_at_the_same_place_is_a_journal_error(opened):
    await write(opened, "a")
    journal = opened()
    for other in (ask("b"), ask("a", cap=3), Rate(ask("a").prompt), CallTool("a")):
        with pytest.raises(JournalError, match=r"another run: at 0\.0 .* Resume with"):
            journal.get((0, 0), other)
    journal.close()


async def test_resuming_another_flow_is_a_journal_error(opened):
    journal = opened()
    await Driver(Services({"policy": Echo()}), journal=journal).run(chain("a", 2))
    journal.close()
    journal = opened()
    with pytest.raises(JournalError, match="another run"):
        await Driver(Services({"policy": Echo()}), journal=journal).run(chain("b", 2))
    journal.close()


@pytest.mark.parametrize("content", [b"{}\n" * 2000, b"\0" * 5000, b"SQLite format 3\0" + b"x" * 4096])
def test_a_file_that_is_no_journal_is_named(file, content):
    file.write_bytes(content)
    with pytest.raises(JournalError, match=r"journal\.db .*Move it away"):
        Journal(file)
    assert file.read_bytes() == content


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9])
async def test_a_torn_journal_is_named(file, kept):
    await write(lambda: Journal(file), *map(str, range(500)))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(JournalError, match=r"journal\.db .*Move it away"):
        Journal(file)


@pytest.mark.parametrize("column", ["reply", "usage"])
@pytest.mark.parametrize("junk", [b"", b"\xff", b"7", b"[1, 2"])
async def test_a_damaged_reply_is_a_journal_error(file, column, junk):
    await write(lambda: Journal(file), "a")
    db = sqlite3.connect(file)
    db.execute(f"UPDATE replies SET {column} = ?", [junk])
    db.commit()
    db.close()
    journal = Journal(file)
    with pytest.raises(JournalError, match="cannot be read"):
        journal.get((0, 0), ask("a"))
    journal.close()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(JournalError, match=r"nowhere.*cannot be opened.*one you can write to"):
        Journal(tmp_path / "nowhere" / "journal.db")


async def test_a_folder_that_cannot_be_written_is_named(file):
    await write(lambda: Journal(file), "a")
    file.chmod(0o400)
    file.parent.chmod(0o500)
    try:
        if os.access(file, os.W_OK):
            pytest.skip("this user may write anywhere")
        with pytest.raises(JournalError, match="one you can write to"):
            Journal(file)
    finally:
        file.parent.chmod(0o700)


async def test_a_reply_that_cannot_be_stored_ends_the_run_and_harms_nothing(file):
    journal = Journal(file)
    await journal.append((0, 0), ask("a"), ENTRY)
    journal._rows.db.execute("PRAGMA query_only = 1")  # as a full disk would
    with pytest.raises(AbduceError, match="journal cannot be written"):
        await Driver(Services({"policy": Echo()}), journal=journal).run(chain("b", 1))
    journal._rows.db.execute("PRAGMA query_only = 0")
    await journal.append((0, 1), ask("b"), ENTRY)
    journal.close()
    journal = Journal(file)
    assert sorted(journal) == ["0.0", "0.1"]
    journal.close()


async def test_what_followed_a_refusal_may_be_another_request_also_after_a_second_cut(file):
    refused = Entry(BudgetExhausted("calls", 1), Usage(), 0.5, 0.0)
    journal = Journal(file)
    await journal.append((0, 0), ask("early"), ENTRY)
    await journal.append((1, 0), ask("a"), refused)
    await journal.append((1, 1), ask("instead"), ENTRY)
    journal.close()
    for _ in range(2):  # the second time what was refused is answered, and what followed is not
        journal = Journal(file)
        journal.forget(lambda end: end.limit == 1)
        assert journal.get((1, 1), ask("instead")) == ENTRY
        assert journal.get((1, 1), ask("b")) is None
        with pytest.raises(JournalError):
            journal.get((0, 0), ask("another"))
        if journal.get((1, 0), ask("a")) is None:
            await journal.append((1, 0), ask("a"), ENTRY)
        journal.close()
