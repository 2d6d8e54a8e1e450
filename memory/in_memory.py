"""The reference: a store in this process's memory, as simple as its contract allows."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..serving.entries import Entry, Match
from ..serving.errors import UsageError
from .base import Change, changed, merged
from .checking import check_action, checked, clean
from .codes import packed, unpacked
from .embedder import TEXT_ONLY, Embedder, cosines, near
from .ranking import Corpus, asked, best, depth, fused, searched, why, words

if TYPE_CHECKING:
    from .embedder import Vectors


class InMemory:
    """Gone with the process. Without an embedder it finds by words alone, and says so."""

    def __init__(self, embedder: Embedder | None = None) -> None:
        self._embedder = embedder
        self._entries: dict[str, Entry] = {}
        self._vectors: dict[str, Vectors] = {}
        self._history: list[Change] = []
        self._version = 0
        self._made: dict[str, int] = {}  # by the names of writes
        self._lock = threading.RLock()

    async def version(self) -> int:
        """The newest version."""
        return self._version

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
        kept = checked(entries)
        vectors = await self._embed(kept)
        with self._lock:
            if once in self._made:
                return self._made[once]
            new = [entry for entry in kept if changed(self._entries.get(entry.name), entry)]
            if new and after not in (None, self._version):
                return 0
            self._version += bool(new)
            for entry in kept:
                self._entries[entry.name] = merged(self._entries.get(entry.name), entry)
            self._vectors |= vectors
            self._log(action, reason, [self._entries[entry.name] for entry in new])
            self._count(credit or {})
            if once:
                self._made[once] = self._version
            return self._version

    async def get(self, names: Sequence[str]) -> tuple[Entry, ...]:
        """The entries of these names."""
        found = (self._entries.get(clean(name)) for name in names)
        return tuple(entry for entry in found if entry is not None)

    async def search(
        self, query: str, k: int, *, kinds: Sequence[str] = (), domain: str = ""
    ) -> tuple[Match, ...]:
        """Ranks all entries, one after the other."""
        vector = (await self._embedder.embed([query]))[0] if self._embedder else None
        with self._lock:
            active = [entry for entry in self._entries.values() if entry.status == "active"]
            texts = {entry.name: words(searched(entry)) for entry in active}
            holding = Counter(word for text in texts.values() for word in set(text))
            corpus = Corpus(len(texts), sum(map(len, texts.values())), holding)
            able = [e.name for e in active if (not kinds or e.kind in kinds) and domain in ("", e.domain)]
            rarity = corpus.rarity(asked(query))
            scores = {name: corpus.bm25(rarity, texts[name]) for name in able}
            if vector is None:
                found, similar = best(scores, k), {}
            else:
                similar = {name: cosines(self._vectors[name][None], vector)[0] for name in able}
                found = fused(best(scores, depth(k)), best(similar, depth(k)), k)
            told = {
                n: near(self._embedder, similar[n]) if vector is not None else TEXT_ONLY for n, _ in found
            }
            return tuple(
                Match(self._entries[name], score, why(rarity, texts[name], told[name]))
                for name, score in found
            )

    async def everything(self, *, kinds: Sequence[str] = (), at: int | None = None) -> tuple[Entry, ...]:
        """All entries, by name."""
        with self._lock:
            found = self._entries if at is None else self._at(at)
            return tuple(entry for _, entry in sorted(found.items()) if not kinds or entry.kind in kinds)

    async def credit(self, outcomes: Mapping[str, bool]) -> None:
        """Count uses and wins."""
        with self._lock:
            self._count(outcomes)

    async def history(self, name: str = "") -> tuple[Change, ...]:
        """What happened, oldest first."""
        return tuple(change for change in self._history if clean(name) in ("", change.name))

    async def rollback(self, version: int, *, reason: str = "") -> int:
        """Make a new version equal to an old one."""
        with self._lock:
            if not 0 <= version <= self._version:
                raise no_version(version, self._version)
            then = self._at(version)
        vectors = await self._embed(list(then.values()))
        with self._lock:
            back = [e for name, e in then.items() if changed(self._entries.get(name), e)]
            gone = [entry for name, entry in self._entries.items() if name not in then]
            self._version += bool(back or gone)
            for entry in gone:
                del self._entries[entry.name]
            for entry in back:
                self._entries[entry.name] = merged(self._entries.get(entry.name), entry)
            self._vectors |= {entry.name: vectors[entry.name] for entry in back if vectors}
            self._log("rolled back", reason, [self._entries[entry.name] for entry in back])
            self._log("removed", reason, gone)
            return self._version

    async def forget(self, names: Sequence[str]) -> int:
        """Erase entries and their history."""
        with self._lock:
            known = {change.name for change in self._history} & set(map(clean, names))
            self._history = [change for change in self._history if change.name not in known]
            for name in known:
                self._entries.pop(name, None)
                self._vectors.pop(name, None)
            return len(known)

    async def close(self) -> None:
        """Nothing is held."""

    async def _embed(self, entries: Sequence[Entry]) -> "dict[str, Vectors]":
        if self._embedder is None or not entries:
            return {}
        vectors = await self._embedder.embed([searched(entry) for entry in entries])
        halves = unpacked(packed(vectors))
        return {entry.name: vector for entry, vector in zip(entries, halves, strict=True)}

    def _count(self, outcomes: Mapping[str, bool]) -> None:
        for name, won in outcomes.items():
            if (entry := self._entries.get(clean(name))) is not None:
                self._entries[entry.name] = replace(entry, uses=entry.uses + 1, wins=entry.wins + bool(won))

    def _log(self, action: str, reason: str, entries: Sequence[Entry]) -> None:
        self._history += [Change(self._version, e.name, action, clean(reason), e) for e in entries]
        self._history.sort(key=lambda change: (change.version, change.name))

    def _at(self, version: int) -> dict[str, Entry]:
        last = {change.name: change for change in self._history if change.version <= version}
        return {name: change.entry for name, change in last.items() if change.action != "removed"}


def no_version(version: int, newest: int) -> UsageError:
    """The error for a version that there is none of."""
    return UsageError(f"The memory has no version {version}. It has 0 to {newest}.")
