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
        self._waiting: list[asyncio.Future[None]] = []  # one for each, so that cancelling one harms no other

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
        loop = asyncio.get_running_loop()
        committed = loop.create_future()
        self._waiting.append(committed)
        if len(self._waiting) == 1:
            loop.call_soon(self._commit)
        await committed

    def close(self) -> None:
        """Commit what is left and close the file."""
        self._commit()
        self._db.close()

    def _commit(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        fresh, self._fresh = self._fresh, []
        failed: JournalError | None = None
        try:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT INTO replies VALUES (?, ?, ?, ?, ?, ?)", fresh)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            failed = JournalError(f"The journal cannot be written: {error}")
        for committed in waiting:
            if committed.done():  # cancelled: what it stores is stored all the same
                continue
            if failed is None:
                committed.set_result(None)
            else:
                committed.set_exception(failed)


_OPEN = (  # a table without a key: rows are only appended, which costs least, and read all at once
    "PRAGMA page_size=8192",  # replies of 2 KB leave less of it unused than of the usual 4096
    "PRAGMA journal_mode=WAL",
    "PRAGMA wal_autocheckpoint=500",  # 4 MB
    "PRAGMA synchronous=NORMAL",
    "CREATE TABLE IF NOT EXISTS replies"
    " (path TEXT, request INTEGER, reply BLOB, usage BLOB, t REAL, seconds REAL)",
)
_READ = "SELECT path, request, reply, usage, t, seconds FROM replies"


def _key(path: Path) -> str:
    return ".".join(map(str, path))
