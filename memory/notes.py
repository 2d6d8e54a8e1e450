"""A memory of plain texts in one SQLite file, found again by the words they share with a query.

Ranked by BM25 of SQLite's full-text index, with Porter stemming.
"""

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from ..serving import redact
from ..serving.errors import UsageError


class Notes:
    """The file is made when something is first remembered."""

    def __init__(self, file: Path) -> None:
        self.file = file

    async def recall(self, query: str, k: int) -> tuple[str, ...]:
        """The `k` texts that share most with the query, rare words counting more."""
        return await asyncio.to_thread(self._recall, query, k)

    async def remember(self, text: str) -> None:
        """Store a text, without secrets, unless it is there."""
        await asyncio.to_thread(self._remember, redact.known(text))

    def _recall(self, query: str, k: int) -> tuple[str, ...]:
        words = list(dict.fromkeys(re.findall(r"\w+", query.casefold())))[:_MAX_WORDS]
        if not words or not self.file.exists():
            return ()
        with self._open() as db:
            any_of = " OR ".join(f'"{word}"' for word in words)
            rows = db.execute(_FIND, (any_of, k)).fetchall()
        return tuple(text for (text,) in rows)

    def _remember(self, text: str) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"The memory {self.file} cannot be made: {error.strerror}.") from None
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            if db.execute("SELECT 1 FROM notes WHERE text = ?", (text,)).fetchone() is None:
                db.execute("INSERT INTO notes VALUES (?)", (text,))
            db.execute("COMMIT")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.file, isolation_level=None, timeout=30)) as db:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("CREATE VIRTUAL TABLE IF NOT EXISTS notes USING fts5(text, tokenize='porter')")
                yield db
        except sqlite3.DatabaseError as error:
            raise UsageError(f"The memory {self.file} cannot be used: {error}.") from None


_MAX_WORDS = 64
_FIND = "SELECT text FROM notes WHERE notes MATCH ? ORDER BY rank, rowid LIMIT ?"
