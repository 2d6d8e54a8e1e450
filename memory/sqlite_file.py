"""A store's file: its tables, its two connections, and writes that share a transaction.

    read  ──► thread with a connection ──► one snapshot for each read
    write ──► queue ──► thread with a connection ──► all that waits, in one transaction, a savepoint each

A write is acknowledged once its transaction is on the disk (`synchronous=FULL`): neither a kill nor a power
failure loses it. Other processes wait for their turn.
"""

import json
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from ..serving.errors import AbduceError, UsageError

T = TypeVar("T")
Db: TypeAlias = sqlite3.Connection

SCHEMA = 2

_TABLES = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- a new one for each change
    name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, domain TEXT NOT NULL, active INTEGER NOT NULL,
    uses INTEGER NOT NULL, wins INTEGER NOT NULL, text TEXT NOT NULL, rest TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS changes (
    version INTEGER NOT NULL, name TEXT NOT NULL, action TEXT NOT NULL, reason TEXT NOT NULL,
    entry TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS changes_by_name ON changes (name, version);
CREATE INDEX IF NOT EXISTS changes_by_version ON changes (version, name);
CREATE TABLE IF NOT EXISTS words (word TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE VIRTUAL TABLE IF NOT EXISTS found USING fts5(
    words, content='', columnsize=0, detail=none, tokenize="ascii tokenchars '_'"
);
CREATE TABLE IF NOT EXISTS labels (id INTEGER PRIMARY KEY, label TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS codes (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    id INTEGER NOT NULL UNIQUE, kind INTEGER NOT NULL, domain INTEGER NOT NULL, code BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS dropped (seq INTEGER PRIMARY KEY AUTOINCREMENT, n INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS unembedded (id INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS made (once TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;  -- since 2
INSERT OR IGNORE INTO meta VALUES ('version', 0), ('n', 0), ('n_words', 0), ('embedder', '');
PRAGMA user_version = 2;
COMMIT;
"""


class SqliteFile:
    """Opened on first use, made on the first write, and again after `close` or a fork."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._queue: deque[tuple[Callable[[Db], Any], Future[Any]]] = deque()
        self._reader: _Thread | None = None
        self._writer: _Thread | None = None
        self._pid = os.getpid()

    def read(self, look: Callable[[Db], T], nothing: T) -> "Future[T]":
        """What `look` finds in one snapshot of the file; `nothing` if there is none."""

        def work(reader: _Thread) -> T:
            if not self.path.exists():
                return nothing
            with told(self.path):
                db = reader.connection(self.path)
                db.execute("BEGIN")
                try:
                    return look(db)
                finally:
                    db.execute("COMMIT")

        with self._lock:
            reader = self._ours("_reader")
            return reader.pool.submit(work, reader)

    def write(self, change: Callable[[Db], T]) -> "Future[T]":
        """What `change` returns, once what it changed is on the disk. If it raises, nothing is changed."""
        done: Future[T] = Future()
        with self._lock:
            writer = self._ours("_writer")
            self._queue.append((change, done))
            writer.pool.submit(self._drain, writer)
        return done

    def checkpoint(self) -> None:
        """Empty the write-ahead log, in which what was erased still stands, unless somebody is reading it."""
        with told(self.path), closing(connect(self.path)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Finish what is queued and let go of the file."""
        with self._lock:
            threads, self._reader, self._writer = (self._reader, self._writer), None, None
        for thread in threads:
            if thread is not None and self._pid == os.getpid():
                thread.close()

    def _ours(self, which: str) -> "_Thread":
        if self._pid != os.getpid():  # what was open belongs to the parent
            self._reader = self._writer = None
            self._queue.clear()
            self._pid = os.getpid()
        thread: _Thread | None = getattr(self, which)
        if thread is None:
            thread = _Thread(which.strip("_"))
            setattr(self, which, thread)
        return thread

    def _drain(self, writer: "_Thread") -> None:
        """Carry out all that waits, in one transaction."""
        with self._lock:
            jobs, settled = [job for job in self._queue if job[1].set_running_or_notify_cancel()], []
            self._queue.clear()
        if not jobs:
            return
        try:
            with told(self.path):
                _make_folder(self.path)
                db = writer.connection(self.path)
                db.execute("BEGIN IMMEDIATE")
                try:
                    for change, done in jobs:
                        settled.append((done, *_one(db, change)))
                    db.execute("COMMIT")
                finally:
                    if db.in_transaction:
                        with suppress(sqlite3.Error):
                            db.execute("ROLLBACK")
        except BaseException as error:
            for _, done in jobs:
                done.set_exception(error)
        else:
            for done, result, fault in settled:
                if fault is not None:
                    done.set_exception(fault)
                else:
                    done.set_result(result)


def _one(db: Db, change: Callable[[Db], T]) -> tuple[T | None, AbduceError | None]:
    """Carry one write out; the others of the transaction stay if it is refused."""
    db.execute("SAVEPOINT one")
    try:
        result = change(db)
    except AbduceError as error:
        db.execute("ROLLBACK TO one")
        return None, error
    finally:
        with suppress(sqlite3.Error):  # the transaction is gone
            db.execute("RELEASE one")
    return result, None


class _Thread:
    """A thread with a connection of its own."""

    def __init__(self, name: str) -> None:
        self.pool = ThreadPoolExecutor(1, f"abduce-memory-{name}")
        self._connection: Db | None = None

    def connection(self, path: Path) -> Db:
        """The connection, made on first use."""
        if self._connection is None:
            self._connection = connect(path)
        return self._connection

    def close(self) -> None:
        """Finish, and close the connection in its own thread."""
        self.pool.submit(self._close)
        self.pool.shutdown()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()


def connect(path: Path) -> Db:
    """A connection to a file that has the tables. Raises UsageError for a newer file."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
    try:
        [schema] = db.execute("PRAGMA user_version").fetchone()
        if schema > SCHEMA:
            raise UsageError(
                f"The memory {path} was made by a newer abduce (schema {schema}, known: {SCHEMA}). Update "
                "abduce here: pip install --upgrade abduce"
            )
        if schema == 0 and db.execute("SELECT 1 FROM sqlite_master").fetchone():
            [schema] = db.execute("PRAGMA user_version").fetchone()  # made meanwhile by another process?
            if schema == 0:
                raise UsageError(
                    f"The file {path} is a database, but no memory of abduce's. Choose another name."
                )
        db.execute("PRAGMA journal_mode=WAL")
        for setting in ("synchronous=FULL", "secure_delete=ON", "cache_size=-65536", "temp_store=MEMORY"):
            db.execute(f"PRAGMA {setting}")
        if schema < SCHEMA:
            try:
                db.executescript(_TABLES)
            except sqlite3.OperationalError as error:
                if schema == 0 or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
                    raise  # who may only read needs none of the tables since 2
    except BaseException:
        db.close()
        raise
    return db


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The memory {path} cannot be made: {error.strerror}. Choose another place."
        ) from None


@contextmanager
def told(path: Path) -> Iterator[None]:
    """SQLite's errors as ours: what is wrong, and what to do."""
    try:
        yield
    except (sqlite3.Error, json.JSONDecodeError) as error:
        raise UsageError(f"The memory {path} cannot be used: {error}. {_remedy(str(error))}") from None


def _remedy(said: str) -> str:
    if "full" in said:
        return (
            "Free some space and write again: nothing of this write was kept, everything before it is there."
        )
    if "locked" in said or "busy" in said:
        return "Another process writes for more than a minute: wait for it, or stop it."
    if "malformed" in said or "not a database" in said or "corrupt" in said:
        return (
            "The file is damaged, or none of ours. Put a copy of it back; or move it away to begin anew, and "
            'get back what can be read with: sqlite3 FILE ".recover" | sqlite3 NEW'
        )
    if "no such module" in said:
        return "The SQLite of this Python has no full-text search (FTS5): use another build of Python."
    if "readonly" in said or "unable to open" in said or "disk I/O" in said:
        return "Look whether you may write to its folder, and whether its disk works and has space."
    return (
        "If this lasts, put a copy of the file back, or get back what can be read with: "
        'sqlite3 FILE ".recover" | sqlite3 NEW'
    )
