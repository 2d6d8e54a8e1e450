"""The journal: every reply of a run, by the path of its request, so that resuming is replaying.

Replies that arrive in the same turn of the event loop share one transaction, and none is handed to the flow
before it is committed: after a kill at any moment the journal holds every reply the flow has seen, and no
completed call is repeated.

    driver ─► Journal: what is known, group commit ─► Rows: SqliteRows here, PostgresRows in store/postgres.py

A fork begins with *inherited* replies, those of another run. One whose request is no longer the same is not
used: the request is asked anew, and of two replies to one path the last holds.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields
from functools import partial
from operator import attrgetter
from pathlib import Path as File
from typing import Any, NamedTuple, Protocol, TypeAlias
from zlib import crc32

import orjson

from ..serving.errors import BudgetExhausted, JournalError
from ..serving.flow import Usage
from .codec import dump_reply, dumps, load_reply, refusal

Path: TypeAlias = tuple[int, ...]

Row: TypeAlias = tuple[str, int, bytes, bytes, float, float]
"""Path, fingerprint of the request, reply, usage, t, seconds."""

_amounts = attrgetter(*(f.name for f in fields(Usage)))


class Entry(NamedTuple):
    """One reply, what it consumed, and when (seconds since the run's start) it began and how long it took."""

    reply: Any
    usage: Usage
    t: float
    seconds: float


class Rows(Protocol):
    """Where the rows of one journal are kept. `remote` if appending waits for another machine."""

    remote: bool

    def read(self) -> tuple[Sequence[Row], Sequence[Row]]:
        """The inherited rows and the run's own, each in the order of their storing."""

    def append(self, rows: Sequence[Row]) -> None:
        """Store and commit. Raises JournalError if nothing of it is stored."""

    def close(self) -> None:
        """Let go of what is open."""


class Journal:
    """The replies of one run, in one file or elsewhere. `":memory:"` keeps them in memory."""

    def __init__(self, where: "File | str | Rows") -> None:
        self._rows = SqliteRows(where) if isinstance(where, (File, str)) else where
        with ExitStack() as failed:
            failed.callback(self._rows.close)
            inherited, own = self._rows.read()
            failed.pop_all()
        self._stored = {row[0]: row[1:] for row in (*inherited, *own)}
        self._inherited = {row[0] for row in inherited} - {row[0] for row in own}
        self._fresh: list[Row] = []
        self._waiting: list[asyncio.Future[None]] = []  # one for each, so that cancelling one harms no other
        self._thread = ThreadPoolExecutor(1, "abduce-journal") if self._rows.remote else None
        self._writing: Future[None] | None = None

    def __len__(self) -> int:
        """How many replies were stored when it was opened."""
        return len(self._stored)

    def __iter__(self) -> Iterator[str]:
        """Their paths, as text."""
        return iter(self._stored)

    @property
    def elapsed_s(self) -> float:
        """When the last stored reply arrived."""
        return max((row[3] + row[4] for row in self._stored.values()), default=0.0)

    def get(self, path: Path, request: Any) -> Entry | None:
        """The stored reply to a request. Raises JournalError if another request was answered there, unless
        that reply is inherited."""
        if not self._stored:
            return None
        key = _key(path)
        row = self._stored.get(key)
        if row is None:
            return None
        fingerprint, reply, usage, t, seconds = row
        if fingerprint != crc32(dumps(request)):
            if key in self._inherited:
                return None
            raise JournalError(
                f"The journal holds another run: at {key} it answered a different request. "
                "Resume with the strategy, parameters, seed and version the run was started with."
            )
        try:
            spent = Usage(*orjson.loads(usage))
        except (ValueError, TypeError) as error:
            raise JournalError(f"The journal holds a usage that cannot be read: {error}") from error
        return Entry(load_reply(type(request), reply), spent, t, seconds)

    def forget(self, passed: Callable[[BudgetExhausted], bool]) -> None:
        """Let what a limit refused in the run's last turn be asked anew, if the limit is `passed` by now.
        What followed there from a refusal, of this opening or an earlier one, holds only where the same is
        asked again."""
        last = max((int(key.partition(".")[0]) for key in self._stored if key), default=0)
        turn = {key for key in self._stored if key.partition(".")[0] == str(last)}
        refused = {key for key in turn if (end := refusal(self._stored[key][1])) and passed(end)}
        self._stored = {key: row for key, row in self._stored.items() if key not in refused}
        self._inherited |= turn - refused

    async def append(self, path: Path, request: Any, entry: Entry) -> None:
        """Store a reply; returns once it is committed."""
        reply, usage = dump_reply(entry.reply), dumps(_amounts(entry.usage))
        self._fresh.append((_key(path), crc32(dumps(request)), reply, usage, entry.t, entry.seconds))
        loop = asyncio.get_running_loop()
        committed = loop.create_future()
        self._waiting.append(committed)
        if len(self._waiting) == 1 and self._writing is None:
            loop.call_soon(self._commit)
        await committed

    def close(self) -> None:
        """Commit what is left and close what is open."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown()  # what it was writing is written
        self._commit()
        self._rows.close()

    def _commit(self) -> None:
        """Store all that has arrived. Where that takes a while, what arrives meanwhile goes with the next."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        fresh, self._fresh = self._fresh, []
        if self._thread is None:
            failed: JournalError | None = None
            try:
                self._rows.append(fresh)
            except JournalError as error:
                failed = error
            _settle(waiting, failed)
            return
        loop = waiting[0].get_loop()
        self._writing = self._thread.submit(self._rows.append, fresh)
        self._writing.add_done_callback(partial(self._tell, loop, waiting))

    def _tell(
        self,
        loop: asyncio.AbstractEventLoop,
        waiting: list["asyncio.Future[None]"],
        written: "Future[None]",
    ) -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            loop.call_soon_threadsafe(self._written, waiting, written.exception())

    def _written(self, waiting: list["asyncio.Future[None]"], failed: BaseException | None) -> None:
        self._writing = None
        _settle(waiting, failed)
        self._commit()


def _settle(waiting: list["asyncio.Future[None]"], failed: BaseException | None) -> None:
    for committed in waiting:
        if committed.done():  # cancelled: what it stores is stored all the same
            continue
        if failed is None:
            committed.set_result(None)
        else:
            committed.set_exception(failed)


class SqliteRows:
    """Rows in a file of SQLite's, in write-ahead mode."""

    remote = False

    def __init__(self, file: File | str) -> None:
        self._file = file
        with ExitStack() as failed, _told(file):
            self.db = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=30)
            failed.callback(self.db.close)
            for statement in _OPEN:
                self.db.execute(statement)
            failed.pop_all()

    def read(self) -> tuple[list[Row], list[Row]]:
        """The inherited rows and the run's own."""
        with _told(self._file):
            fork = self.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'inherited'").fetchall()
            inherited = self.db.execute(_READ.format("inherited")).fetchall() if fork else []
            return inherited, self.db.execute(_READ.format("replies")).fetchall()

    def append(self, rows: Sequence[Row]) -> None:
        """Store and commit."""
        self._store(rows, "replies")

    def inherit(self, rows: Sequence[Row]) -> None:
        """Store what another run was answered."""
        self.db.execute(_TABLE.format("inherited"))
        self._store(rows, "inherited")

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def _store(self, rows: Sequence[Row], table: str) -> None:
        try:
            self.db.execute("BEGIN")
            self.db.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?)", rows)  # noqa: S608
            self.db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            raise JournalError(f"The journal cannot be written: {error}") from error


# A table without a key: rows are only appended, which costs least, and read all at once.
_TABLE = (
    "CREATE TABLE IF NOT EXISTS {} (path TEXT, request INTEGER, reply BLOB, usage BLOB, t REAL, seconds REAL)"
)
_OPEN = (
    "PRAGMA page_size=8192",  # replies of 2 KB leave less of it unused than of the usual 4096
    "PRAGMA journal_mode=WAL",
    "PRAGMA wal_autocheckpoint=500",  # 4 MB
    "PRAGMA synchronous=NORMAL",
    _TABLE.format("replies"),
)
_READ = "SELECT path, request, reply, usage, t, seconds FROM {} ORDER BY rowid"


@contextmanager
def _told(file: File | str) -> Iterator[None]:
    """SQLite's errors on opening and reading, as ours."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise JournalError(
            f"The journal {file} cannot be opened: {error}. Make its folder one you can write to."
        ) from error
    except sqlite3.DatabaseError as error:
        raise JournalError(
            f"The journal {file} is damaged: {error}. Move it away to run everything again."
        ) from error


def _key(path: Path) -> str:
    return ".".join(map(str, path))
