"""Exact toy problems: small enough to enumerate, so that a search can be held against the truth.

| toy         | what it is for                                                                    |
|-------------|-----------------------------------------------------------------------------------|
| `ToyTree`   | a random tree with known probabilities and scores, at most some hundred leaves    |
| `TrapTree`  | the step that looks best leads nowhere                                            |
| `NoisyTask` | six steps, each wrong with some probability, judged by a noisy reward             |
| `GridGoal`  | shortest paths on an integer grid, where the distance to the goal is known        |

A toy is policy and reward at once and asks nothing of any engine: `drain` runs any flow over it. A tree
in `Exhaustive` proposes all children of a state in place of random ones.

>>> tree = ToyTree(3, 5, seed=0)
>>> len(tree.leaves()), round(sum(p for _, p in tree.leaves()), 9)
(360, 1.0)

Source: A*-Decoding, arXiv 2505.13672 and Rollout Roulette, arXiv 2502.01618, put to the test.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from random import Random
from typing import Any, Protocol, TypeVar

from ..serving.flow import Flow, Fork, Note, Request
from ..serving.seeds import derive
from .base import Policy, Proposal, Score, State, Step, Task

T = TypeVar("T")
STOP = "."


def drain(flow: Flow[T]) -> T:
    """Run a flow that asks nothing but notes and forks. Raises TypeError for any other request."""
    replies: Any = None
    try:
        while True:
            replies = answers(flow.send(replies))
    except StopIteration as end:
        result: T = end.value
        return result


def answers(batch: Sequence[Request]) -> list[Any]:
    """The replies to a batch of notes and forks. Raises TypeError for any other request."""
    return [_answer(request) for request in batch]


def _answer(request: Request) -> Any:
    if isinstance(request, Note):
        return None
    if isinstance(request, Fork) and request.until is None:
        return tuple(drain(flow) for flow in request.flows)
    raise TypeError(f"A toy has no answer to {request!r}.")


class Enumerable(Protocol):
    """What lists the steps after a state with their probabilities."""

    def children(self, state: State) -> Sequence[tuple[Step, float]]:
        """Every next step and its probability; they sum to 1."""
        ...


class ToyTree(Policy):
    """A tree of letters: `b` ways to go on from each node, STOP from depth 2 on, and only STOP at `depth`.

    Probabilities are Dirichlet(1), scores uniform in [0.1, 0.9]; both are functions of (prefix, seed).
    The answer of a leaf is its last two letters.
    """

    requires = {}  # noqa: RUF012  the contract's own name and type

    def __init__(self, b: int, depth: int, *, seed: int) -> None:
        self.b = b
        self.depth = depth
        self.seed = seed
        self._ways: dict[str, list[tuple[Step, float]]] = {}

    def children(self, state: State) -> Sequence[tuple[Step, float]]:
        """Every next step and its probability."""
        if state.text not in self._ways:
            self._ways[state.text] = self._drawn(state)
        return self._ways[state.text]

    def _drawn(self, state: State) -> list[tuple[Step, float]]:
        letters = [chr(ord("a") + i) for i in range(self.b)] if state.depth < self.depth else []
        names = letters + [STOP] * (state.depth >= 2)
        weights = [-math.log(self._uniform("weight", state.text + name)) for name in names]
        shares = [w / sum(weights) for w in weights]
        return [(Step(name, logp=math.log(p), n_tokens=1), p) for name, p in zip(names, shares, strict=True)]

    def _uniform(self, use: str, text: str) -> float:
        """In (0, 1]."""
        return (derive(self.seed, use, text) + 1) / 2**63

    def propose(
        self, states: Sequence[State], counts: Sequence[int], seeds: Sequence[int]
    ) -> Flow[list[list[Proposal]]]:
        """Draw i of a request depends on its seed and i alone."""
        yield [Note("toy")]
        return [
            self._draw(state, n, Random(seed)) for state, n, seed in zip(states, counts, seeds, strict=True)
        ]

    def _draw(self, state: State, n: int, rng: Random) -> list[Proposal]:
        steps, shares = zip(*self.children(state), strict=True)
        drawn: list[Proposal] = rng.choices(steps, shares, k=n)
        return drawn

    def terminal(self, state: State) -> bool:
        """After STOP."""
        return state.step is not None and state.step.text == STOP

    def answer(self, state: State) -> Hashable | None:
        """The last two letters of a leaf."""
        return state.text[-3:-1] if self.terminal(state) else None

    def score(self, states: Sequence[State]) -> Flow[list[Score]]:
        """`value` of each."""
        yield [Note("toy")]
        return [self.value(state) for state in states]

    def value(self, state: State) -> float:
        """The score of a prefix."""
        return 0.1 + 0.8 * self._uniform("score", state.text)

    def leaves(self) -> list[tuple[State, float]]:
        """Every leaf with its probability."""
        return list(self._below(State(Task("toy")), 1.0))

    def _below(self, state: State, p: float) -> Iterator[tuple[State, float]]:
        if self.terminal(state):
            yield state, p
            return
        for draw, (step, q) in enumerate(self.children(state)):
            yield from self._below(state.extend(step, draw), p * q)


class TrapTree(ToyTree):
    """A `ToyTree` whose first step "a" scores 0.95 and everything after it 0.05; the rest is as it was."""

    def value(self, state: State) -> float:
        """High at the mouth of the trap, low inside."""
        if state.text.startswith("a"):
            return 0.95 if state.depth == 1 else 0.05
        return super().value(state)


class Exhaustive(Policy):
    """A tree's policy without chance: it proposes every child of a state once, however many are asked for."""

    requires = {}  # noqa: RUF012

    def __init__(self, tree: Enumerable) -> None:
        self.tree: Any = tree

    def propose(
        self, states: Sequence[State], counts: Sequence[int], seeds: Sequence[int]
    ) -> Flow[list[list[Proposal]]]:
        """All children, in their order."""
        yield [Note("toy")]
        return [[step for step, _ in self.tree.children(state)] for state in states]

    def terminal(self, state: State) -> bool:
        """As in the tree."""
        return bool(self.tree.terminal(state))

    def answer(self, state: State) -> Hashable | None:
        """As in the tree."""
        found: Hashable | None = self.tree.answer(state)
        return found


class NoisyTask(Policy):
    """Six steps, each wrong with a probability e that the task draws from 0.1, 0.3 and 0.5; one wrong step
    spoils the solution. The score is the true chance of success with its logit blurred by N(0, σ²)."""

    requires = {}  # noqa: RUF012
    steps = 6

    def __init__(self, sigma: float, *, seed: int) -> None:
        self.sigma = sigma
        self.seed = seed
        self.error = Random(derive(seed, "error")).choice((0.1, 0.3, 0.5))

    def propose(
        self, states: Sequence[State], counts: Sequence[int], seeds: Sequence[int]
    ) -> Flow[list[list[Proposal]]]:
        """Right or wrong, with a number that tells draws apart."""
        yield [Note("toy")]
        return [
            [self._draw(Random(derive(seed, i))) for i in range(n)]
            for n, seed in zip(counts, seeds, strict=True)
        ]

    def _draw(self, rng: Random) -> Step:
        mark = "-" if rng.random() < self.error else "+"
        return Step(f"{mark}{rng.randrange(10**9)}", n_tokens=1)

    def terminal(self, state: State) -> bool:
        """After six steps."""
        return state.depth == self.steps

    def answer(self, state: State) -> Hashable | None:
        """Whether every step was right."""
        return "-" not in state.text if self.terminal(state) else None

    def score(self, states: Sequence[State]) -> Flow[list[Score]]:
        """One noisy judgement of each prefix; the same prefix gets the same."""
        yield [Note("toy")]
        return [self._score(state) for state in states]

    def _score(self, state: State) -> float:
        left = self.steps - state.depth
        chance = 0.02 if "-" in state.text else 0.98 * (1.0 - self.error) ** left
        noise = Random(derive(self.seed, "noise", state.text)).gauss(0.0, self.sigma)
        return 1.0 / (1.0 + math.exp(-math.log(chance / (1.0 - chance)) - noise))


class GridGoal(Policy):
    """Walks by unit steps from (0, 0) to `goal` on a grid of `size` × `size` without the cells in `walls`.

    Each step costs 1, told as a log-probability of −1, so that the cost "logp" counts steps. `distance`
    is the Manhattan distance to the goal: an admissible and consistent estimate of what is left.
    """

    requires = {}  # noqa: RUF012
    moves = (("E", 1, 0), ("W", -1, 0), ("N", 0, 1), ("S", 0, -1))

    def __init__(self, size: int, goal: tuple[int, int], walls: frozenset[tuple[int, int]]) -> None:
        self.size = size
        self.goal = goal
        self.walls = walls

    def cell(self, state: State) -> tuple[int, int]:
        """Where a walk has led."""
        walk = state.text
        return walk.count("E") - walk.count("W"), walk.count("N") - walk.count("S")

    def children(self, state: State) -> Sequence[tuple[Step, float]]:
        """The moves that stay on the grid, all alike."""
        x, y = self.cell(state)
        free = [
            name
            for name, dx, dy in self.moves
            if 0 <= x + dx < self.size and 0 <= y + dy < self.size and (x + dx, y + dy) not in self.walls
        ]
        return [(Step(name, logp=-1.0, n_tokens=1), 1 / len(free)) for name in free]

    def terminal(self, state: State) -> bool:
        """At the goal."""
        return self.cell(state) == self.goal

    def answer(self, state: State) -> Hashable | None:
        """The number of steps."""
        return state.depth if self.terminal(state) else None

    def distance(self, state: State) -> float:
        """Steps that are needed at least."""
        (x, y), (gx, gy) = self.cell(state), self.goal
        return float(abs(x - gx) + abs(y - gy))
