"""Runs in a PostgreSQL server, shared by all machines that reach it; each keeps the traces it made itself.

    abduce_runs      name, record, result, holder
    abduce_replies   run, n, inherited, path, request, reply, usage, t, seconds
    checkpoint…      LangGraph's own tables

Who works on a run holds an advisory lock in a connection of its own, and its name as `holder`: a process that
lost the lock (its connection broke) cannot write beside the one that has it now.
"""

import asyncio
import atexit
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...serving import redact, settings
from ...serving.errors import JournalError, UsageError
from ...serving.postgres_url import check, shown
from ..journal import Row
from .folder import FolderStore, gone
from .postgres_link import Link, connect, conninfo, told

if TYPE_CHECKING:
    import psycopg
    from langgraph.checkpoint.base import BaseCheckpointSaver
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

PATIENCE_S = 1.0
"""How long a run that is held is waited for: a server takes its time to notice that a process was killed."""


@dataclass(frozen=True, slots=True)
class PostgresStore:
    """All runs in one database."""

    folder: Path
    url: str = field(repr=False)

    @classmethod
    def at(cls, url: str) -> "PostgresStore":
        """The store at a URL; nothing is connected to yet."""
        check(url, kept="Runs", instead="a folder")
        if urlsplit(url).password:
            redact.register(url)
        return cls(settings.home() / "runs", url)

    def __str__(self) -> str:
        return shown(self.url)

    def names(self) -> list[str]:
        """All runs, oldest first."""
        with self._connection() as server:
            return [name for [name] in server.execute(_NAMES)]

    def create(self, name: str, record: bytes, inherited: Sequence[Row] = ()) -> None:
        """Make a run, its inherited replies with it."""
        with self._connection() as server, server.transaction():
            server.execute("INSERT INTO abduce_runs (name, record) VALUES (%s, %s)", [name, record.decode()])
            if inherited:
                server.execute(_APPEND, _columns(name, inherited, inherited=True, holder=None))

    def record(self, name: str) -> bytes:
        """What the run was started with."""
        return self._text(name, "SELECT record::text FROM abduce_runs WHERE name = %s") or b""

    def result(self, name: str) -> bytes | None:
        """What came of it."""
        return self._text(name, "SELECT result::text FROM abduce_runs WHERE name = %s")

    def finish(self, name: str, result: bytes) -> None:
        """Keep the result."""
        with self._connection() as server:
            server.execute("UPDATE abduce_runs SET result = %s WHERE name = %s", [result.decode(), name])

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Hold the run's lock, in a connection of its own."""
        from psycopg import Error

        with connect(self.url) as lock:
            with told(self.url):
                self._take(lock, name)
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                yield
            finally:
                with suppress(Error):  # of a connection that is lost the lock is, too
                    lock.execute(f"SELECT pg_advisory_unlock({_KEY})", [name])

    def _take(self, lock: "psycopg.Connection[Any]", name: str) -> None:
        """Lock the run, and become who may write to it."""
        until = time.monotonic() + PATIENCE_S
        while not _one(lock, f"SELECT pg_try_advisory_lock({_KEY})", name):
            if time.monotonic() >= until:
                raise UsageError(f"Run {name} is going on in another process. Wait for its end, or stop it.")
            time.sleep(0.05)
        mine = [secrets.token_hex(8), name]
        if not lock.execute("UPDATE abduce_runs SET holder = %s WHERE name = %s", mine).rowcount:
            raise gone(name)

    def is_held(self, name: str) -> bool:
        """Whether anybody has its lock."""
        with self._connection() as server:
            return bool(_one(server, _HELD, name))

    def rows(self, name: str) -> "PostgresRows":
        """The journal's rows, over a connection of their own."""
        return PostgresRows(self.url, name)

    def replies(self, name: str) -> tuple[Sequence[Row], Sequence[Row]]:
        """The journal's rows as they stand."""
        with self._connection() as server:
            found = _replies(server, name)
        if not any(found):
            self.record(name)  # complains if the run is gone
        return found

    @asynccontextmanager
    async def checkpointer(self) -> "AsyncIterator[BaseCheckpointSaver[Any]]":
        """LangGraph's tables in the same database."""
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

        with told(self.url):
            async with AsyncPostgresSaver.from_conn_string(conninfo(self.url)) as saver:
                if self.url not in _with_checkpoints:
                    await _set_up(saver)
                    _with_checkpoints.add(self.url)
                yield saver

    def n_bytes(self, name: str) -> int:
        """What the server keeps of it, and the trace here."""
        with self._connection() as server:
            return int(_one(server, _SIZE, name)) + FolderStore(self.folder).n_bytes(name)

    def delete(self, name: str) -> None:
        """Remove it from all tables, and its trace from this machine."""
        with self._connection() as server, server.transaction():
            server.execute("DELETE FROM abduce_runs WHERE name = %s", [name])
            server.execute("DELETE FROM abduce_replies WHERE run = %s", [name])
        with suppress(FileNotFoundError):
            rmtree(self.folder / name)

    @contextmanager
    def _connection(self) -> "Iterator[psycopg.Connection[Any]]":
        with _links.setdefault(self.url, Link(self.url)).connection() as connection:
            yield connection

    def _text(self, name: str, query: str) -> bytes | None:
        with self._connection() as server:
            found = server.execute(query, [name]).fetchone()
        if found is None:
            raise gone(name)
        return None if found[0] is None else str(found[0]).encode()


_links: dict[str, Link] = {}
_with_checkpoints: set[str] = set()


@atexit.register
def _let_go() -> None:
    for link in _links.values():
        link.close()


class PostgresRows:
    """The rows of one run. What arrives while a commit is on its way goes with the next."""

    remote = True

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        self._server = connect(url)
        self._holder: str | None = None

    def read(self) -> tuple[list[Row], list[Row]]:
        """The inherited rows and the run's own; from now on this process writes as the run's holder."""
        with told(self._url):
            self._holder = _one(self._server, "SELECT holder FROM abduce_runs WHERE name = %s", self._name)
            return _replies(self._server, self._name)

    def append(self, rows: Sequence[Row]) -> None:
        """Store and commit in one statement."""
        from psycopg import Error

        try:
            done = self._server.execute(
                _APPEND, _columns(self._name, rows, inherited=False, holder=self._holder)
            )
        except Error as error:
            raise JournalError(f"The journal cannot be written: {' '.join(str(error).split())}") from None
        if done.rowcount != len(rows):
            raise JournalError(
                f"The journal cannot be written: another process took over run {self._name}, or deleted it."
            )

    def close(self) -> None:
        """Close the connection."""
        self._server.close()


_NAMES = 'SELECT name FROM abduce_runs ORDER BY name COLLATE "C"'
_KEY = "hashtextextended('abduce run ' || %s, 0)"
_HELD = f"""
SELECT EXISTS (  -- a key of 64 bits stands there in two halves
    SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database AND datname = current_database()
    WHERE locktype = 'advisory' AND objsubid = 1
      AND (classid::bigint << 32) | objid::bigint = {_KEY}
)
"""  # noqa: S608
_SIZE = """
SELECT coalesce(sum(octet_length(reply) + octet_length(usage) + octet_length(path) + 80), 0)
FROM abduce_replies WHERE run = %s
"""
_READ = """
SELECT inherited, path, request, reply, usage, t, seconds FROM abduce_replies WHERE run = %s ORDER BY n
"""
_APPEND = """
INSERT INTO abduce_replies (run, inherited, path, request, reply, usage, t, seconds)
SELECT name, %(inherited)s, rows.*
FROM abduce_runs, unnest(
    %(path)b::text[], %(request)b::bigint[], %(reply)b::bytea[], %(usage)b::bytea[],
    %(t)b::double precision[], %(seconds)b::double precision[]
) AS rows
WHERE name = %(run)s AND holder IS NOT DISTINCT FROM %(holder)s
"""


def _columns(name: str, rows: Sequence[Row], *, inherited: bool, holder: str | None) -> dict[str, Any]:
    columns = ("path", "request", "reply", "usage", "t", "seconds")
    arrays = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
    return {"run": name, "inherited": inherited, "holder": holder, **arrays}


def _replies(server: "psycopg.Connection[Any]", name: str) -> tuple[list[Row], list[Row]]:
    found = server.execute(_READ, [name], binary=True).fetchall()
    return [row[1:] for row in found if row[0]], [row[1:] for row in found if not row[0]]


def _one(server: "psycopg.Connection[Any]", query: str, name: str) -> Any:
    found = server.execute(query, [name]).fetchone()
    return None if found is None else found[0]


async def _set_up(saver: "AsyncPostgresSaver") -> None:
    """Make LangGraph's tables, one process at a time."""

    async def said(function: str) -> Any:
        asked = f"SELECT {function}(hashtextextended('abduce checkpoints', 0)) AS it"
        return (await (await server.execute(asked)).fetchone())["it"]

    server: Any = saver.conn
    # Not by waiting in the server: an index that is made there waits for all who wait in a statement.
    while not await said("pg_try_advisory_lock"):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await saver.setup()
    await said("pg_advisory_unlock")
