"""Tree of thoughts, depth first: follow the best step to its end, then go back for the next best.

A step is drawn in several ways; the better part of them is kept, and the best is followed first. A complete
solution comes early, and further ones are looked for where going back promises more than `threshold`.

    kept   the ⌊(1 − prune) · n⌋ children of largest v, one at least
    y*     = argmax of mean_t v_t over all complete solutions,  once `paths` of them were come to

Source: Tree of Thoughts, arXiv 2305.10601, in the form of the suite of arXiv 2502.07191. Deviates: the best
child is followed first (the suite's code puts it at the bottom of its stack) and one child less is kept.
"""

from dataclasses import dataclass

from ..serving.errors import SearchEnded, UsageError
from ..serving.flow import Flow
from .base import Policy, Result, Reward, Task
from .search import Node, Search


@dataclass(frozen=True, kw_only=True)
class ToTDFS:
    """`expand` draws at each node. Cost: at most expand · max_depth proposals for the first whole path, and
    for each further one those from where it leaves; one reward pass for each distinct prefix."""

    policy: Policy
    reward: Reward
    expand: int = 4
    prune: float = 0.4
    threshold: float = 0.5
    paths: int = 3
    max_depth: int = 8

    def __post_init__(self) -> None:
        if min(self.expand, self.paths, self.max_depth) < 1:
            raise UsageError(
                f"expand, paths and max_depth must be at least 1, got {self.expand}, {self.paths} and "
                f"{self.max_depth}."
            )
        if not 0 <= self.prune < 1:
            raise UsageError(f"prune must be at least 0 and below 1, got {self.prune}. Write prune=0.4.")

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Go down, go back; the best complete path, else an answer from the best that is not."""
        search = Search(task, self.policy, self.reward, seed)
        stopped = yield from self.descend(search)
        if search.terminals:
            best = search.best(search.terminals, mean)
        else:
            best = yield from search.finalise(search.best(search.open, mean))
        return search.result(best, stopped=stopped)

    def descend(self, search: Search) -> Flow[SearchEnded | None]:
        """Until enough paths are complete or nothing is left to go back to; what ended it early, if anything.

        A path counts when it is come to: a complete child that stands further down the stack does not yet.
        """
        stack, complete = [search.root], 0
        try:
            while stack and complete < self.paths:
                node = stack.pop()
                if complete and (node.score or 0.0) < self.threshold:
                    yield from search.prune([node])
                elif node.terminal:
                    complete += 1
                elif node.depth < self.max_depth:
                    [children] = yield from search.expand([node], [self.expand], unique=True)
                    ranked = sorted(children, key=lambda child: -(child.score or 0.0))
                    kept = max(1, int((1 - self.prune) * len(ranked) + 1e-9))
                    yield from search.prune(ranked[kept:])
                    stack += reversed(ranked[:kept])
        except SearchEnded as end:
            return end
        return None


def mean(node: Node) -> float:
    """The mean value of the steps to a node."""
    scores = [step.score or 0.0 for step in node.path()[1:]]
    return sum(scores) / len(scores) if scores else 0.0
