"""Counts of drafts by where they were found, and of what they gained."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .tries import SOURCES


@dataclass(slots=True)
class Tally:
    """Nodes drafted and nodes kept by source; forwards and tokens of all requests, each counted for itself.

    EDL, the tokens gained per forward, is `tokens / forwards`; without a draft that is kept it is 1.
    """

    drafted: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    forwards: int = 0
    tokens: int = 0

    def count(self, sources: Sequence[Sequence[str | None]], rows: Any, n: int) -> None:
        """Count one verification: each request's sources by row, and the rows kept [batch, n], -1 after the
        last."""
        for i, (names, kept) in enumerate(zip(sources, rows.tolist(), strict=True)):
            self.drafted.update(name for name in names if name is not None)
            found = [names[row - i * n] for row in kept if row >= 0]
            known = [name for name in found if name is not None]
            self.kept.update(known)
            self.runs.update(known[:1])
            self.forwards += 1
            self.tokens += len(found)

    def table(self) -> dict[str, Any]:
        """The counts as plain values. `runs`: forwards whose first kept draft a source gave, so that
        kept / runs is about its accepted length."""
        return {
            "forwards": self.forwards,
            "tokens": self.tokens,
            "edl": self.tokens / self.forwards if self.forwards else 1.0,
            "sources": {
                name: {
                    "drafted": self.drafted[name],
                    "kept": self.kept[name],
                    "runs": self.runs[name],
                }
                for name in SOURCES
            },
        }
