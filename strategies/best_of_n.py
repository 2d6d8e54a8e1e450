"""Best of N: draw N solutions independently, score them, keep the best.

The baseline every tree search must beat with the same reward (arXiv 2510.20272 finds that many do not).
Solutions that agree word for word are scored once.

    best       argmax_i r_i                                the first of equals wins
    weighted   argmax_a Σ_i v_i 1[a_i = a],  v = r stretched to [0, 1];  its best scored backer

Source: Training Verifiers to Solve Math Word Problems, arXiv 2110.14168; the weighted vote as in the code of
arXiv 2502.07191. Deviates: an empty answer never wins while another solution has one.
"""

from dataclasses import dataclass
from typing import Literal

from ..serving.errors import SearchEnded, UsageError
from ..serving.flow import Flow
from .base import Policy, Result, Reward, Task
from .search import Node, Search
from .voting import min_max, poll


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """Cost: N generations, one reward pass for each distinct solution.

    If not one of the N has an answer the pool is drawn anew, `attempts` times in all.
    """

    policy: Policy
    reward: Reward
    n: int = 8
    select: Literal["best", "weighted"] = "best"
    attempts: int = 2

    def __post_init__(self) -> None:
        if self.n < 1 or self.attempts < 1:
            raise UsageError(f"n and attempts must be at least 1, got {self.n} and {self.attempts}.")
        if self.select not in ("best", "weighted"):
            raise UsageError(f"select must be 'best' or 'weighted', got {self.select!r}.")

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Draw, score, choose."""
        search = Search(task, self.policy, self.reward, seed)
        stopped = None
        try:
            pool = yield from self.draw(search)
            yield from search.score(pool)
        except SearchEnded as end:
            stopped, pool = end, search.terminals
        best = self.choose(search, pool) or (yield from search.finalise(search.root if stopped else None))
        return search.result(best, stopped=stopped)

    def draw(self, search: Search) -> Flow[list[Node]]:
        """N finished solutions, at least one of them with an answer if that can be had."""
        pool: list[Node] = []
        for _ in range(self.attempts):
            pool = (yield from search.complete(search.root, self.n, score=False)) or pool
            if any(self.policy.answer(node.state) is not None for node in pool):
                break
        return pool

    def choose(self, search: Search, pool: list[Node]) -> Node | None:
        """The best solution, or the best backer of the answer with the largest weighted vote."""
        if self.select == "weighted" and pool:
            rewards = [node.score or 0.0 for node in pool]
            answers = [self.policy.answer(node.state) for node in pool]
            lengths = [len(node.state.text) for node in pool]
            winner = poll(answers, min_max(rewards), rewards=rewards, lengths=lengths).winner
            pool = [node for node, a in zip(pool, answers, strict=True) if a == winner] or pool
        return search.best(pool)
