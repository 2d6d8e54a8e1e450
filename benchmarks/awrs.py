"""Is adaptive rejection sampling properly weighted, and what does it cost and bring on the small model?

    python benchmarks/awrs.py laws                 # enumeration, simulation, SMC on a toy language: no torch
    python benchmarks/awrs.py tasks [--items 20]   # the small model: accuracy, checks, seconds; checks by KL

Each law comes with what was measured and what was demanded; the exit code is 1 if one is not met or a
negative control passes. Tasks print what they find, good or bad.
"""

import asyncio
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from arguments import command
from printing import met
from scipy import stats

from abduce.serving.constraints import Check, Constraint, JsonSchema, Regex
from abduce.serving.flow import Generate, Prompt, Sampling
from abduce.serving.transformers import awrs
from abduce.serving.transformers.awrs_smc import particles
from abduce.serving.transformers.decoding import sample
from tests.serving.transformers import test_awrs as laws
from tests.serving.transformers import test_awrs_smc as smc_laws
from tests.serving.transformers import toy_language as toy

SIGMA = 4.0
failed = 0


def show(law: str, setting: str, figure: str, demand: str, held: bool) -> None:
    """One line of the table."""
    global failed
    failed += not held
    print(f"{law:22} {setting:52} {figure:34} {demand:26} {met(held)}", flush=True)


# ---------------------------------------------------------------- laws


def exact_laws() -> None:
    """Enumeration in rationals: proper weights, variance, checks."""
    forms = {"two loops": awrs.weigh_two_loop} | {
        f"recursive, cap {cap}": laws.recursive(cap) for cap in (None, 2, 3)
    }
    for name, weigh in forms.items():
        cases = list(laws.cases((2, 3, 4, 5), 40, seed=10)) + list(laws.cases((6,), 3, seed=11))
        good = sum(laws.is_proper(laws.outcomes(weigh, p, c), p, c) for p, c in cases)
        show(
            "proper weights, exact",
            f"{name}, 2 to 6 tokens",
            f"{good} of {len(cases)} cases",
            "all",
            good == len(cases),
        )
    cases = list(laws.cases((3, 4), 40, seed=10))
    wrong = sum(not laws.is_proper(laws.outcomes(laws.mutant, p, c), p, c) for p, c in cases)
    show(
        "its control", "(1 − mass(R1)) / (|R2| + 1)", f"{wrong} of {len(cases)} cases off", "some", wrong > 0
    )
    ratios: dict[str, list[float]] = defaultdict(list)
    checks: dict[str, list[float]] = defaultdict(list)
    for p, allowed in laws.cases((4, 5), 200, seed=12):
        mass = sum(p[x] for x in allowed)
        if not 0 < mass < 1:
            continue
        for name, weigh in (("two loops", awrs.weigh_two_loop), ("recursive", laws.recursive(None))):
            found = laws.outcomes(weigh, p, allowed)
            variance = sum(each[0] * each[2] ** 2 for each in found) - mass**2
            ratios[name].append(float(variance / (mass * (1 - mass))))
            bound = 2 / mass if name == "two loops" else 1 / mass + 1
            checks[name].append(float(sum(each[0] * each[4] for each in found) / bound))
    for name, most in (("two loops", 0.5), ("recursive", 1.0)):
        worst, n = max(ratios[name]), len(ratios[name])
        show(
            "variance / coin flip",
            f"{name}, {n} cases",
            f"worst {worst:.3f}",
            f"<= {most}",
            worst <= most + 1e-12,
        )
        bound = "2 / A" if name == "two loops" else "1 / A + 1"
        worst = max(checks[name])
        show(
            "expected checks", f"{name}, over {bound}", f"worst ratio {worst:.3f}", "<= 1", worst <= 1 + 1e-12
        )


def simulated_weights(n: int) -> None:
    """The geometric form, scales, pruning, proposals."""
    for a, cap in ((2, None), (4, None), (2, 3), (3, 4)):
        draw = partial(awrs.geometric, max_accepts=a, max_rejects=cap)
        off = laws.deviation(draw, n=n, seed=a)
        show(
            "proper weights",
            f"geometric, a = {a}, cap {cap}, {n} draws",
            f"worst {off:.2f} s.e.",
            "< 4",
            off < SIGMA,
        )
    g = np.log(np.array([0.05, 0.1, 0.2, 0.3, 0.2, 0.3]))
    for form in laws.FORMS:
        for scale in (0.01, 0.3, 2.0):
            off = laws.deviation(form, p=laws.P * scale, n=n // 5)
            show(
                "unnormalised p",
                f"{form.__name__}, times {scale}",
                f"worst {off:.2f} s.e.",
                "< 4",
                off < SIGMA,
            )
        off = laws.deviation(pruned(form), n=n // 5)
        show("pruned p", form.__name__, f"worst {off:.2f} s.e.", "< 4", off < SIGMA)
        off = laws.deviation(partial(form, proposal=g), n=n // 5)
        show("proposal g", form.__name__, f"worst {off:.2f} s.e.", "< 4", off < SIGMA)


def simulated_tokens(n: int) -> None:
    """The law of the token; what more accepts are good for."""
    for form in (awrs.two_loop, awrs.improper):
        rng = np.random.default_rng(3)
        drawn = [form(np.log(laws.P), laws.ALLOWED.__contains__, rng).token for _ in range(n)]
        observed = [drawn.count(x) for x in sorted(laws.ALLOWED)]
        expected = np.array([laws.P[x] for x in sorted(laws.ALLOWED)])
        p = float(stats.chisquare(observed, expected / expected.sum() * n).pvalue)
        show(
            "law of the token",
            f"{form.__name__}, chi-square, {n} draws",
            f"p = {p:.3f}",
            "> 0.001",
            p > 0.001,
        )
    variances = []
    for a in (2, 4, 8):
        rng = np.random.default_rng(5)
        drawn = [
            awrs.geometric(np.log(laws.P), laws.ALLOWED.__contains__, rng, max_accepts=a)
            for _ in range(n // 5)
        ]
        variances.append(float(np.var([math.exp(each.log_weight) for each in drawn])))
    told = ", ".join(f"{x:.4f}" for x in variances)
    show(
        "variance by accepts",
        "geometric, a = 2, 4, 8",
        told,
        "falls",
        sorted(variances, reverse=True) == variances,
    )


def pruned(form: Callable[..., awrs.Draw]) -> Callable[..., awrs.Draw]:
    """Two tokens that are never allowed are cut off first."""

    def draw(log_p: Any, check: awrs.Check, rng: np.random.Generator) -> awrs.Draw:
        log_p = log_p.copy()
        log_p[[0, 2]] = -np.inf
        return form(log_p, check, rng)

    return draw


def smc_on_a_toy(replicates: int) -> None:
    """Unbiased evidence on the full grid, forced ends included, and the trap."""
    for critic, below, n in product((None, toy.GUESS), (0.0, 0.5, 1.0), (1, 5, 20)):
        truth = sum(p * toy.weight(text, critic) for text, p in toy.texts().items())
        draws = [
            toy.evidence(toy.population(seed, n, resample_below=below, critic=critic))
            for seed in range(max(600, replicates // n))
        ]
        off = smc_laws.off(draws, truth)
        setting = f"N = {n}, e = {below}, {'critic' if critic else 'no critic'}, {len(draws)} runs"
        show("E[Z] = Z", setting, f"{np.mean(draws):.5f} for {truth:.5f}, {off:.2f} s.e.", "< 4", off < SIGMA)
    draws = [toy.evidence(toy.population(seed, 1, draw=awrs.improper)) for seed in range(1000)]
    truth = sum(p * toy.weight(text, None) for text, p in toy.texts().items())
    off = smc_laws.off(draws, truth)
    show("its control", "weights left out", f"{off:.1f} s.e.", "> 4", off > SIGMA)
    wanted = Check(
        lambda text: len(text) < 2 or text[1] == "a", lambda text: len(text) >= 2 and text[1] == "a"
    )
    run = partial(toy.population, law=toy.trap, constraint=wanted)
    local = smc_laws.distance([run(seed, 1, draw=awrs.improper) for seed in range(2000)], toy.trap, wanted)
    by_n = [
        smc_laws.distance([run(seed, n, resample_below=0.5) for seed in range(8000 // n)], toy.trap, wanted)
        for n in (1, 4, 16, 64)
    ]
    told = ", ".join(f"{x:.3f}" for x in by_n)
    show("distance in a trap", "SMC, N = 1, 4, 16, 64", told, "falls", sorted(by_n, reverse=True) == by_n)
    show("distance in a trap", "locally constrained", f"{local:.3f}", "stays above 0.4", local > 0.4)


# ---------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Item:
    """One question; `right` judges a text that keeps the constraint."""

    prompt: Prompt
    constraint: Constraint
    right: Callable[[str], bool]
    max_tokens: int


@dataclass
class Tally:
    """What a method did on a task."""

    accuracy: list[float] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    checks: int = 0
    tokens: int = 0
    seconds: float = 0.0


def json_items(n: int) -> Iterator[Item]:
    """A sentence, to be told as JSON of a schema."""
    rng = Random(1)
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
        "required": ["name", "age", "city"],
        "additionalProperties": False,
    }
    for _ in range(n):
        name, city = rng.choice(NAMES), rng.choice(CITIES)
        truth = {"name": name, "age": rng.randrange(18, 90), "city": city}
        shown = (
            f"Extract the data as JSON.\n\nText: Tom is 25 years old and lives in Rome.\n"
            'JSON: {"name": "Tom", "age": 25, "city": "Rome"}\n\n'
            f"Text: {name} is {truth['age']} years old and lives in {city}.\nJSON:"
        )
        yield Item(Prompt.user(shown), JsonSchema(schema), partial(_same, truth), 60)


def regex_items(n: int) -> Iterator[Item]:
    """A time within a sentence, to be written as HH:MM and nothing else."""
    rng = Random(2)
    pattern = Regex(r"([01][0-9]|2[0-3]):[0-5][0-9]")
    for _ in range(n):
        city, truth = rng.choice(CITIES), f"{rng.randrange(24):02}:{rng.randrange(60):02}"
        shown = (
            f"The train to {city} leaves at {truth} from platform {rng.randrange(2, 9)}. "
            "When does the train leave? Answer with the time only."
        )
        yield Item(Prompt.user(shown), pattern, truth.__eq__, 8)


def pattern_items(n: int) -> Iterator[Item]:
    """A number with digits that must add up: `prefix` knows little, so local choices end in traps."""
    rng = Random(3)
    for _ in range(n):
        total = rng.randrange(12, 20)

        def complete(text: str, total: int = total) -> bool:
            return len(text) == 4 and text.isdigit() and sum(map(int, text)) == total

        def prefix(text: str, total: int = total) -> bool:
            digits = all("0" <= c <= "9" for c in text)
            return digits and len(text) <= 4 and sum(map(int, text)) <= total

        shown = f"Write a number of four digits whose digits add up to {total}. Answer with the number only."
        yield Item(Prompt.user(shown), Check(prefix, complete), complete, 6)


def _same(truth: dict[str, Any], text: str) -> bool:
    try:
        return bool(json.loads(text) == truth)
    except ValueError:
        return False


async def tasks(n_items: int, only: str | None) -> None:
    """Accuracy, checks and seconds of each method on each task; checks by KL."""
    from abduce.serving.transformers import Transformers

    engine = Transformers(device="cpu", slots=10, context=512)
    await engine.ready()
    n_tokens = len(engine.turn(Generate(Prompt.user("x"))).tokens)
    print(f"small model, float32, {n_tokens} tokens in the vocabulary, temperature 1, {n_items} items a task")
    makers = {"json": json_items, "times": regex_items, "sums": pattern_items}
    seen: list[tuple[float, int]] = []
    for name, make in makers.items():
        if only not in (None, name):
            continue
        items = list(make(n_items))
        columns = f"{'accuracy':>9} {'valid':>7} {'checks':>10} {'checks/token':>13} {'seconds/item':>13}"
        print(f"\n{name:26} {columns}")
        for method, run in METHODS.items():
            tally = Tally()
            for seed, item in enumerate(items):
                began = time.perf_counter()
                await run(engine, item, seed, tally)
                tally.seconds += time.perf_counter() - began
            print(
                f"{method:26} {np.mean(tally.accuracy):9.3f} {np.mean(tally.valid):7.3f} {tally.checks:10} "
                f"{tally.checks / max(1, tally.tokens):13.1f} {tally.seconds / len(items):13.2f}",
                flush=True,
            )
        if name != "sums":
            for seed, item in enumerate(items[:6]):
                await watch(engine, item, seed, seen)
    by_kl(seen, n_tokens)
    await engine.close()


async def base(engine: Any, item: Item, seed: int, tally: Tally, n: int = 1, *, rerank: bool = False) -> None:
    """Unconstrained samples; of several, those that keep the constraint."""
    turn = engine.turn(Generate(item.prompt, sampling=Sampling(temperature=1.0, max_tokens=item.max_tokens)))
    drawn = await engine.run(sample(turn, [seed * 100 + i for i in range(n)]), n_slots=n)
    keeps = engine.potential(item.constraint).complete
    good = [each.finish == "eos" and keeps(each.text) for each in drawn]
    right = [ok and item.right(each.text) for each, ok in zip(drawn, good, strict=True)]
    tally.checks += n if rerank else 0
    tally.tokens += sum(each.n_tokens for each in drawn)
    tally.accuracy.append(sum(right) / max(1, sum(good)))
    tally.valid.append(float(any(good)))


async def constrained(engine: Any, item: Item, seed: int, tally: Tally, n: int = 1, **more: Any) -> None:
    """Particles; accuracy by their weights."""
    turn = engine.turn(Generate(item.prompt, sampling=Sampling(temperature=1.0, max_tokens=item.max_tokens)))
    seeds = [seed * 100 + i for i in range(n)]
    cloud = await engine.run(particles(turn, engine.potential(item.constraint), seeds, **more), n_slots=n)
    top = max(each.log_weight for each in cloud)
    w = [0.0 if top == -math.inf else math.exp(each.log_weight - top) for each in cloud]
    right = [item.right(each.completion.text) for each in cloud]
    tally.checks += sum(each.n_checks for each in cloud)
    tally.tokens += sum(each.completion.n_tokens for each in cloud)
    tally.accuracy.append(sum(x for x, ok in zip(w, right, strict=True) if ok) / (sum(w) or 1.0))
    tally.valid.append(float(top > -math.inf))


METHODS: dict[str, Callable[..., Any]] = {
    "base, N = 1": base,
    "masking (LCD), N = 1": partial(constrained, mask=True),
    "LCD by rejection, N = 1": partial(constrained, draw=awrs.improper),
    "sample and rerank, N = 10": partial(base, n=10, rerank=True),
    "AWRS, N = 5, e = 0": partial(constrained, n=5),
    "AWRS-SMC, N = 5, e = 0.5": partial(constrained, n=5, resample_below=0.5),
}


async def watch(engine: Any, item: Item, seed: int, seen: list[tuple[float, int]]) -> None:
    """Checks of each draw beside KL(pi || p) = -ln A, with A by a check of every token."""

    def draw(log_p: Any, check: awrs.Check, rng: np.random.Generator) -> awrs.Draw:
        possible = np.flatnonzero(log_p > -math.inf)
        allowed = [token for token in possible.tolist() if check(token)]
        mass = float(np.exp(log_p[allowed]).sum()) if allowed else 0.0
        found = awrs.adaptive(log_p, check, rng)
        if mass > 0:
            seen.append((-math.log(min(1.0, mass)), found.n_checks))
        return found

    turn = engine.turn(Generate(item.prompt, sampling=Sampling(temperature=1.0, max_tokens=item.max_tokens)))
    await engine.run(
        particles(turn, engine.potential(item.constraint), [seed * 7, seed * 7 + 1], draw=draw), n_slots=2
    )


def by_kl(seen: Sequence[tuple[float, int]], n_tokens: int) -> None:
    """Mean checks of a draw, by KL."""
    print("\nKL(pi || p), nats           draws     checks (mean, most)     fewer than the vocabulary by")
    for low, high in ((0, 0.01), (0.01, 0.1), (0.1, 0.5), (0.5, 1), (1, 2), (2, 4), (4, 8), (8, 99)):
        checks = [n for kl, n in seen if low <= kl < high]
        if checks:
            print(
                f"{low:5} to {high:<5} {len(checks):18} {np.mean(checks):14.1f} {max(checks):8} "
                f"{n_tokens / np.mean(checks):22.0f} x"
            )
    checks = [n for _, n in seen]
    if checks:
        ratio = n_tokens / float(np.mean(checks))
        figure = f"{np.mean(checks):.1f} checks a token, {ratio:.0f} x fewer"
        show("checks", f"{len(checks)} draws, {n_tokens} tokens", figure, ">= 20 x fewer", ratio >= 20)


NAMES = ("Anna", "Peter", "Maria", "John", "Laura", "David", "Emma", "Paul", "Sarah", "Mark")
CITIES = ("Paris", "London", "Berlin", "Madrid", "Oslo", "Vienna", "Boston", "Lisbon", "Dublin", "Prague")


def main() -> int:
    """Laws or tasks."""
    parser = command(__doc__)
    parser.add_argument("what", choices=["laws", "tasks"])
    parser.add_argument("--draws", type=int, default=50_000)
    parser.add_argument("--replicates", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--only", choices=["json", "times", "sums"])
    options = parser.parse_args()
    began = time.time()
    if options.what == "laws":
        exact_laws()
        simulated_weights(options.draws)
        simulated_tokens(options.draws)
        smc_on_a_toy(options.replicates)
    else:
        asyncio.run(tasks(options.items, options.only))
    print(f"\n{failed} not met, {time.time() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
