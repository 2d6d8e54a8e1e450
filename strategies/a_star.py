"""A*-decoding: always go on from the partial solution of least f = g + w·h.

Nothing is pruned for good: the search can return to an older prefix, and spends tokens only where the
reward r sees promise. What an edge costs is the choice of `cost`:

| cost     | c(s, s')              | h(s)       | the first goal popped has                              |
|----------|-----------------------|------------|--------------------------------------------------------|
| `drop`   | max(0, r(s') − r(s))  | 1 − r(s)   | the least total fall of r along its path               |
| `rise`   | max(0, r(s) − r(s'))  | 1 − r(s)   | no such property: f may fall along a path              |
| `nll`    | −log max(r(s'), 1e-6) | 0 or given | the largest product of scores                          |
| `greedy` | 0                     | 1 − r(s)   | no such property: best-first on the last score         |
| `logp`   | −log p(step)          | 0 or given | the most probable text; no reward is asked             |

With `drop` f is h(root) + Σ max(0, r(parent) − r(child)), which never falls along a path: the search is
uniform-cost search on the falls of r, and the reward tells what a prefix has cost, not what lies ahead.
Optimality is relative to the steps that were sampled, never to the truth of the answer.

Source: A*-Decoding: Token-Efficient Inference Scaling, arXiv 2505.13672. Deviates: edge cost, root value and
ties are reconstructed (r(root) = 1, and `drop`, the least cost that makes h consistent); the least f is
taken over the whole frontier, `frontier="local"` takes it over the fresh children only.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..serving.base import Capability
from ..serving.errors import RewardUnavailable, SearchEnded, UnknownName, UsageError
from ..serving.flow import Flow
from .base import Policy, Result, Reward, State, Task
from .frontier import Frontier, Key, key
from .search import Node, Search
from .voting import poll

R_MIN = 1e-6


@dataclass(frozen=True, kw_only=True)
class AStar:
    """Best-first search; `k` draws for each expanded node, one reward pass for each distinct prefix.

    `stop`: "first" returns the first goal popped, "budget" goes on and returns that of least f, "vote:5"
    collects five and votes by score. `weight`: w ≥ 1; the more, the more eager. `length_price`: added to g
    for each token. `pop_batch`: nodes expanded at once; only 1 keeps the exact order. `max_open`: size of the
    frontier. `reexpand`: draw from expanded nodes again, with f raised by this much each time. `heuristic`:
    h for `nll` and `logp`, optimal if it never overestimates. `merge`: states with equal keys are one, the
    cheapest path to it counts. `fallback="logp"` goes on without a reward that cannot be computed.
    """

    policy: Policy
    reward: Reward | None
    k: int = 4
    cost: Literal["drop", "rise", "nll", "greedy", "logp"] = "drop"
    stop: str = "first"
    weight: float = 1.0
    length_price: float = 0.0
    frontier: Literal["global", "local"] = "global"
    pop_batch: int = 1
    max_open: int | None = None
    reexpand: float | None = None
    heuristic: Callable[[State], float] | None = None
    merge: Callable[[State], Hashable] | None = None
    fallback: Literal["none", "logp"] = "none"
    max_depth: int = 40

    def __post_init__(self) -> None:
        for name, least in {"k": 1, "pop_batch": 1, "max_depth": 1, "max_open": 1, "weight": 1.0}.items():
            if (value := getattr(self, name)) is not None and not value >= least:
                raise UsageError(f"{name} must be at least {least:g}, got {value!r}.")
        if self.fallback not in ("none", "logp"):
            raise UnknownName("fallback", self.fallback, ("none", "logp"))
        if self.cost not in COSTS:
            raise UnknownName("cost", self.cost, COSTS)
        if self.frontier not in ("global", "local"):
            raise UnknownName("frontier", self.frontier, ("global", "local"))
        if not (self.length_price >= 0 and (self.reexpand is None or self.reexpand >= 0)):
            raise UsageError("length_price and reexpand must not be below 0: f would fall along a path.")
        if self.heuristic is not None and self.cost not in ("nll", "logp"):
            raise UsageError(f"cost={self.cost!r} has h = 1 − r. A heuristic goes with 'nll' or 'logp'.")
        if self.wants_logprobs and not getattr(self.policy, "logprobs", True):
            raise UsageError("cost 'logp' needs log-probs. Write policy: {preset: cot, logprobs: true}.")
        if self.reward is None and self.cost != "logp":
            raise UsageError(f"cost={self.cost!r} needs a reward. Give one, or write cost='logp'.")
        self.goals_wanted  # noqa: B018  parses `stop`

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """Log-probs of the drawn steps, where they are the cost."""
        return {"policy": frozenset({"logprobs"})} if self.wants_logprobs and self.policy.requires else {}

    @property
    def wants_logprobs(self) -> bool:
        """Whether a step's log-probability may be needed."""
        return "logp" in (self.cost, self.fallback)

    @property
    def goals_wanted(self) -> float:
        """Goals to pop before the search ends."""
        word, _, count = self.stop.partition(":")
        if self.stop in ("first", "budget"):
            return 1 if self.stop == "first" else math.inf
        if word != "vote" or not count.isdecimal() or int(count) < 1:
            raise UsageError(f"stop must be 'first', 'budget' or 'vote:<number>', got {self.stop!r}.")
        return int(count)

    # ------------------------------------------------------------ the search

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Search, then choose among the goals, or bring the most promising prefix to an end."""
        search = Search(task, self.policy, None if self.cost == "logp" else self.reward, seed)
        run = Progress(Frontier(self.max_open))
        stopped: SearchEnded | None = None
        try:
            yield from self.explore(search, run)
        except RewardUnavailable as end:
            if self.fallback == "logp":
                blind = yield from replace(self, cost="logp", fallback="none").solve(task, seed=seed)
                return replace(blind, diagnostics={**blind.diagnostics, "fell_back": str(end)})
            stopped = end
        except SearchEnded as end:
            stopped = end
        best = self.choose(search, run.goals or search.terminals)
        if best is None:
            start = run.frontier.top or max(search.open, key=lambda node: node.depth, default=search.root)
            best = yield from search.finalise(start)
        elif run.goals and self.stop == "budget":
            stopped = search.ended = None  # that is how it was meant to end
        return search.result(best, stopped=stopped, **self.facts(search, run, best))

    def explore(self, search: Search, run: "Progress") -> Flow[None]:
        """Pop, expand, push, until enough goals are popped or nothing is open."""
        run.frontier.push(search.root, self.f(search.root))
        while run.frontier and len(run.goals) < self.goals_wanted:
            nodes = [node for node in self.pop(run) if not self.outdone(run, node)]
            if not nodes:
                continue
            if self.is_goal(search, nodes[0]):
                run.goals.append(nodes[0])
                continue
            drawn = yield from self.grow(search, nodes)
            if self.frontier == "local":
                run.frontier.clear()
            for node, children in zip(nodes, drawn, strict=True):
                yield from search.prune([child for child in children if not self.open(run, child)])
                if self.reexpand is not None and children and not self.at_end(node):
                    run.frontier.push(node, self.f(node) + self.reexpand * node.draws / self.k)

    def pop(self, run: "Progress") -> list[Node]:
        """The next nodes to expand; a node at its end comes alone, after those before it are expanded."""
        nodes = [run.frontier.pop()]
        while len(nodes) < self.pop_batch and not self.at_end(nodes[0]):
            if run.frontier.top is None or self.at_end(run.frontier.top):
                break
            nodes.append(run.frontier.pop())
        run.popped += [key(node, self.f(node)) for node in nodes]
        return nodes

    def grow(self, search: Search, nodes: list[Node]) -> Flow[list[list[Node]]]:
        """`k` children of each node; of a node at its end one, with an answer."""
        if self.at_end(nodes[0]):
            return [(yield from search.force(nodes))]
        return (yield from search.expand(nodes, [self.k] * len(nodes), unique=True))

    def open(self, run: "Progress", child: Node) -> bool:
        """Put a new node on the frontier, unless a path to its state is known that is no dearer."""
        assert child.parent is not None and child.state.step is not None
        if self.cost == "logp" and child.state.step.logp is None and not self.at_end(child.parent):
            raise RewardUnavailable("the policy gives no log-probabilities of its steps")
        edge, _ = COSTS[self.cost]
        child.g = child.parent.g + edge(child.parent, child) + self.length_price * child.state.step.n_tokens
        if self.merge is not None:
            same = self.merge(child.state)
            if run.cheapest.get(same, math.inf) <= child.g:
                return False
            run.cheapest[same] = child.g
        run.frontier.push(child, self.f(child))
        return True

    def outdone(self, run: "Progress", node: Node) -> bool:
        """Whether a cheaper path to a node's state was found after it was opened."""
        return self.merge is not None and run.cheapest.get(self.merge(node.state), math.inf) < node.g

    def at_end(self, node: Node) -> bool:
        """Whether nothing is proposed from a node any more."""
        return node.terminal or node.depth >= self.max_depth

    def is_goal(self, search: Search, node: Node) -> bool:
        """Finished, with an answer, or with an answer asked for in vain."""
        asked = node.parent is None or self.at_end(node.parent)
        return node.terminal and (asked or self.policy.answer(node.state) is not None)

    def f(self, node: Node) -> float:
        """g + w·h."""
        _, h = COSTS[self.cost]
        estimate = self.heuristic(node.state) if self.heuristic is not None else h(node)
        return node.g + self.weight * estimate

    # ------------------------------------------------------------ the end

    def choose(self, search: Search, goals: list[Node]) -> Node | None:
        """The goal of least f, those with an answer first; with "vote" the best of the winning answer."""
        answers = [self.policy.answer(goal.state) for goal in goals]
        if self.stop.startswith("vote") and goals:
            winner = poll(answers, [goal.score or 0.0 for goal in goals]).winner
            goals = [goal for goal, answer in zip(goals, answers, strict=True) if answer == winner]
            return search.best(goals)
        answered = [goal for goal, answer in zip(goals, answers, strict=True) if answer is not None]
        return min(answered or goals, key=lambda goal: key(goal, self.f(goal)), default=None)

    def facts(self, search: Search, run: "Progress", best: Node | None) -> dict[str, Any]:
        """What a result should tell about the run."""
        f = None if best is None else key(best, self.f(best))[0]
        exact = self.frontier == "global" and self.pop_batch == 1 and self.reexpand is None
        sound = self.cost in ("drop", "nll", "logp") and self.weight == 1.0
        facts: dict[str, Any] = {
            "f": f,
            "goals": len(run.goals),
            "evicted": run.frontier.evicted,
            "pop_batch": self.pop_batch,
            "expanded_beyond": sum(f is not None and passed > f for passed, *_ in run.popped),
            "optimal": exact and sound and bool(run.goals) and not run.frontier.evicted,
        }
        if self.k == 1:
            facts["warnings"] = ["k = 1 draws a single chain: nothing is searched. Write k=4."]
        return facts


@dataclass(slots=True)
class Progress:
    """What a search has to remember besides its nodes."""

    frontier: Frontier
    goals: list[Node] = field(default_factory=list)  # popped, in order
    popped: list[Key] = field(default_factory=list)
    cheapest: dict[Hashable, float] = field(default_factory=dict)


# ---------------------------------------------------------------- edge costs and estimates


def _r(node: Node) -> float:
    return 0.0 if node.score is None else node.score


def _gain(parent: Node, child: Node) -> float:
    return max(0.0, _r(child) - _r(parent))


def _loss(parent: Node, child: Node) -> float:
    return max(0.0, _r(parent) - _r(child))


def _nll(parent: Node, child: Node) -> float:
    return -math.log(max(_r(child), R_MIN))


def _surprise(parent: Node, child: Node) -> float:
    """A forced answer, the only step without a log-probability, costs nothing."""
    return -(child.state.step.logp or 0.0) if child.state.step else 0.0


def _doubt(node: Node) -> float:
    return 1.0 - _r(node)


def _nothing(*_: Node) -> float:
    return 0.0


COSTS: dict[str, tuple[Callable[[Node, Node], float], Callable[[Node], float]]] = {
    "drop": (_gain, _doubt),
    "rise": (_loss, _doubt),
    "nll": (_nll, _nothing),
    "greedy": (_nothing, _doubt),
    "logp": (_surprise, _nothing),
}
"""Name → c(s, s') and h(s)."""
