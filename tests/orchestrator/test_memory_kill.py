"""Killed between a write to the memory and its record in the journal, a run goes on and writes it once."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from abduce.memory.postgres import PostgresStore
from abduce.memory.sqlite import SqliteStore
from abduce.orchestrator.runs import Runs
from abduce.serving.entries import Entry

PROCESS = """
import asyncio, json, os, signal, sys
from abduce.memory.postgres import PostgresStore
from abduce.memory.sqlite import SqliteStore
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.services import Services
from abduce.orchestrator.session import Session
from abduce.serving.entries import Entry
from abduce.serving.flow import Remember

runs, place, dies_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
kind = PostgresStore if "://" in place else SqliteStore
calls = []

class Dying(kind):
    async def write(self, *entries, **words):
        version = await super().write(*entries, **words)
        calls.append(version)
        if len(calls) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return version

def flow():
    told = []
    for request in (
        Remember((Entry("a", "one"),), reason="seeds"),
        Remember((Entry("b", "two"),), {"a": True}, after=2),
        Remember(credit={"a": False, "b": True}),
        Remember((Entry("a", "three"),), {"a": True}),
    ):
        told += yield [request]
    return told

async def main():
    memory = Dying(place)
    with Session(Runs(runs).open("last"), budget=Budget()) as session:
        print(json.dumps(await session.drive(flow(), Services(memory=memory), seed=0)))
    await memory.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_write_that_no_journal_holds_is_made_once(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each of four writes is the last thing a process does; others write to the memory in between."""
    place = request.getfixturevalue("database") if kind == "postgres" else str(tmp_path / "m.db")
    memory = PostgresStore(place) if kind == "postgres" else SqliteStore(place)
    Runs(tmp_path / "runs").create({"task": "none"})
    words = [sys.executable, "-c", PROCESS, str(tmp_path / "runs"), place]

    async def others() -> None:
        for dies_at, other in ((1, Entry("a", "of another")), (2, Entry("c", "of another")), (2, None)):
            ended = await asyncio.to_thread(subprocess.run, [*words, str(dies_at)], timeout=60)
            assert ended.returncode == -signal.SIGKILL
            if other is not None:
                await memory.write([other])
        ended = await asyncio.to_thread(subprocess.run, [*words, "2"], timeout=60)
        assert ended.returncode == -signal.SIGKILL
        last = await asyncio.to_thread(
            subprocess.run, [*words, "0"], timeout=60, stdout=subprocess.PIPE, check=True
        )
        assert json.loads(last.stdout) == [1, 3, 4, 5]  # the versions that the writes made
        a, b, _ = await memory.everything()
        assert (a.uses, a.wins, b.uses, b.wins) == (3, 2, 1, 1)
        assert [change.entry.text for change in await memory.history("a")] == ["one", "of another", "three"]
        assert await memory.version() == 5
        await memory.close()

    asyncio.run(others())
