"""The link to a PostgreSQL server: what is said of its URL and its faults, and the tables made on first use.

No password is ever shown: not in an error, not in a record, not in a trace.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ...serving.errors import AbduceError, UsageError
from ...serving.postgres_url import driver, one_line, shown

if TYPE_CHECKING:
    import psycopg

# What a URL may say otherwise: within a minute and a half it is noticed that a network is gone.
_DEFAULTS: Mapping[str, Any] = {
    "application_name": "abduce",
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}

# Each entry is one step of the schema; those a server lacks are carried out in order, in one transaction.
MIGRATIONS = (
    """
    CREATE TABLE abduce_runs (
        name text PRIMARY KEY,
        record json NOT NULL,       -- json, not jsonb: a text with \\u0000 in it must come back as it was
        result json,
        holder text                 -- who may write; changes with whoever holds the run
    );
    CREATE TABLE abduce_replies (
        run text NOT NULL,
        n bigint GENERATED ALWAYS AS IDENTITY,
        inherited boolean NOT NULL,
        path text NOT NULL,
        request bigint NOT NULL,
        reply bytea NOT NULL,
        usage bytea NOT NULL,
        t double precision NOT NULL,
        seconds double precision NOT NULL,
        PRIMARY KEY (run, n)
    );
    """,
)


def conninfo(url: str) -> str:
    """The URL as the driver wants it, with what it leaves unsaid."""
    pg = driver()
    text: str = pg.conninfo.make_conninfo(**{**_DEFAULTS, **pg.conninfo.conninfo_to_dict(url)})
    return text


def connect(url: str) -> "psycopg.Connection[Any]":
    """A connection of its own, each statement a transaction. Raises UsageError if there is none to be had."""
    pg = driver()
    try:
        made: psycopg.Connection[Any] = pg.connect(conninfo(url), autocommit=True)
        made.execute(_STAY)
    except pg.Error as error:
        raise UsageError(
            f"The PostgreSQL server at {shown(url)} cannot be used: {one_line(error)}. Is it running, and "
            "is the URL right?"
        ) from None
    return made


# The server would otherwise take an idle connection away, and with it what it holds (no such setting
# before version 14), and would notice only after hours that a machine that held a run is gone.
_STAY = """
SELECT set_config(name, value, false)
FROM (VALUES ('idle_session_timeout', '0'), ('tcp_keepalives_idle', '30'), ('tcp_keepalives_interval', '10'))
    AS wanted (name, value)
WHERE name IN (SELECT name FROM pg_settings)
"""


class Link:
    """One connection of this process to one server, used in turn by its threads and made anew when lost."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.RLock()
        self._connection: psycopg.Connection[Any] | None = None
        self._pid = 0

    @contextmanager
    def connection(self) -> "Iterator[psycopg.Connection[Any]]":
        """The connection, alone, with the tables there. Its errors become ours."""
        with self._lock, told(self.url):
            yield self._alive()

    def close(self) -> None:
        """Let go of it."""
        if self._connection is not None and self._pid == os.getpid():
            self._connection.close()

    def _alive(self) -> "psycopg.Connection[Any]":
        if self._connection is not None and self._pid == os.getpid():
            with suppress(driver().Error):
                self._connection.execute("SELECT 1")
                return self._connection
            self._connection.close()
        elif self._connection is not None:
            _of_the_parent.append(self._connection)  # closing it would end the parent's
        self._connection, self._pid = connect(self.url), os.getpid()
        migrate(self._connection)
        return self._connection


_of_the_parent: list[Any] = []


def migrate(connection: "psycopg.Connection[Any]") -> None:
    """Make the tables, or bring them up to date; one process at a time. Raises UsageError if they are those
    of a newer version."""
    if _version(connection) == len(MIGRATIONS):
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('abduce schema', 0))")
        version = _version(connection)
        if version > len(MIGRATIONS):
            raise UsageError(
                f"The store was made by a newer abduce (schema {version}, known: {len(MIGRATIONS)}). Update "
                "abduce here: pip install --upgrade abduce"
            )
        if version == 0:
            connection.execute("CREATE TABLE IF NOT EXISTS abduce_schema (version int NOT NULL)")
            connection.execute("INSERT INTO abduce_schema VALUES (0)")
        for step in MIGRATIONS[version:]:
            connection.execute(step)
        connection.execute("UPDATE abduce_schema SET version = %s", [len(MIGRATIONS)])


def _version(connection: "psycopg.Connection[Any]") -> int:
    if connection.execute(_IS_THERE).fetchone() is None:
        return 0
    row = connection.execute("SELECT version FROM abduce_schema").fetchone()
    return int(row[0]) if row else 0


# Not by to_regclass: it may still remember, under the lock, that there was no such table before it.
_IS_THERE = """
SELECT FROM pg_catalog.pg_tables
WHERE tablename = 'abduce_schema' AND schemaname = ANY (current_schemas(false))
"""


@contextmanager
def told(url: str) -> Iterator[None]:
    """The driver's errors as ours."""
    try:
        yield
    except driver().Error as error:
        raise AbduceError(f"The store at {shown(url)} failed: {one_line(error)}.") from None
