"""What the first token's entropy says, and what routing by it costs, on the small quantised model.

    python benchmarks/glimp_router.py [--steps 300] [--large SPEC]

Measures the points 7 and 8 of GlimpRouter's claims: whether H_init of steps is more spread than the mean
entropy of their tokens (p90/p50 of each), and whether what two models write agrees the less the higher
H_init is (Spearman's ρ over steps; agreement: share of equal words, in order). `--large` is the engine of
the large model, such as "sglang" or "litellm:openai/gpt-4o-mini". Without it the small model plays both
parts: then agreement is between two samples of one model, and only the mechanics are measured.
"""

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from statistics import mean, quantiles
from typing import Any

from scipy.stats import spearmanr

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import Noted
from abduce.serving import engine
from abduce.serving.flow import Failure, Flow, Generate, Sampling
from abduce.serving.seeds import derive
from abduce.strategies.base import State, Step, Task
from abduce.strategies.glimp_router import GlimpRouter, entropy, threshold
from abduce.strategies.policy import StepPolicy
from abduce.strategies.routes import RoutedStep, tally

INNER = StepPolicy(prompt="cot", delimiter="\n", max_steps=12, sampling=Sampling(0.6, 0.95, max_tokens=60))
NAMES = ("Tom", "Mia", "Ada", "Ben", "Eva")
THINGS = ("apples", "pens", "books", "coins", "stones", "cards")


def main() -> int:
    """Print the spread, the correlation, and the cost at an intervention rate of a quarter."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--large", default="", help="engine of the large model")
    chosen = arguments.parse_args()
    return asyncio.run(measure(chosen.steps, chosen.large))


async def measure(n_steps: int, large: str) -> int:
    """All figures."""
    small = engine({"engine": "embedded", "slots": 8, "context": 1024})
    engines = {"policy": small, "large": engine(large) if large else small}
    asked = tasks()
    print(f"small: {small.name}, large: {large or 'the same model, so mechanics only'}", flush=True)
    rows: list[tuple[float, float, float]] = []
    for i, task in enumerate(asked):
        if len(rows) >= n_steps:
            break
        rows += await Driver(Services(engines), seed=i).run(compared(task, i))
    firsts, means, agreements = (list(column) for column in zip(*rows, strict=True))
    print(f"{len(rows)} steps of {i} problems")
    for name, values in (("H_init", firsts), ("mean entropy of a step", means)):
        print(f"{name:24} {spread(values)}")
    print(f"H_init, bins of 0.3 nats   {histogram(firsts)}")
    found = spearmanr(firsts, agreements)
    print(f"agreement against H_init: Spearman {found.statistic:+.3f}, p = {found.pvalue:.2g}")
    tau = threshold(firsts, 0.25)
    print(f"tau for a quarter of the steps: {tau:.3f}")
    for probe in ("fused", "two_call"):
        await routed(asked[:8], engines, GlimpRouter(policy=INNER, tau=tau, probe=probe))  # type: ignore[arg-type]
    for each in set(engines.values()):
        await each.close()
    return 0


def compared(task: Task, seed: int) -> Flow[list[tuple[float, float, float]]]:
    """H_init, mean entropy of the step and agreement with the large model, for each step that the small
    model writes on its way."""
    rows: list[tuple[float, float, float]] = []
    state = State(task)
    router = GlimpRouter(policy=INNER, tau=9.0)
    while not router.terminal(state):
        prompt = INNER.prompt_for(state)
        sampling = replace(INNER.sampling, stop=("\n",))
        asked = Generate(prompt, 1, sampling, derive(seed, state.depth), top_logprobs=20)
        other = Generate(
            replace(prompt, prefix_ids=()), 1, sampling, derive(seed, state.depth, 1), model="large"
        )
        mine, theirs = yield [asked, other]
        if isinstance(mine, Failure) or isinstance(theirs, Failure) or not mine[0].top_logprobs:
            break
        told = [entropy(top) for top in mine[0].top_logprobs]
        rows.append((told[0], mean(told), agreement(mine[0].text, theirs[0].text)))
        ends = mine[0].finish == "eos"
        state = state.extend(Step(mine[0].text, mine[0].ids, n_tokens=mine[0].n_tokens, last=ends))
    return rows


async def routed(asked: Sequence[Task], engines: dict[str, Any], router: GlimpRouter) -> None:
    """Tokens and shares of whole solutions."""
    notes: list[Any] = []

    def solution(task: Task, seed: int) -> Flow[int]:
        state = State(task)
        while not router.terminal(state):
            [[step]] = yield from router.propose([state], [1], [derive(seed, state.depth)])
            if not isinstance(step, RoutedStep):
                break
            state = state.extend(step)
        return state.n_tokens

    for i, task in enumerate(asked):
        driver = Driver(
            Services(engines), observers=[lambda e: notes.append(e.data) if isinstance(e, Noted) else None]
        )
        await driver.run(solution(task, i))
    told = tally(notes)
    print(
        f"{router.probe:9} {told.steps} steps, {told.large_steps / max(1, told.steps):.0%} by the large "
        f"model; tokens small {told.small_tokens}, large {told.large_tokens}, probes {told.probe_tokens}, "
        f"read again {told.refilled_tokens}; switches {told.switches}, errors {told.errors}"
    )


def agreement(one: str, two: str) -> float:
    """Share of words that two steps have in common, in order: 1 for equal steps."""
    return SequenceMatcher(None, one.split(), two.split(), autojunk=False).ratio()


def spread(values: Sequence[float]) -> str:
    """Quantiles, and the ratio that the claim is about."""
    cuts = quantiles(values, n=20)
    p10, p50, p90 = cuts[1], cuts[9], cuts[17]
    return f"p10 {p10:.3f}  p50 {p50:.3f}  p90 {p90:.3f}  p90/p50 {p90 / p50 if p50 else float('inf'):.2f}"


def histogram(values: Sequence[float]) -> str:
    """Counts in bins of 0.3 nats from 0 to 3."""
    return " ".join(str(sum(low <= x / 0.3 < low + 1 for x in values)) for low in range(10))


def tasks() -> list[Task]:
    """Word problems of two steps, the same in every run."""
    rng = random.Random(0)
    return [
        Task(
            f"{rng.choice(NAMES)} has {rng.randint(2, 12)} boxes with {rng.randint(2, 12)} {thing} each "
            f"and gives {rng.randint(1, 4)} {thing} away. How many {thing} are left?"
        )
        for thing in rng.choices(THINGS, k=200)
    ]


if __name__ == "__main__":
    sys.exit(main())
