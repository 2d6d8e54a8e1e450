"""A memory's connection to a PostgreSQL server: one, in a thread of its own, made anew when lost.

No password is ever shown.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ..serving import redact
from ..serving.errors import AbduceError, UsageError
from ..serving.postgres_url import check, driver, one_line, shown

if TYPE_CHECKING:
    import psycopg

    Server: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"

T = TypeVar("T")

SCHEMA = 2

_TABLES = """
CREATE TABLE abduce_memory (
    schema int NOT NULL, version bigint NOT NULL, n bigint NOT NULL, n_words bigint NOT NULL,
    embedder text NOT NULL
);
INSERT INTO abduce_memory VALUES (1, 0, 0, 0, '');
CREATE TABLE abduce_memory_entries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE, kind text NOT NULL, domain text NOT NULL, active boolean NOT NULL,
    uses bigint NOT NULL, wins bigint NOT NULL, text text NOT NULL, rest text NOT NULL,
    words text[] NOT NULL,      -- different ones, none if it is not active
    embedded boolean NOT NULL
);
CREATE INDEX ON abduce_memory_entries USING gin (words);
CREATE INDEX ON abduce_memory_entries (id) WHERE active AND NOT embedded;
CREATE TABLE abduce_memory_changes (
    version bigint NOT NULL, name text COLLATE "C" NOT NULL, action text NOT NULL, reason text NOT NULL,
    entry text NOT NULL, PRIMARY KEY (version, name)
);
CREATE INDEX ON abduce_memory_changes (name, version);
CREATE TABLE abduce_memory_words (word text COLLATE "C" PRIMARY KEY, n bigint NOT NULL);
"""
_SINCE_2 = """
CREATE TABLE abduce_memory_made (once text COLLATE "C" PRIMARY KEY, version bigint NOT NULL);
UPDATE abduce_memory SET schema = 2
"""

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('abduce memory ' || current_schema(), 0))"


class Link:
    """One connection, used by one thread."""

    def __init__(self, url: str) -> None:
        check(url, kept="A memory", instead="the name of a file such as concepts.db")
        redact.register_password(url)
        self.url = url
        self.vectors = ""  # the schema of pgvector, once it is known; "-" if there is none
        self._pool: ThreadPoolExecutor | None = None
        self._server: Server | None = None
        self._pid = os.getpid()

    def read(self, look: "Callable[[Server], T]") -> "Future[T]":
        """What `look` finds in one snapshot."""
        return self._submit(look, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def write(self, change: "Callable[[Server], T]") -> "Future[T]":
        """What `change` returns, once it is committed; one at a time, among all who write."""
        return self._submit(change, f"BEGIN; {_LOCK}")

    def vacuum(self) -> "Future[None]":
        """Let the server overwrite what was deleted."""

        def clean(server: "Server") -> None:
            for table in ("entries", "changes", "words"):
                server.execute(f"VACUUM abduce_memory_{table}")

        return self._submit(clean, "")

    def close(self) -> None:
        """Let go of the connection."""
        pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.submit(self._close)
            pool.shutdown()

    def __del__(self) -> None:
        if getattr(self, "_pid", 0) == os.getpid():
            self._close()

    def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _submit(self, work: "Callable[[Server], T]", begin: str) -> "Future[T]":
        if self._pid != os.getpid():
            self._server = self._pool = None  # the parent's
            self._pid = os.getpid()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "abduce-memory-postgres")
        return self._pool.submit(self._work, work, begin)

    def _work(self, work: "Callable[[Server], T]", begin: str) -> T:
        pg = driver()
        try:
            server = self._alive()
            if not begin:
                return work(server)
            server.execute(begin)
            try:
                done = work(server)
                server.execute("COMMIT")
            except BaseException:
                with suppress(pg.Error):
                    server.execute("ROLLBACK")
                raise
        except pg.Error as error:
            raise AbduceError(
                f"The memory at {shown(self.url)} failed: {one_line(error)}. Nothing of a write that failed "
                "was kept, everything before it is there."
            ) from None
        return done

    def _alive(self) -> "Server":
        pg = driver()
        if self._server is not None:
            with suppress(pg.Error):
                self._server.execute("SELECT 1")
                return self._server
            self._server.close()
        try:
            self._server = pg.connect(
                self.url, autocommit=True, connect_timeout=10, application_name="abduce"
            )
        except pg.Error as error:
            raise UsageError(
                f"The PostgreSQL server at {shown(self.url)} cannot be used: {one_line(error)}. Is it "
                "running, and is the URL right?"
            ) from None
        _make_tables(self._server)
        self.vectors = self.vectors or _vectors(self._server)
        return self._server


def _make_tables(server: "Server") -> None:
    with server.transaction():
        server.execute(_LOCK)
        if server.execute(_ARE_THERE).fetchone() is None:
            server.execute(_TABLES)
        [(schema,)] = server.execute("SELECT schema FROM abduce_memory").fetchall()
        if schema < 2:
            server.execute(_SINCE_2)
    if schema > SCHEMA:
        raise UsageError(
            f"The memory was made by a newer abduce (schema {schema}, known: {SCHEMA}). Update abduce here: "
            "pip install --upgrade abduce"
        )


_ARE_THERE = """
SELECT FROM pg_catalog.pg_tables WHERE tablename = 'abduce_memory' AND schemaname = current_schema()
"""


def _vectors(server: "Server") -> str:
    """The schema that pgvector is in, made if it can be; the table of vectors with it."""
    found = server.execute(_EXTENSION).fetchone()
    if found is None:
        with suppress(driver().Error):  # it is not installed, or this user may not
            server.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
            found = server.execute(_EXTENSION).fetchone()
    if found is None:
        return "-"
    schema = '"' + str(found[0]).replace('"', '""') + '"'
    server.execute(
        "CREATE TABLE IF NOT EXISTS abduce_memory_vectors (vector "
        f"{schema}.vector NOT NULL, id bigint PRIMARY KEY REFERENCES abduce_memory_entries ON DELETE CASCADE)"
    )
    return schema


_EXTENSION = """
SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'vector'
"""
