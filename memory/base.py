"""What a memory is: a store of entries, in versions, found again by what they say.

`Recall` and `Remember` requests (`serving/flow.py`) are answered by one; the driver calls it.
`in_memory.py` is the reference; every other store must do the same (tests/memory/test_conformance.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..serving.entries import Entry, Match


@dataclass(frozen=True)
class Change:
    """One line of a store's history: what a write did to one entry, and why.

    `entry` is what was written; where the action is "removed" (by a rollback, and by nothing else) what was
    there before.
    """

    version: int
    name: str
    action: str  # "written", "merged", "condensed", "retired", "rolled back", …
    reason: str
    entry: Entry


class Store(Protocol):
    """Safe to use from several tasks, threads and processes at once.

    `version` counts the writes: it rises by one with each `write` or `rollback` that changes something, and
    with nothing else; what is read is of one version, whole. What an entry says is versioned, how often it
    was used is not: `uses` and `wins` never fall, and of two counts of one entry the larger holds.
    Entries are kept as `checking.py` leaves them: without secrets, and only what JSON can hold.
    """

    async def version(self) -> int:
        """The newest version; 0 of an empty store."""
        ...

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
        """Put the entries in, all or none, replacing those of the same name. Returns the new version.

        Once it returns, they survive the end of the process. An entry equal to what is there but for its
        counts makes no change; if none does, no version is made. Raises UsageError for an entry that cannot
        be kept, or a name twice.

        With `after`, a change is made only if that is still the newest version, else 0 is returned: who
        writes what follows from what was read then overwrites nobody, and may write it again.

        `credit` is counted (see there) with the entries, or not at all. `once` names the write: a second one
        of that name changes and counts nothing, and returns what the first returned. So who was cut off
        before hearing of a write may make it again.
        """
        ...

    async def get(self, names: Sequence[str]) -> tuple[Entry, ...]:
        """The entries of these names, in this order; unknown names are left out."""
        ...

    async def search(
        self, query: str, k: int, *, kinds: Sequence[str] = (), domain: str = ""
    ) -> tuple[Match, ...]:
        """At most `k` active entries most like the query, best first, each with the reason; ties by name.

        With kinds or a domain, only of these. An entry that shares no word with the query, and that no
        vector brings near it, is not found (`ranking.py`)."""
        ...

    async def everything(self, *, kinds: Sequence[str] = (), at: int | None = None) -> tuple[Entry, ...]:
        """All entries, retired ones too, by name; `at`: as they were written up to that version."""
        ...

    async def credit(self, outcomes: Mapping[str, bool]) -> None:
        """Count a use of each named entry, and a win where true. Makes no version; unknown names are left
        out."""
        ...

    async def history(self, name: str = "") -> tuple[Change, ...]:
        """What happened to an entry, or to all, oldest first; within a version by name."""
        ...

    async def rollback(self, version: int, *, reason: str = "") -> int:
        """Make a new version equal to an old one (counts of uses stay). Returns its number. Raises UsageError
        if there is no such version."""
        ...

    async def forget(self, names: Sequence[str]) -> int:
        """Erase entries and their history for good, as a user may demand. Returns how many there were."""
        ...

    async def close(self) -> None:
        """Release what it holds. A closed store opens again on the next call."""
        ...


def changed(old: Entry | None, new: Entry) -> bool:
    """Whether a write of `new` over `old` makes a change: whether they differ in more than their counts."""
    return old is None or _content(old) != _content(new)


def merged(old: Entry | None, new: Entry) -> Entry:
    """What is kept when `new` is written over `old`: the larger counts of the two."""
    if old is None:
        return new
    return replace(new, uses=max(old.uses, new.uses), wins=max(old.wins, new.wins))


def _content(entry: Entry) -> Entry:
    return replace(entry, uses=0, wins=0)
