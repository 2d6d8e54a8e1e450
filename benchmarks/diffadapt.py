"""What a probe on hidden states saves: products of one to four digits, on the small model.

    python benchmarks/diffadapt.py [--out build/diffadapt] [--per-level 30] [--test 50] [--samples 6]

Rollouts of --per-level questions a level train the probe (30 % of them choose thresholds and τ); --test other
questions a level are then solved by the recipe `diffadapt-products` with the probe, and in every fixed mode.
Everything is kept in --out as it comes, and gone on with. Differences have paired bootstrap intervals.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.judge import same_answer
from abduce.orchestrator.recipe import read as recipe
from abduce.orchestrator.solve import Pipeline
from abduce.serving.seeds import derive
from abduce.strategies.base import Task
from abduce.strategies.diffadapt import DiffAdapt
from abduce.strategies.diffadapt.collect import observe
from abduce.strategies.diffadapt.features import Kind, layout, read, read_reference
from abduce.strategies.diffadapt.file import load, save
from abduce.strategies.diffadapt.fitting import Fitting
from abduce.strategies.diffadapt.labels import LAMBDA, Question, Rollout, oracle
from abduce.strategies.diffadapt.modes import digest, plain
from abduce.strategies.diffadapt.probe import Probe, Signature
from abduce.strategies.diffadapt.training import chosen, confusion, train
from benchmarks.intervals import bootstrap

LEVELS = 4
Row = dict[str, Any]


def main() -> int:
    """Collect, train, test, print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, default=Path("build/diffadapt"))
    arguments.add_argument("--per-level", type=int, default=30)
    arguments.add_argument("--test", type=int, default=50)
    arguments.add_argument("--samples", type=int, default=6)
    arguments.add_argument("--no-text", action="store_true", help="leave out the probe on text features")
    arguments.add_argument("--parallel", type=int, default=8)
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return asyncio.run(measure(options))


def products(n: int) -> list[Row]:
    """n questions of each level: a factor of so many digits (level 1: 2 to 12) times one from 2 to 9 (12)."""
    rows = []
    for level in range(1, LEVELS + 1):
        low, high, most = (2, 12, 12) if level == 1 else (10 ** (level - 1), 10**level - 1, 9)
        pairs = {(a, b) for a in range(low, min(high, low + 400) + 1) for b in range(2, most + 1)}
        for a, b in Random(level).sample(sorted(pairs), n):
            rows.append({"id": f"{a} x {b}", "level": level, "answer": str(a * b)})
    return rows


async def measure(options: argparse.Namespace) -> int:
    """All of it."""
    made = recipe("diffadapt-products").pipeline()
    assert isinstance(made, Pipeline) and isinstance(made.strategy, DiffAdapt)
    bench = Bench(made, made.strategy, options)
    rows = products(options.per_level + options.test)
    train_rows = [
        row for i, row in enumerate(rows) if i % (options.per_level + options.test) < options.per_level
    ]
    test_rows = [row for row in rows if row not in train_rows]
    Random(0).shuffle(train_rows)
    held = train_rows[: int(0.3 * len(train_rows))]
    observed = await bench.kept("rollouts", train_rows, lambda row: bench.observe(row, every=row in held))
    probes = {
        name: await bench.probe(name, observed, held, how)
        for name, how in (("hidden", Fitting()), ("linear", Fitting(width=0)))
    }
    hidden = replace(bench.strategy, probe=probes["hidden"])
    ways = {"probe": hidden, **{m: replace(bench.strategy, mode=m) for m in bench.strategy.ways}}
    tests = {}
    for name, way in ways.items():
        tests[name] = await bench.kept(f"test-{name}", test_rows, partial(bench.solve, way))
    drafts = []
    if not options.no_text:
        read_of = await bench.kept("features", train_rows, bench.features)
        observed = [{**row, **features} for row, features in zip(observed, read_of, strict=True)]
        probes["text"] = await bench.probe("text", observed, held, Fitting())
        drafts = await bench.kept("test-features", test_rows, bench.features)
    report(bench, tests, drafts, probes)
    return 0


class Bench:
    """The pipeline, and what it has done so far, in files."""

    def __init__(self, pipeline: Pipeline, strategy: DiffAdapt, options: argparse.Namespace) -> None:
        self.pipeline, self.strategy, self.options = pipeline, strategy, options
        self.most = plain(strategy.policy).most_tokens(Task("?"))

    async def kept(self, name: str, rows: Sequence[Row], do: Callable[[Row], Awaitable[Row]]) -> list[Row]:
        """What `do` says of each row, from the file where it is there."""
        file = self.options.out / f"{name}.jsonl"
        done = (
            {row["id"]: row for row in map(json.loads, file.read_text().splitlines())}
            if file.exists()
            else {}
        )
        gate, began = asyncio.Semaphore(self.options.parallel), perf_counter()

        async def one(row: Row) -> None:
            async with gate:
                done[row["id"]] = {**row, **await do(row)}
            with file.open("a") as out:
                out.write(json.dumps(done[row["id"]]) + "\n")

        todo = [row for row in rows if row["id"] not in done]
        await asyncio.gather(*(one(row) for row in todo))
        if todo:
            print(f"{name}: {len(todo)} rows in {perf_counter() - began:.0f} s", flush=True)
        return [done[row["id"]] for row in rows]

    async def observe(self, row: Row, *, every: bool) -> Row:
        """The question's state, and judged rollouts."""
        n = self.options.samples
        counts = {m: n for m in self.strategy.ways.values() if every or m.name == "normal"}
        here = derive(0, row["id"])
        flow = observe(self.strategy.policy, Task(row["id"]), counts, kind="hidden", seed=here)
        state, drawn = await Driver(self.pipeline.services, seed=here).run(flow)
        runs = {
            mode: [
                [s.answer is not None and same_answer(s.answer, row["answer"]), s.n_tokens, s.entropy]
                for s in samples
            ]
            for mode, samples in drawn.items()
        }
        return {"hidden": state, "runs": runs}

    async def features(self, row: Row) -> Row:
        """Those of the text, with what their draft costs."""
        flow = read(self.strategy.policy, Task(row["id"]), "text")
        reading = await Driver(self.pipeline.services, seed=0).run(flow)
        return {"text": reading.values, "draft": reading.n_tokens}

    async def solve(self, strategy: DiffAdapt, row: Row) -> Row:
        """One question, solved."""
        pipeline = replace(self.pipeline, strategy=strategy)
        result = await pipeline.asolve(row["id"], seed=derive(1, row["id"]))
        facts = result.diagnostics
        right = result.answer is not None and same_answer(result.answer, row["answer"])
        return {
            "right": right,
            "out": result.usage.output_tokens,
            "in": result.usage.input_tokens,
            **{key: facts[key] for key in ("mode", "why", "probabilities", "truncated")},
        }

    async def probe(self, name: str, observed: Sequence[Row], held: Sequence[Row], how: Fitting) -> Probe:
        """A probe; from its file where it is there."""
        file = self.options.out / f"{name}.probe.json"
        if not file.exists():
            kind: Kind = "text" if name == "text" else "hidden"
            flow = read_reference(self.strategy.policy)
            reference = await Driver(self.pipeline.services, seed=0).run(flow)
            modes = tuple(self.strategy.ways.values())
            state = reference.values if kind == "hidden" else ()
            signature = Signature(kind, layout(self.strategy.policy, kind), digest(modes), state)
            ids = {row["id"] for row in held}
            rest = [_question(row, kind) for row in observed if row["id"] not in ids]
            validation = [_question(row, kind) for row in observed if row["id"] in ids]
            save(train(rest, validation, modes, signature, most_tokens=self.most, how=how), file)
        return load(file)


def _question(row: Row, kind: str) -> Question:
    runs = {mode: [Rollout(*each) for each in rolled] for mode, rolled in row["runs"].items()}
    return Question(tuple(row[kind]), runs, row["level"])


# ---------------------------------------------------------------- figures


def report(bench: Bench, tests: dict[str, list[Row]], drafts: list[Row], probes: dict[str, Probe]) -> None:
    """What the calibration found, and the table of the test questions."""
    about = probes["hidden"].report
    print(
        f"\nMax = {bench.most} tokens, {about['questions']} training questions, {len(drafts)} test questions"
    )
    print("\n| level | accuracy | entropy |\n|---|---|---|")
    for level, row in enumerate(about["bins"], 1):
        print(f"| {level} | {row['accuracy']:.3f} | {row['entropy']:.3f} |")
    print(f"\nlabels {about['labels']}, thresholds {about['thresholds']}, tau {probes['hidden'].tau}")
    print("\n".join(about["warnings"]))
    normal, names = tests["normal"], list(bench.strategy.ways)
    table = dict(tests)
    frequencies = Counter(row["mode"] for row in tests["probe"])
    rng = Random(0)
    drawn = rng.choices(list(frequencies), list(frequencies.values()), k=len(normal))
    table["a random mode, same shares"] = _picked(tests, drawn)
    if drafts:
        said = [probes["text"](row["text"]) for row in drafts]
        by_text = _picked(tests, [chosen(names, d, probes["text"].tau) for d in said])
        table["text features, without the draft"] = by_text
        table["text features, draft counted"] = [
            {**row, "out": row["out"] + draft["draft"]} for row, draft in zip(by_text, drafts, strict=True)
        ]
    best = _oracle(tests, names)
    table["oracle"] = _picked(tests, best)
    print(
        "\n| way | accuracy | tokens out | tokens in | U | out saved | difference in accuracy | truncated |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, rows in table.items():
        gain, low, high = _gain(rows, normal)
        saved = 1 - _mean(rows, "out") / _mean(normal, "out")
        worth = fmean(row["right"] - LAMBDA * row["out"] / bench.most for row in rows)
        print(
            f"| {name} | {_mean(rows, 'right'):.3f} | {_mean(rows, 'out'):.1f} | {_mean(rows, 'in'):.0f} | "
            f"{worth:+.3f} | {saved:.1%} | {gain:+.3f} ({low:+.3f} to {high:+.3f}) | "
            f"{_mean(rows, 'truncated'):.2f} |"
        )
    print("\nby level, accuracy and tokens out (normal; probe), share of modes:")
    for level in range(1, LEVELS + 1):
        of = [i for i, row in enumerate(normal) if row["level"] == level]
        a, b = ([rows[i] for i in of] for rows in (normal, tests["probe"]))
        modes = Counter(row["mode"] for row in b)
        print(f"{level}: {_mean(a, 'right'):.2f} {_mean(a, 'out'):.1f}; {_mean(b, 'right'):.2f} "
              f"{_mean(b, 'out'):.1f}; {dict(modes)}")  # fmt: skip
    print(
        "\noracle's choice by the probe's, test questions:",
        confusion(best, [r["mode"] for r in tests["probe"]], names),
    )
    print(
        "fallbacks", fmean(row["why"] != "probe" for row in tests["probe"]), "validation", about["fallbacks"]
    )
    print("validation: labels by classes", about["confusion"])
    for name, probe in probes.items():
        worths = {key: round(value, 3) for key, value in probe.report["utility"].items()}
        print(f"validation utility, {name}: {worths}, T {probe.temperature:.2f}, tau {probe.tau}")
    target = _mean(tests["probe"], "out") <= 0.92 * _mean(normal, "out")
    _, low, _ = _gain(tests["probe"], normal)
    print(f"8 % fewer tokens: {_met(target)}")
    print(f"accuracy at worst {low:+.3f}, above -2 points: {_met(low > -0.02)}")


def _met(yes: bool) -> str:
    return "met" if yes else "NOT met"


def _picked(tests: dict[str, list[Row]], modes: Sequence[str]) -> list[Row]:
    """The rows of the fixed modes, as if these had been chosen."""
    return [tests[mode][i] for i, mode in enumerate(modes)]


def _oracle(tests: dict[str, list[Row]], names: Sequence[str]) -> list[str]:
    """The cheapest right mode of each question, of the one sample there is: an optimistic line."""
    found = []
    for i in range(len(tests["normal"])):
        runs = {name: [Rollout(tests[name][i]["right"], tests[name][i]["out"])] for name in names}
        found.append(oracle(Question((), runs), names))
    return found


def _mean(rows: Sequence[Row], key: str) -> float:
    return fmean(row[key] for row in rows)


def _gain(rows: Sequence[Row], base: Sequence[Row]) -> tuple[float, float, float]:
    """Difference in accuracy on the same questions, with its interval."""
    return bootstrap([a["right"] - b["right"] for a, b in zip(rows, base, strict=True)])


if __name__ == "__main__":
    sys.exit(main())
