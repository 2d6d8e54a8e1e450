"""The journal: what is in it stays in it, and what does not fit is said."""

import asyncio
import os
import sqlite3

import pytest
from flows import Echo, ask, chain

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.journal import Entry, Journal
from abduce.orchestrator.services import Services
from abduce.serving.errors import AbduceError, JournalError
from abduce.serving.flow import CallTool, Completion, Rate, Usage

ENTRY = Entry((Completion("56", n_tokens=1),), Usage(input_tokens=3, output_tokens=1, calls=1), 0.5, 0.25)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "journal.db"


async def write(file, *names: str, entry: Entry = ENTRY) -> None:
    journal = Journal(file)
    await asyncio.gather(*(journal.append((0, i), ask(name), entry) for i, name in enumerate(names)))
    journal.close()


async def test_replies_survive_closing_and_opening(file):
    await write(file, "a", "b")
    journal = Journal(file)
    assert len(journal) == 2
    assert sorted(journal) == ["0.0", "0.1"]
    assert journal.get((0, 1), ask("b")) == ENTRY
    assert journal.get((0, 2), ask("c")) is None
    assert journal.elapsed_s == 0.75
    journal.close()


async def test_replies_survive_a_journal_that_was_never_closed(file):
    journal = Journal(file)
    await journal.append((0, 0), ask("a"), ENTRY)
    beside = Journal(file)
    assert beside.get((0, 0), ask("a")) == ENTRY
    beside.close()
    journal.close()


async def test_what_is_in_flight_is_committed_on_closing(file):
    journal = Journal(file)
    waiting = asyncio.ensure_future(journal.append((0, 0), ask("a"), ENTRY))
    await asyncio.sleep(0)
    journal.close()
    await waiting
    journal = Journal(file)
    assert len(journal) == 1
    journal.close()


async def test_a_call_that_is_cancelled_while_it_is_stored_is_stored(file):
    journal = Journal(file)
    waiting = asyncio.ensure_future(journal.append((0, 0), ask("a"), ENTRY))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    journal.close()
    journal = Journal(file)
    assert len(journal) == 1
    journal.close()


async def test_replies_of_one_turn_of_the_loop_share_a_transaction(file):
    said: list[str] = []
    journal = Journal(file)
    journal._db.set_trace_callback(said.append)
    await asyncio.gather(*(journal.append((0, i), ask("a"), ENTRY) for i in range(50)))
    assert said.count("COMMIT") == 1
    await journal.append((1, 0), ask("a"), ENTRY)
    assert said.count("COMMIT") == 2
    journal._db.set_trace_callback(None)
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


async def test_another_request_at_the_same_place_is_a_journal_error(file):
    await write(file, "a")
    journal = Journal(file)
    for other in (ask("b"), ask("a", cap=3), Rate(ask("a").prompt), CallTool("a")):
        with pytest.raises(JournalError, match=r"another run: at 0\.0 .* Resume with"):
            journal.get((0, 0), other)
    journal.close()


async def test_resuming_another_flow_is_a_journal_error(file):
    journal = Journal(file)
    await Driver(Services({"policy": Echo()}), journal=journal).run(chain("a", 2))
    journal.close()
    journal = Journal(file)
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
    await write(file, *map(str, range(500)))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(JournalError, match=r"journal\.db .*Move it away"):
        Journal(file)


@pytest.mark.parametrize("column", ["reply", "usage"])
@pytest.mark.parametrize("junk", [b"", b"\xff", b"7", b"[1, 2"])
async def test_a_damaged_reply_is_a_journal_error(file, column, junk):
    await write(file, "a")
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
    await write(file, "a")
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
    journal._db.execute("PRAGMA query_only = 1")  # as a full disk would
    with pytest.raises(AbduceError, match="journal cannot be written"):
        await Driver(Services({"policy": Echo()}), journal=journal).run(chain("b", 1))
    journal._db.execute("PRAGMA query_only = 0")
    await journal.append((0, 1), ask("b"), ENTRY)
    journal.close()
    journal = Journal(file)
    assert sorted(journal) == ["0.0", "0.1"]
    journal.close()
