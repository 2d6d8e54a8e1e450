"""Two models write one solution, step by step and greedily: the ways to choose who writes next, and what each
solution is charged.

A way to choose is a signal and a threshold: the large model writes the step where the signal reaches it.

    chance    a number drawn for the step         nothing is asked
    glimpse   H_init, GlimpRouter's               one token of the small model
    mean      mean entropy of the small step      the small step, thrown away where the large model writes
    judge     −log p of the small step by the     the same, and a reading of it by the large model
              large model, mean over its tokens

So a threshold of −∞ is the large model alone and one of ∞, on chance, the small one. Greedy replies depend on
their context alone: each is asked for once, whatever the number of ways that come by it, and kept in a file.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from statistics import fmean, mean
from typing import Any, Literal

from glimp_tasks import Asked, Shots
from intervals import Interval, bootstrap
from rows import Rows

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.evaluate import wilson
from abduce.orchestrator.judge import same_answer
from abduce.orchestrator.services import Services
from abduce.serving.base import Engine
from abduce.serving.flow import Completion, Failure, Flow, Generate, LogProb, Sampling
from abduce.serving.seeds import derive
from abduce.strategies.base import State, Step
from abduce.strategies.glimp_router import GlimpRouter, entropy
from abduce.strategies.policy import StepPolicy
from abduce.strategies.routes import RoutedStep, Writer

Signal = Literal["chance", "glimpse", "mean", "judge"]

ROLES: dict[Writer, str] = {"small": "policy", "large": "large"}


# ---------------------------------------------------------------- one step


@dataclass(frozen=True)
class Written:
    """A greedy step; of the small model with the entropy of each of its tokens."""

    step: Step
    entropies: tuple[float, ...] = ()


@dataclass
class Pair:
    """The two models' greedy steps, each asked for once."""

    policy: StepPolicy
    names: Mapping[Writer, str]
    rows: Rows

    def __post_init__(self) -> None:
        self._manner = sha256(repr(self.policy).encode()).hexdigest()[:16]  # prompt, examples, limits

    def write(self, who: Writer, state: State) -> Flow[Written]:
        """The step after `state`."""
        inner = self.policy.propose([state], [1], [0])
        [asked] = next(inner)
        assert isinstance(asked, Generate)
        prompt = replace(asked.prompt, prefix_ids=())
        asked = replace(
            asked, prompt=prompt, model=ROLES[who], top_logprobs=20 if who == "small" else 0, seed=0
        )
        run = self._run(who, state)
        row = self.rows.get(run)
        if row is None:
            [reply] = yield [asked]
            if isinstance(reply, Failure):
                raise RuntimeError(reply.message)
            c = reply[0]
            told = {"text": c.text, "n": c.n_tokens or len(c.ids), "finish": c.finish, "stop": c.stop}
            row = self.rows.add(run, told | {"h": [entropy(top) for top in c.top_logprobs if top]})
        drawn = Completion(row["text"], finish=row["finish"], stop=row["stop"], n_tokens=row["n"])
        try:
            inner.send([(drawn,)])
        except StopIteration as end:
            [[step]] = end.value
            return Written(step, tuple(row["h"]))
        raise RuntimeError("the policy asked twice for a step")

    def doubt(self, state: State, step: Step) -> Flow[float]:
        """−log p of a step by the large model, mean over its tokens; infinite for an empty one."""
        run = self._run("large", state, step.text)
        row = self.rows.get(run)
        if row is None:
            prompt = replace(self.policy.prompt_for(state), prefix_ids=())
            [reply] = yield [LogProb(prompt, step.text, model="large")]
            if isinstance(reply, Failure):
                raise RuntimeError(reply.message)
            row = self.rows.add(run, {"doubt": -mean(reply.logprobs) if reply.logprobs else math.inf})
        return float(row["doubt"])

    def _run(self, who: Writer, state: State, judged: str | None = None) -> list[str | None]:
        return [who, self.names[who], self._manner, state.task.question, state.text, judged]


# ---------------------------------------------------------------- one solution


@dataclass
class Bill:
    """A solution and what it took: tokens written and read by each model. Of the question each reads an
    estimate, of the examples before it none: they are in the prefix cache."""

    text: str = ""
    right: bool = False
    n_steps: int = 0
    large_steps: int = 0
    wrote: dict[Writer, int] = field(default_factory=lambda: {"small": 0, "large": 0})
    read: dict[Writer, int] = field(default_factory=lambda: {"small": 0, "large": 0})

    def latency(self, ratio: float, prefill: float) -> float:
        """In tokens of the large model. The small one writes `ratio` times as fast; to read a token takes
        each the share `prefill` of the time to write one."""
        small, large = (self.wrote[who] + prefill * self.read[who] for who in ("small", "large"))
        return large + small / ratio


@dataclass(frozen=True)
class Way:
    """A way to choose the writer: the large model where the signal is `threshold` or more."""

    signal: Signal
    threshold: float
    seed: int = 0


def solved(pair: Pair, router: GlimpRouter, asked: Asked, way: Way) -> Flow[Bill]:
    """Solve one problem one way. The stop rules are the router's."""
    bill, state = Bill(), State(asked.task)
    last: Writer = "small"
    n_question = len(asked.task.question) // 4 + 8
    seen: dict[Writer, int] = {"small": 0, "large": 0}
    while not router.terminal(state):
        n = n_question + state.n_tokens
        writer: Writer = "large"
        draft = None
        goes_on = state.step is not None and state.step.cut
        if goes_on:
            writer = last
        elif way.signal == "chance":
            number = derive(way.seed, asked.number, state.depth) / 2**63
            writer = "large" if number >= way.threshold else "small"
        elif way.threshold > -math.inf:
            draft = yield from pair.write("small", state)
            bill.read["small"] += n - seen["small"]
            seen["small"] = n
            if way.signal == "judge":
                value = yield from pair.doubt(state, draft.step)
                bill.read["large"] += n - seen["large"] + draft.step.n_tokens
                bill.wrote["large"] += 1
                seen["large"] = n
            else:
                value = signals(draft)[way.signal]
            writer = "large" if value >= way.threshold else "small"
        written = draft if draft and writer == "small" else (yield from pair.write(writer, state))
        if draft and writer == "large":
            bill.wrote["small"] += 1 if way.signal == "glimpse" else draft.step.n_tokens
        bill.read[writer] += n - seen[writer]
        bill.wrote[writer] += written.step.n_tokens
        seen[writer] = n + written.step.n_tokens
        if way.signal == "judge" and writer == "small":
            seen["large"] = n + written.step.n_tokens
        bill.n_steps += not goes_on
        bill.large_steps += writer == "large" and not goes_on
        state, last = state.extend(written.step), writer
    given = router.answer(state)
    bill.text = state.text
    bill.right = given is not None and same_answer(given, asked.gold)
    return bill


def signals(draft: Written) -> dict[str, float]:
    """What the small model's step says of itself. A step without log-probs is the large model's."""
    h = draft.entropies
    return {"glimpse": h[0], "mean": mean(h)} if h else {"glimpse": math.inf, "mean": math.inf}


def compared(pair: Pair, router: GlimpRouter, asked: Asked, judged: bool) -> Flow[list[dict[str, Any]]]:
    """For each step on the small model's own way: its signals, and both models' steps."""
    rows: list[dict[str, Any]] = []
    state = State(asked.task)
    while not router.terminal(state):
        mine = yield from pair.write("small", state)
        if state.step is None or not state.step.cut:  # else the step goes on
            theirs = yield from pair.write("large", state)
            row: dict[str, Any] = signals(mine) | {"small": mine.step.text, "large": theirs.step.text}
            if judged:
                row["judge"] = yield from pair.doubt(state, mine.step)
            rows.append(row | {"problem": asked.number, "depth": state.depth})
        state = state.extend(mine.step)
    return rows


def inner(shots: Shots, *, chat: bool, max_tokens: int) -> StepPolicy:
    """Greedy steps: a line each after examples, or with `chat` a paragraph each after an instruction."""
    sampling = Sampling(temperature=0, max_tokens=max_tokens)
    if chat:
        return StepPolicy(prompt="cot", sampling=sampling, max_steps=40)
    return StepPolicy(
        prompt="few_shot", examples=shots, chat=False, delimiter="\n", max_steps=8, sampling=sampling
    )


# ---------------------------------------------------------------- many problems


class Run:
    """Flows of many problems, some at a time."""

    def __init__(self, engines: dict[str, Engine], pair: Pair, router: GlimpRouter, parallel: int) -> None:
        self.services = Services(engines)
        self.pair = pair
        self.router = router
        self._gate = asyncio.Semaphore(parallel)

    async def each(self, asked: Sequence[Asked], flow: Any) -> list[Any]:
        """What `flow` of each problem returns."""

        async def one(problem: Asked) -> Any:
            async with self._gate:
                return await Driver(self.services).run(flow(problem))

        return list(await asyncio.gather(*map(one, asked)))

    async def bills(self, asked: Sequence[Asked], ways: Sequence[Way]) -> list[list[Bill]]:
        """For each way the bills of all problems."""

        def all_ways(problem: Asked) -> Flow[list[Bill]]:  # one after the other, while its prefix is cached
            bills = []
            for way in ways:
                bills.append((yield from solved(self.pair, self.router, problem, way)))
            return bills

        return [list(column) for column in zip(*await self.each(asked, all_ways), strict=True)]


async def parity(run: Run, test: Sequence[Asked], tau: float) -> None:
    """The router itself, which knows no kept replies, beside `solved`."""
    router = replace(run.router, tau=tau, probe="two_call")

    def equal(asked: Asked) -> Flow[bool]:
        state = State(asked.task)
        while not router.terminal(state):
            [[step]] = yield from router.propose([state], [1], [0])
            if not isinstance(step, RoutedStep):
                raise RuntimeError(f"no step: {step}")
            state = state.extend(step)
        bill = yield from solved(run.pair, router, asked, Way("glimpse", tau))
        return state.text == bill.text

    same = await run.each(test, equal)
    print(f"GlimpRouter itself, asking anew, writes the same in {sum(same)} of {len(same)} problems")


# ---------------------------------------------------------------- sums


Points = list[tuple[float, list[float]]]  # of one way at several thresholds: its cost, what is right


def right(bills: Sequence[Bill]) -> list[float]:
    """1 for each problem solved, else 0."""
    return [float(bill.right) for bill in bills]


def rights(runs: Sequence[Sequence[Bill]]) -> list[float]:
    """For each problem the share of these runs that solve it."""
    return [fmean(column) for column in zip(*map(right, runs), strict=True)]


def accuracy(runs: Sequence[Sequence[Bill]]) -> Interval:
    """Share of right answers and its 95 % interval: Wilson's of one run, of several by bootstrap over
    problems, since runs of one problem are not independent."""
    each = rights(runs)
    return (fmean(each), *wilson(round(sum(each)), len(each))) if len(runs) == 1 else bootstrap(each)


def written(bills: Sequence[Bill], who: Writer) -> float:
    """Tokens a problem."""
    return fmean(bill.wrote[who] for bill in bills)


def rate_of(bills: Sequence[Bill]) -> float:
    """The large model's share of the steps."""
    return sum(bill.large_steps for bill in bills) / sum(bill.n_steps for bill in bills)


def at(points: Points, cost: float) -> list[float]:
    """What is right at a cost, on the straight lines between a way's points; the nearest end beyond them."""
    points = sorted(points, key=lambda point: point[0])
    for (low, before), (high, after) in pairwise(points):
        if low <= cost <= high and low < high:
            w = (cost - low) / (high - low)
            return [(1 - w) * x + w * y for x, y in zip(before, after, strict=True)]
    return points[0][1] if cost < points[0][0] else points[-1][1]
