"""Beam search over reasoning steps: go on from the best few prefixes, forget the rest.

At each depth every live beam is continued in several ways, the new prefixes are scored, and the W best go
on. Finished ones are set aside; one among the W frees no new place. What is cut is cut for good: an early
misjudgement cannot be repaired (for that see `a_star` and `particle_filter`).

    B_{t+1} = the W prefixes of largest v among the draws from B_t,   v = `value` of the step scores

With `width=1` it is step-level best-of-N. Source: Scaling LLM Test-Time Compute Optimally, arXiv 2408.03314,
and the suite of arXiv 2502.07191. Deviates: siblings that say the same are one (the suite's check for that
never fires), and the value is the last score (its code takes the maximum where it says minimum).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

from ..serving.errors import SearchEnded, UnknownName, UsageError
from ..serving.flow import Flow
from .base import Policy, Result, Reward, Task
from .search import Node, Search

Value: TypeAlias = Literal["last", "min", "product", "mean", "max"]
VALUES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "product": math.prod,
    "mean": lambda scores: sum(scores) / len(scores),
    "max": max,
}


@dataclass(frozen=True, kw_only=True)
class Beam:
    """W = `width` beams, each continued in `expand` ways; cost: at most width · expand proposals a depth,
    one reward pass for each distinct prefix. The first depth draws as many from the root."""

    policy: Policy
    reward: Reward
    width: int = 4
    expand: int = 4
    value: Value = "last"
    max_depth: int = 40

    def __post_init__(self) -> None:
        if min(self.width, self.expand, self.max_depth) < 1:
            raise UsageError(
                f"width, expand and max_depth must be at least 1, got {self.width}, {self.expand} and "
                f"{self.max_depth}."
            )
        if self.value not in VALUES:
            raise UnknownName("value", self.value, VALUES)

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Depth by depth; the best finished beam, else an answer from the best live one."""
        search = Search(task, self.policy, self.reward, seed)
        stopped = yield from self.grow(search)
        if not search.terminals:
            best = yield from search.finalise(self.best(search, search.open))
        else:
            best = self.best(search, search.terminals)
        return search.result(best, stopped=stopped)

    def grow(self, search: Search) -> Flow[SearchEnded | None]:
        """Go on until every beam has finished or stands at `max_depth`; what ended it early, if anything."""
        live, n = [search.root], self.width * self.expand
        try:
            while live and live[0].depth < self.max_depth:
                drawn = yield from search.expand(live, [n] * len(live), unique=True)
                ranked = sorted(chain(*drawn), key=self.worth, reverse=True)
                yield from search.prune(node for node in ranked[self.width :] if not node.terminal)
                live, n = [node for node in ranked[: self.width] if not node.terminal], self.expand
        except SearchEnded as end:
            return end
        return None

    def worth(self, node: Node) -> float:
        """v of a prefix."""
        return VALUES[self.value]([step.score or 0.0 for step in node.path()[1:]] or [0.0])

    def best(self, search: Search, nodes: Sequence[Node]) -> Node | None:
        """The node of largest v, those with an answer first."""
        return search.best(nodes, self.worth)
