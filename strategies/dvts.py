"""Diverse verifier tree search: several small beam searches that cannot crowd each other out.

A beam search with a confident reward soon holds only descendants of one first step. Here the budget is
split over independent subtrees, each a beam of width one that keeps the best of its M draws at every step;
the best finished solution of all subtrees wins. The subtrees wait for each other at no point.

    subtree k:  x_{t+1} = argmax_r of M draws after x_t         answer = argmax_k r(x_T^k)

Source: Hugging Face, Scaling Test-Time Compute with Open Models (2024); compared in arXiv 2502.01618.
"""

from dataclasses import dataclass

from ..serving.errors import SearchEnded, UsageError
from ..serving.flow import Flow, Fork
from ..serving.seeds import derive
from .base import Policy, Result, Reward, Task
from .beam import Beam
from .search import Search

_APART = 10**6  # between the first node numbers of two subtrees


@dataclass(frozen=True, kw_only=True)
class DVTS:
    """`subtrees` greedy searches of M = `expand` draws a step; cost: subtrees · expand proposals a depth."""

    policy: Policy
    reward: Reward
    subtrees: int = 4
    expand: int = 4
    max_depth: int = 40

    def __post_init__(self) -> None:
        if self.subtrees < 1:
            raise UsageError(f"subtrees must be at least 1, got {self.subtrees}.")
        self.subtree()

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Grow all subtrees at once; each numbers its nodes by itself, so that none waits for another."""
        whole = Search(task, self.policy, self.reward, seed)
        parts = [
            Search(task, self.policy, self.reward, derive(seed, "subtree", k), first_id=(k + 1) * _APART)
            for k in range(self.subtrees)
        ]
        stopped = None
        try:
            [ends] = yield [Fork(tuple(self.subtree().grow(part) for part in parts))]
            stopped = next((end for end in ends if end is not None), None)
        except SearchEnded as end:
            stopped = end
        for part in parts:
            whole.absorb(part)
        best = yield from whole.finalise(whole.best(whole.open))
        return whole.result(best, stopped=stopped)

    def subtree(self) -> Beam:
        """The search in one subtree."""
        return Beam(
            policy=self.policy, reward=self.reward, width=1, expand=self.expand, max_depth=self.max_depth
        )
