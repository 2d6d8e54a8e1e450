"""The search of SPaR: draft, judge, rewrite level by level or depth first, until something passes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from ...serving.base import Capability
from ...serving.errors import SearchEnded, UsageError
from ...serving.flow import Flow, Note, Sampling
from ...serving.seeds import derive
from ..base import Policy, Result, Task
from ..search import Node, Search
from .judges import ByChecks, Hybrid, Judge, Votes
from .refiner import Refiner
from .tree import Tree

_JUDGE = Sampling(temperature=0.7, max_tokens=2048)  # both of the official code
_REFINE = Sampling(temperature=0.7, max_tokens=3072)


@dataclass(frozen=True, kw_only=True)
class SPaR:
    """Rewrites the best of `drafts` answers unless it is valid. Cost: at most b + (D−1)·s·b rewrites level by
    level ("bfs"), b·(1 + s + … + s^(D−1)) depth first, with b = `branch`, s = `select_branch`, D =
    `max_depth`, and never more than `max_nodes` judged ones; with votes each takes `votes` samples, again
    while they are tied, `rounds` times at most.

    `start`: the draft to rewrite, the "best", or a "failing" one drawn by chance even where others pass (for
    training data). `selection`: what a level goes on from, its best ("greedy") or a draw by V ("sample").
    `confirm_votes`: fresh votes before an answer is accepted; 0 for none. `attempts`: at a rewrite that has
    its marks. `reflect`: rewrites are asked for in the judge's conversation, with a reflection, else in one
    plain request: the way with small models. `refiner` is the role that judges and rewrites; the policy's
    own model plays it unless the run names another.

    Baselines: best of N is `drafts=N, max_depth=0`; rewriting N times in a row `branch=1, select_branch=1,
    max_depth=N`.
    """

    policy: Policy
    judge: Literal["votes", "checks", "hybrid"] = "votes"
    algorithm: Literal["bfs", "dfs"] = "bfs"
    drafts: int = 1
    start: Literal["best", "failing"] = "best"
    branch: int = 3
    select_branch: int = 2
    max_depth: int = 3
    max_nodes: int = 1000
    selection: Literal["greedy", "sample"] = "greedy"
    gate: float = 0.5
    votes: int = 5
    rounds: int = 3
    confirm_votes: int = 0
    attempts: int = 9
    reflect: bool = True
    refiner: str = "refiner"
    judge_sampling: Sampling = _JUDGE
    refine_sampling: Sampling = _REFINE

    def __post_init__(self) -> None:
        for name in ("drafts", "branch", "select_branch", "votes", "rounds", "attempts"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("max_depth", "max_nodes", "confirm_votes"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must not be below 0, got {getattr(self, name)}.")
        if not 0 <= self.gate < 1:
            raise UsageError(f"gate must be at least 0 and below 1, got {self.gate}. Write gate=0.5.")
        for name, known in _WORDS.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """The refiner writes text."""
        return {self.refiner: frozenset({"generate"})}

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Draft, judge, and rewrite what fails."""
        search = Search(task, self.policy, None, seed)
        tree = self.tree(search)
        stopped, stop = None, ""
        try:
            drafts = yield from search.complete(search.root, self.drafts, score=False)
            judged = yield from tree.assess(drafts)
            tree.root = yield from self.root(tree, judged)
            if tree.root is not None:
                stop = yield from self.rewrite(tree, tree.root)
            else:
                stop = "accepted" if tree.winner else "no_judgement"
            yield [Note("stop", {"reason": stop})]
        except SearchEnded as end:
            stopped = end
        best = tree.best() or (yield from search.finalise(search.root if stopped else None))
        failed = tree.fault if tree.winner is None else ""  # a rewrite might have passed
        facts = {"stop": stop or "budget", "judge": self.judge, **tree.facts()}
        return search.result(best, stopped=stopped or failed or None, **facts)

    def root(self, tree: Tree, drafts: Sequence[Node]) -> Flow[Node | None]:
        """The draft to rewrite; None where one is accepted, or none could be judged."""
        failing = [node for node in drafts if not tree.judged[node].valid]
        if self.start == "failing" and failing:
            return Random(derive(tree.search.seed, "failing")).choice(failing)
        if (yield from tree.accept(drafts)) is not None:
            return None
        return max(drafts, key=lambda node: tree.judged[node].value, default=None)

    def rewrite(self, tree: Tree, root: Node) -> Flow[str]:
        """Search below a draft; why it ended."""
        search = self.bfs if self.algorithm == "bfs" else self.dfs
        if (yield from search(tree, root)) is not None:
            return "accepted"
        if not tree.left:
            return "budget"
        return "depth" if max(tree.level.values()) == self.max_depth else "no_candidates"

    def bfs(self, tree: Tree, root: Node) -> Flow[Node | None]:
        """Level by level: the best of a whole level, if it passes; else go on from its best s."""
        frontier = [root]
        for _ in range(self.max_depth):
            children = yield from tree.grow(frontier, self.branch)
            if (accepted := (yield from tree.accept(children))) is not None:
                return accepted
            if not children or not tree.left:
                return None
            frontier = yield from self.select(tree, children)
        return None

    def dfs(self, tree: Tree, node: Node) -> Flow[Node | None]:
        """Depth first: the best of a node's children, if it passes; else below each of its best s in turn."""
        if tree.level[node] >= self.max_depth:
            return None
        children = yield from tree.grow([node], self.branch)
        if (accepted := (yield from tree.accept(children))) is not None:
            return accepted
        for child in (yield from self.select(tree, children)):
            if not tree.left:
                return None
            if (accepted := (yield from self.dfs(tree, child))) is not None:
                return accepted
        return None

    def select(self, tree: Tree, nodes: Sequence[Node]) -> Flow[list[Node]]:
        """The nodes to go on from, the best first; the others are given up."""
        values = [tree.judged[node].value for node in nodes]
        if self.selection == "greedy" or not nodes:
            order = sorted(range(len(nodes)), key=lambda i: -values[i])  # stable: the first of equals
        else:
            rng = Random(derive(tree.search.seed, "select", *(node.id for node in nodes)))
            weights = values if any(values) else [1.0] * len(nodes)
            order = list(dict.fromkeys(rng.choices(range(len(nodes)), weights, k=self.select_branch)))
        chosen = [nodes[i] for i in order[: self.select_branch]]
        yield from tree.search.prune([node for node in nodes if node not in chosen])
        return chosen

    def tree(self, search: Search) -> Tree:
        """An empty tree with its judge and refiner."""
        confirm = self.judging(self.confirm_votes) if self.confirm_votes and self.judge != "checks" else None
        refiner = Refiner(
            attempts=self.attempts, reflect=self.reflect, sampling=self.refine_sampling, model=self.refiner
        )
        return Tree(search, self.judging(self.votes), confirm, refiner, self.max_nodes)

    def judging(self, votes: int) -> Judge:
        """The judge, with so many votes where it votes."""
        checks = ByChecks(policy=self.policy)
        if self.judge == "checks":
            return checks
        sampling, model = self.judge_sampling, self.refiner
        by_votes = Votes(n=votes, rounds=self.rounds, gate=self.gate, sampling=sampling, model=model)
        return by_votes if self.judge == "votes" else Hybrid(checks=checks, votes=by_votes)


_WORDS = {
    "judge": ("votes", "checks", "hybrid"),
    "algorithm": ("bfs", "dfs"),
    "start": ("best", "failing"),
    "selection": ("greedy", "sample"),
}
