"""The frontier of a best-first search: open nodes, the one of least f first.

Ties go to the larger score, then to the deeper node, then to the older one. Where a reward never falls
along a path f stays the same, so ties are the common case, and this order makes the search dive.
"""

import heapq
from typing import TypeAlias

from .search import Node

Key: TypeAlias = tuple[float, float, int, int]
_DIGITS = 9  # of f: sums that differ by rounding alone must tie


class Frontier:
    """At most `limit` open nodes; those of largest f are evicted, and counted."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.evicted = 0
        self._heap: list[tuple[Key, Node]] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def top(self) -> Node | None:
        """The node that would be popped next."""
        return self._heap[0][1] if self._heap else None

    def push(self, node: Node, f: float) -> None:
        """Open a node."""
        heapq.heappush(self._heap, (key(node, f), node))
        if self.limit is not None and len(self._heap) > self.limit:
            self._heap = heapq.nsmallest(self.limit, self._heap)  # sorted, so a heap
            self.evicted += 1

    def pop(self) -> Node:
        """The node of least f. Raises IndexError if nothing is open."""
        return heapq.heappop(self._heap)[1]

    def clear(self) -> None:
        """Close everything."""
        self._heap.clear()


def key(node: Node, f: float) -> Key:
    """What nodes are ordered by, least first; no two nodes have the same."""
    return round(f, _DIGITS), -(node.score or 0.0), -node.depth, node.id
