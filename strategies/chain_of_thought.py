"""Chain of thought: one solution, written step by step, without any search.

The baseline that every search is measured against: it costs one solution and uses no reward.

    y ~ p(· | question)

Source: Chain-of-Thought Prompting Elicits Reasoning in Large Language Models, arXiv 2201.11903.
"""

from dataclasses import dataclass

from ..serving.errors import SearchEnded
from ..serving.flow import Flow
from .base import Policy, Result, Task
from .search import Search


@dataclass(frozen=True, kw_only=True)
class ChainOfThought:
    """One solution; where it ends without an answer, one is forced. Cost: one generation, at most two."""

    policy: Policy

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Draw one solution."""
        search = Search(task, self.policy, None, seed)
        stopped = None
        try:
            best = search.best((yield from search.complete(search.root, 1)))
        except SearchEnded as end:
            stopped, best = end, search.root
        if best is not None and not search.answered(best):
            best = yield from search.forced(best)
        return search.result(best, stopped=stopped)
