"""Monte Carlo tree search: explore where it promises most, then commit to one step after another.

Each simulation descends from the committed node by the largest Q + U, expands the leaf it arrives at, and
adds the reward of its best new child to every node above. After some simulations the most visited child is
committed to, with all that is known below it. There are no roll-outs: the reward judges prefixes.

    Q = total / visits      U = (c_init + ln((N_p + c_base + 1) / c_base)) · √N_p / (1 + N_c)

Source: Reasoning with Language Model is Planning with World Model, arXiv 2305.14992; selection rule and
constants as in the code of arXiv 2502.07191 (after AlphaZero). Deviates: that code backs up a random new
child (`backup="random"`), knows nothing of a child before its first visit where here Q is its score, and
returns the committed solution (`select="path"`) where here the best scored of all found is returned.
"""

import math
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from ..serving.errors import SearchEnded, UsageError
from ..serving.flow import Flow, Note
from ..serving.seeds import derive
from .base import Policy, Result, Reward, Task
from .search import Node, Search


@dataclass(frozen=True, kw_only=True)
class MCTS:
    """`simulations` for each committed step, `expand` draws for each leaf; cost: at most simulations ·
    expand proposals a step, one reward pass for each distinct prefix."""

    policy: Policy
    reward: Reward
    simulations: int = 5
    expand: int = 4
    c_init: float = 1.25
    c_base: float = 19652.0
    backup: Literal["best", "random"] = "best"
    commit: Literal["visits", "sample"] = "visits"
    select: Literal["best", "path"] = "best"
    max_depth: int = 40

    def __post_init__(self) -> None:
        if min(self.simulations, self.expand, self.max_depth) < 1:
            raise UsageError(
                f"simulations, expand and max_depth must be at least 1, got {self.simulations}, "
                f"{self.expand} and {self.max_depth}."
            )
        if self.c_base <= 0 or self.c_init < 0:
            raise UsageError(
                f"c_base must be above 0 and c_init at least 0, got {self.c_base}, {self.c_init}."
            )
        if self.backup not in ("best", "random"):
            raise UsageError(f"backup must be 'best' or 'random', got {self.backup!r}.")
        if self.commit not in ("visits", "sample"):
            raise UsageError(f"commit must be 'visits' or 'sample', got {self.commit!r}.")
        if self.select not in ("best", "path"):
            raise UsageError(f"select must be 'best' or 'path', got {self.select!r}.")

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Simulate, commit, until the committed node is finished or nothing can be drawn from it."""
        search = Search(task, self.policy, self.reward, seed)
        seen = Visits()
        rng = Random(derive(seed, "mcts"))
        node, stopped = search.root, None
        try:
            while not node.terminal and node.depth < self.max_depth:
                for _ in range(self.simulations):
                    yield from self.simulate(search, seen, node, rng)
                visited = [child for child in node.children if seen.n(child)]
                if not visited:
                    break
                node = self.committed(visited, seen, rng)
                yield [Note("commit", {"node": node.id, "visits": seen.n(node)})]
        except SearchEnded as end:
            stopped = end
        best = node
        if not node.terminal or self.select == "best":
            best = (yield from search.finalise(node)) or node
        return search.result(best, stopped=stopped)

    def simulate(self, search: Search, seen: "Visits", node: Node, rng: Random) -> Flow[None]:
        """Descend, expand, back up."""
        path = [node]
        while path[-1].children:
            parent = path[-1]
            path.append(max(parent.children, key=lambda child: seen.q(child) + self.u(seen, parent, child)))
        leaf = path[-1]
        if not leaf.terminal and leaf.depth < self.max_depth:
            [children] = yield from search.expand([leaf], [self.expand], unique=True)
            if children:
                best = max(children, key=lambda child: child.score or 0.0)
                path.append(best if self.backup == "best" else rng.choice(children))
        seen.back_up(path, path[-1].score or 0.0)

    def u(self, seen: "Visits", parent: Node, child: Node) -> float:
        """How much there is still to find out about a child."""
        n_p, n_c = seen.n(parent), seen.n(child)
        return (self.c_init + math.log((n_p + self.c_base + 1) / self.c_base)) * math.sqrt(n_p) / (1 + n_c)

    def committed(self, children: list[Node], seen: "Visits", rng: Random) -> Node:
        """The most visited child, of equals that of largest Q; or one drawn in proportion to its visits."""
        if self.commit == "sample":
            [drawn] = rng.choices(children, [seen.n(child) for child in children])
            return drawn
        return max(children, key=lambda child: (seen.n(child), seen.q(child)))


@dataclass(slots=True)
class Visits:
    """How often each node was passed, and the sum of what was backed up through it."""

    _visits: dict[Node, int] = field(default_factory=dict)
    _total: dict[Node, float] = field(default_factory=dict)

    def n(self, node: Node) -> int:
        """Visits."""
        return self._visits.get(node, 0)

    def q(self, node: Node) -> float:
        """Mean value; of a node never visited its own score, which is known."""
        visits = self.n(node)
        return self._total[node] / visits if visits else node.score or 0.0

    def back_up(self, path: list[Node], value: float) -> None:
        """Count one simulation for every node on its path."""
        for node in path:
            self._visits[node] = self.n(node) + 1
            self._total[node] = self._total.get(node, 0.0) + value
