"""A store in one SQLite file: the default. Safe for several processes; texts by FTS5, vectors by numpy.

    entries   what there is now                     changes   every version of every entry
    found     full-text index of the active ones    words     how many hold a word
    vectors   of the active ones, half precision    codes     their signs, read into memory once (`codes.py`)

What changes an entry gives it a new row; counts are updated in place.

    sqlite.py ─► sqlite_write.py ─► sqlite_search.py        sqlite_file.py: connections, threads, transactions
"""

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..serving.entries import Entry, Match
from . import sqlite_write
from .base import Change
from .checking import check_action, checked, clean, load_entry
from .codes import Codes
from .ranking import searched
from .sqlite_file import Db, SqliteFile
from .sqlite_search import ENTRY, Query, entry, search, whole

if TYPE_CHECKING:
    from .embedder import Embedder


class SqliteStore:
    """The file is made when something is first written. Without an embedder it finds by words alone; what was
    written so is embedded by the first search that has one."""

    def __init__(self, path: str | Path, embedder: "Embedder | None" = None) -> None:
        self.path = Path(path)
        self._file = SqliteFile(self.path)
        self._embedder = embedder
        self._codes = Codes()  # of the reading thread alone

    def __repr__(self) -> str:
        return f"SqliteStore({str(self.path)!r})"

    async def version(self) -> int:
        """The newest version."""
        return await asyncio.wrap_future(self._file.read(sqlite_write.version, 0))

    async def write(
        self,
        entries: Sequence[Entry],
        *,
        action: str = "written",
        reason: str = "",
        after: int | None = None,
        credit: Mapping[str, bool] | None = None,
        once: str = "",
    ) -> int:
        """Put the entries in."""
        check_action(action)
        kept, reason, embedder = checked(entries), clean(reason), self._embedder
        if not kept and not self.path.exists():
            return 0
        vectors = await embedder.embed([searched(each) for each in kept]) if embedder and kept else None

        def change(db: Db) -> int:
            if made := sqlite_write.made(db, once):
                return made
            name = embedder.name if embedder and kept else ""
            made = sqlite_write.write(db, kept, vectors, name, action, reason, after)
            if made:
                sqlite_write.count(db, credit or {})
                sqlite_write.mark(db, once, made)
            return made

        return await asyncio.wrap_future(self._file.write(change))

    async def get(self, names: Sequence[str]) -> tuple[Entry, ...]:
        """The entries of these names."""
        kept = [clean(name) for name in names]
        nothing: dict[str, Entry] = {}
        found = await asyncio.wrap_future(self._file.read(lambda db: whole(db, kept), nothing))
        return tuple(found[name] for name in kept if name in found)

    async def search(
        self, query: str, k: int, *, kinds: Sequence[str] = (), domain: str = ""
    ) -> tuple[Match, ...]:
        """By words, and by vectors if there is an embedder; then both rankings are fused."""
        vector, wanted = None, Query(clean(query), k, tuple(kinds), domain)
        if self._embedder is not None and self.path.exists():
            await self._catch_up(self._embedder)
            [vector] = await self._embedder.embed([wanted.text])

        def look(db: Db) -> tuple[Match, ...]:
            return search(db, wanted, self._embedder, vector, self._codes)

        return await asyncio.wrap_future(self._file.read(look, ()))

    async def everything(self, *, kinds: Sequence[str] = (), at: int | None = None) -> tuple[Entry, ...]:
        """All entries, by name."""

        def look(db: Db) -> tuple[Entry, ...]:
            now = map(entry, db.execute(f"{ENTRY} ORDER BY name")) if at is None else ()
            found: Iterable[Entry] = now if at is None else sqlite_write.at(db, at).values()
            return tuple(each for each in found if not kinds or each.kind in kinds)

        return await asyncio.wrap_future(self._file.read(look, ()))

    async def credit(self, outcomes: Mapping[str, bool]) -> None:
        """Count uses and wins."""
        if outcomes and self.path.exists():
            await asyncio.wrap_future(self._file.write(partial(sqlite_write.count, outcomes=outcomes)))

    async def history(self, name: str = "") -> tuple[Change, ...]:
        """What happened, oldest first."""

        def look(db: Db) -> tuple[Change, ...]:
            which, values = ("WHERE name = ?", (clean(name),)) if name else ("", ())
            rows = db.execute(f"{_CHANGES} {which} ORDER BY version, name", values)
            return tuple(Change(v, n, a, r, load_entry(json.loads(said))) for v, n, a, r, said in rows)

        return await asyncio.wrap_future(self._file.read(look, ()))

    async def rollback(self, version: int, *, reason: str = "") -> int:
        """Make a new version equal to an old one."""
        kept = clean(reason)
        return await asyncio.wrap_future(
            self._file.write(lambda db: sqlite_write.rollback(db, version, kept))
        )

    async def forget(self, names: Sequence[str]) -> int:
        """Erase entries and their history; their bytes are overwritten in the file."""
        kept = [clean(name) for name in names]
        if not kept or not self.path.exists():
            return 0
        n = await asyncio.wrap_future(self._file.write(lambda db: sqlite_write.forget(db, kept)))
        if n:
            await asyncio.to_thread(self._file.checkpoint)
        return n

    async def close(self) -> None:
        """Finish what is queued and let go of the file."""
        await asyncio.to_thread(self._file.close)
        self._codes = Codes()

    async def _catch_up(self, embedder: "Embedder") -> None:
        """Embed what was written without an embedder, or came back by a rollback."""
        nothing: list[tuple[int, str, str, str]] = []
        while rows := await asyncio.wrap_future(self._file.read(sqlite_write.unembedded, nothing)):
            vectors = await embedder.embed([text for *_, text in rows])
            change = partial(sqlite_write.embed, rows=rows, vectors=vectors, embedder=embedder.name)
            await asyncio.wrap_future(self._file.write(change))


_CHANGES = "SELECT version, name, action, reason, entry FROM changes"
