"""Which resamplings belong to the same population: one run may hold many, in turn or in lockstep.

A resampling names the nodes of its particles. It goes on with the population that most of them descend from:
the one whose survivors stand last on their paths. Particles that come from no survivor begin a new one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..search_view import Seen


class Populations:
    """Numbers the populations of one search, resampling by resampling."""

    def __init__(self) -> None:
        self._of: dict[Seen, int] = {}  # the population that a node survived in
        self._n = 0

    def number(self, particles: Iterable[Seen | None], ancestors: Sequence[int]) -> int:
        """The population of this resampling."""
        nodes = list(particles)
        votes: Counter[int] = Counter()
        for node in nodes:
            here = node.parent if node is not None else None
            while here is not None and here not in self._of:
                here = here.parent
            votes[-1 if here is None else self._of[here]] += 1
        winner = votes.most_common(1)[0][0] if votes else -1
        if winner < 0:
            winner, self._n = self._n, self._n + 1
        for i in set(ancestors):
            if 0 <= i < len(nodes) and (kept := nodes[i]) is not None:
                self._of[kept] = winner
        return winner


def point(data: Mapping[str, Any], t: float, visit: int, population: int) -> dict[str, Any]:
    """A resampling as the curves show it."""
    return {
        "t": t,
        "visit": visit,
        "population": population,
        "n": len(data["nodes"]),
        "kept": len(set(data["ancestors"])),
        "ess": data.get("ess"),
        "log_evidence": data.get("log_evidence"),
    }
