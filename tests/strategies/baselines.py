"""The seven baselines, small; a driver without a clock that can end a search at any yield; a few policies."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import inf
from random import Random
from typing import Any

from abduce.serving.base import Engine
from abduce.serving.errors import BudgetExhausted, EngineError
from abduce.serving.flow import Completion, Failure, Flow, Fork, Generate, Note, Rate
from abduce.serving.seeds import derive
from abduce.serving.synthetic import Synthetic
from abduce.strategies.base import Policy, Proposal, Reward, State, Step, Strategy, Task
from abduce.strategies.beam import Beam
from abduce.strategies.best_of_n import BestOfN
from abduce.strategies.chain_of_thought import ChainOfThought
from abduce.strategies.dvts import DVTS
from abduce.strategies.mcts import MCTS
from abduce.strategies.policy import StepPolicy
from abduce.strategies.revision import Revision
from abduce.strategies.rewards.rate import RateReward
from abduce.strategies.self_consistency import SelfConsistency
from abduce.strategies.toys import drain

TASK = Task("toy")
MODEL = Synthetic(seed=3, alphabet="abc", depth=4)
POLICY = StepPolicy(answer_kind="text")
REWARD = RateReward(squash="none")

BASELINES: dict[str, tuple[type, Mapping[str, Any]]] = {
    "chain_of_thought": (ChainOfThought, {}),
    "best_of_n": (BestOfN, {"n": 4}),
    "best_of_n_weighted": (BestOfN, {"n": 4, "select": "weighted"}),
    "self_consistency": (SelfConsistency, {"n": 8, "batch": 3}),
    "revision": (Revision, {"rounds": 2}),
    "revision_vote": (Revision, {"rounds": 2, "feedback": False, "select": "vote"}),
    "beam": (Beam, {"width": 2, "expand": 2}),
    "beam_cut": (Beam, {"width": 2, "expand": 2, "max_depth": 1}),
    "dvts": (DVTS, {"subtrees": 2, "expand": 2}),
    "mcts": (MCTS, {"simulations": 3, "expand": 2}),
    "mcts_path": (MCTS, {"simulations": 2, "expand": 2, "select": "path"}),
}


def baseline(name: str, policy: Policy = POLICY, reward: Reward = REWARD) -> Strategy:
    """A baseline by name."""
    kind, parameters = BASELINES[name]
    scored = {} if kind in (ChainOfThought, SelfConsistency, Revision) else {"reward": reward}
    made: Strategy = kind(policy=policy, **scored, **parameters)
    return made


# ---------------------------------------------------------------- running flows


@dataclass
class Runner:
    """Answers requests one after another; from yield `at` on it throws, `times` times."""

    engine: Engine | None = None
    at: float = inf
    times: int = 0
    yields: int = 0

    def run(self, flow: Flow[Any]) -> Any:
        """What the flow returns."""
        try:
            batch = next(flow)
            while True:
                self.yields += 1
                if self.yields > self.at and self.times:
                    self.times -= 1
                    batch = flow.throw(BudgetExhausted("tokens", 9))
                else:
                    batch = flow.send([self.reply(request) for request in batch])
        except StopIteration as end:
            return end.value

    def reply(self, request: Any) -> Any:
        """As the driver would."""
        if isinstance(request, Note):
            return None
        if isinstance(request, Fork):
            return tuple(map(self.branch, request.flows))
        assert self.engine is not None, request
        if isinstance(request, Generate):
            assert request.seed is not None
            call: Any = self.engine.generate(request, seed=request.seed)
        else:
            call = self.engine.rate(request) if isinstance(request, Rate) else self.engine.logprob(request)
        try:
            call.send(None)
        except StopIteration as end:
            return end.value.value
        except EngineError as fault:
            return Failure("engine", str(fault))
        raise AssertionError("the engine waits for something")

    def branch(self, flow: Flow[Any]) -> Any:
        """A branch that lets the end of the budget through fails alone."""
        try:
            return self.run(flow)
        except BudgetExhausted as end:
            return Failure("budget", str(end))


def listen(flow: Flow[Any], *replies: Any) -> tuple[list[Any], Any]:
    """Send the replies by hand, notes are answered for you; the requests asked, and the result."""
    asked: list[Any] = []
    waiting = list(replies)
    try:
        batch = next(flow)
        while True:
            asked += [request for request in batch if not isinstance(request, Note)]
            batch = flow.send([None if isinstance(r, Note) else waiting.pop(0) for r in batch])
    except StopIteration as end:
        assert not waiting, f"not asked for: {waiting}"
        return asked, end.value


def notes(flow: Flow[Any], kind: str, engine: Engine | None = None) -> list[Mapping[str, Any]]:
    """The data of all notes of one kind."""
    found: list[Mapping[str, Any]] = []

    class Listener(Runner):
        def reply(self, request: Any) -> Any:
            if isinstance(request, Note) and request.kind == kind:
                found.append(request.data)
            return super().reply(request)

    Listener(engine).run(flow)
    return found


def said(text: str) -> tuple[Completion, ...]:
    """One sample that ends the model's turn."""
    return (Completion(text, n_tokens=1),)


# ---------------------------------------------------------------- policies and rewards


class Says(Policy):
    """Solutions of one step: the i-th drawn of all is the i-th text. The answer is the first word."""

    requires = {}  # noqa: RUF012

    def __init__(self, texts: Sequence[str | Failure]) -> None:
        self.texts = list(texts)
        self.drawn = 0

    def propose(
        self, states: Sequence[State], counts: Sequence[int], seeds: Sequence[int]
    ) -> Flow[list[list[Proposal]]]:
        yield [Note("says")]
        return [[self._next() for _ in range(n)] for n in counts]

    def _next(self) -> Proposal:
        text = self.texts[self.drawn]
        self.drawn += 1
        return text if isinstance(text, Failure) else Step(text, n_tokens=1, last=True)

    def terminal(self, state: State) -> bool:
        return state.step is not None and state.step.last

    def answer(self, state: State) -> Hashable | None:
        return next(iter(state.text.split()), None) if self.terminal(state) else None

    def force(self, states: Sequence[State], seeds: Sequence[int]) -> Flow[list[Proposal]]:
        yield [Note("force")]
        return [Step("forced", n_tokens=1, last=True) for _ in states]


class Table:
    """A reward from a function of the state's text, or a mapping; it remembers what it was asked."""

    def __init__(self, value: Any) -> None:
        self.value = value.__getitem__ if isinstance(value, Mapping) else value
        self.asked: list[str] = []

    def score(self, states: Sequence[State]) -> Flow[list[Any]]:
        yield [Note("table")]
        self.asked += [state.text for state in states]
        return [self.value(state.text) for state in states]


class Sums(Policy):
    """`depth` operations on a number; the aim is the largest one. The best operation is drawn with
    probability 0.7, each other with 0.1. `perfect` says of a prefix whether the aim is still in reach."""

    requires = {}  # noqa: RUF012

    def __init__(self, seed: int, depth: int = 5) -> None:
        self.depth = depth
        rng = Random(seed)
        self.start = rng.randint(1, 4)
        self.operations = (f"+{rng.randint(2, 9)}", "*2", f"-{rng.randint(1, 4)}", f"+{rng.randint(10, 20)}")

    def number(self, text: str) -> int:
        n = self.start
        for operation in text.split():
            n = n * 2 if operation == "*2" else n + int(operation)
        return n

    def reach(self, text: str) -> int:
        if text.count(" ") == self.depth:
            return self.number(text)
        return max(self.reach(f"{text}{operation} ") for operation in self.operations)

    def perfect(self, text: str) -> float:
        return float(self.reach(text) == self.best)

    @cached_property
    def best(self) -> int:
        return self.reach("")

    def children(self, state: State) -> Sequence[tuple[Step, float]]:
        steps = [Step(f"{operation} ", n_tokens=1) for operation in self.operations]
        right = max(steps, key=lambda step: self._reach(state.text + step.text))
        return [(step, 0.7 if step is right else 0.1) for step in steps]

    @cached_property
    def _reach(self) -> Callable[[str], int]:
        return cache(self.reach)

    def propose(
        self, states: Sequence[State], counts: Sequence[int], seeds: Sequence[int]
    ) -> Flow[list[list[Proposal]]]:
        yield [Note("sums")]
        rows: list[list[Proposal]] = []
        for state, n, seed in zip(states, counts, seeds, strict=True):
            steps, p = zip(*self.children(state), strict=True)
            rows.append([Random(derive(seed, i)).choices(steps, p)[0] for i in range(n)])
        return rows

    def terminal(self, state: State) -> bool:
        return state.depth == self.depth

    def answer(self, state: State) -> Hashable | None:
        return self.number(state.text) if self.terminal(state) else None


def random_value(seed: int) -> Table:
    """A reward that knows nothing."""
    return Table(lambda text: derive(seed, "value", text) / 2**63)


def blind_and_majority(search: Callable[[Policy, Reward], Strategy], tasks: int = 100) -> tuple[float, float]:
    """Accuracy of a search with a random value, and of the majority at equal tokens."""
    right = [0, 0]
    for seed in range(tasks):
        toy = Sums(seed)
        blind = drain(search(toy, random_value(seed)).solve(TASK, seed=seed))
        n = blind.diagnostics["tokens"] // toy.depth
        vote = drain(SelfConsistency(policy=toy, n=n, rule="fixed").solve(TASK, seed=seed))
        assert vote.diagnostics["tokens"] <= blind.diagnostics["tokens"]
        right[0] += blind.answer == toy.best
        right[1] += vote.answer == toy.best
    return right[0] / tasks, right[1] / tasks
