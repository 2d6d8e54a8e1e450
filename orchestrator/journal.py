"""The journal: every reply of a run, by the path of its request, so that resuming is replaying.

SQLite in write-ahead mode. Replies that arrive in the same turn of the event loop share one
transaction, and none is handed to the flow before it is committed: after a kill at any moment the
journal holds every reply the flow has seen, and no completed call is repeated.
"""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import fields
from operator import attrgetter
from pathlib import Path as File
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

import orjson

from ..serving.errors import JournalError
from ..serving.flow import Usage
from .codec import dump_reply, dumps, load_reply

Path: TypeAlias = tuple[int, ...]


_amounts = attrgetter(*(f.name for f in fields(Usage)))


class Entry(NamedTuple):
    """One reply, what it consumed, and when (seconds since the run's start) it began and how long it took."""

    reply: Any
    usage: Usage
    t: float
    seconds: float


class Journal:
    """The replies of one run, in one file. `":memory:"` keeps them in memory."""

    def __init__(self, file: File | str) -> None:
        self._stored: dict[str, tuple[int, bytes, bytes, float, float]] = {}
        with ExitStack() as failed:
            try:
                self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=30)
                failed.callback(self._db.close)
                for statement in _OPEN:
                    self._db.execute(statement)
                self._stored.update((row[0], row[1:]) for row in self._db.execute(_READ))
            except sqlite3.OperationalError as error:
                raise JournalError(
                    f"The journal {file} cannot be opened: {error}. Make its folder one you can write to."
                ) from error
            except sqlite3.DatabaseError as error:
                raise JournalError(
                    f"The journal {file} is damaged: {error}. Move it away to run everything again."
                ) from error
            failed.pop_all()
        self._fresh: list[tuple[str, int, bytes, bytes, float, float]] = []
        self._turn: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._stored) + len(self._fresh)

    def __iter__(self) -> Iterator[str]:
        """Paths of the stored replies, as text."""
        return iter(self._stored)

    @property
    def elapsed_s(self) -> float:
        """When the last stored reply arrived."""
        return max((row[3] + row[4] for row in self._stored.values()), default=0.0)

    def get(self, path: Path, request: Any) -> Entry | None:
        """The stored reply to a request. Raises JournalError if another request was answered there."""
        if not self._stored:
            return None
        row = self._stored.get(_key(path))
        if row is None:
            return None
        fingerprint, reply, usage, t, seconds = row
        if fingerprint != crc32(dumps(request)):
            raise JournalError(
                f"The journal holds another run: at {_key(path)} it answered a different request. "
                "Resume with the strategy, parameters, seed and version the run was started with."
            )
        try:
            spent = Usage(*orjson.loads(usage))
        except (ValueError, TypeError) as error:
            raise JournalError(f"The journal holds a usage that cannot be read: {error}") from error
        return Entry(load_reply(type(request), reply), spent, t, seconds)

    async def append(self, path: Path, request: Any, entry: Entry) -> None:
        """Store a reply; returns once it is committed."""
        reply, usage = dump_reply(entry.reply), dumps(_amounts(entry.usage))
        self._fresh.append((_key(path), crc32(dumps(request)), reply, usage, entry.t, entry.seconds))
        if self._turn is None:
            loop = asyncio.get_running_loop()
            self._turn = loop.create_future()
            loop.call_soon(self._commit)
        await asyncio.shield(self._turn)

    def close(self) -> None:
        """Commit what is left and close the file."""
        if self._turn is not None:
            self._commit()
        self._db.close()

    def _commit(self) -> None:
        turn, self._turn = self._turn, None
        if turn is None:
            return
        fresh, self._fresh = self._fresh, []
        try:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?)", fresh)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            turn.set_exception(JournalError(f"The journal cannot be written: {error}"))
            return
        turn.set_result(None)


_OPEN = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "CREATE TABLE IF NOT EXISTS replies (path TEXT PRIMARY KEY, request INTEGER, reply BLOB,"
    " usage BLOB, t REAL, seconds REAL) WITHOUT ROWID",
)
_READ = "SELECT path, request, reply, usage, t, seconds FROM replies"


def _key(path: Path) -> str:
    return ".".join(map(str, path))
