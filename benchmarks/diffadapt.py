"""What a probe on hidden states saves: products of one to four digits, on the small model.

    python benchmarks/diffadapt.py [--rows FILE] [--per-level 30] [--test 50] [--samples 6]

Rollouts of --per-level questions a level train the probe (30 % of them choose thresholds and τ); --test other
questions a level are then solved by the recipe `diffadapt-products` with the probe, and in every fixed mode.
Differences have paired bootstrap intervals.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from statistics import fmean
from time import perf_counter
from typing import Any

from arguments import command, keeps_rows
from intervals import Interval, paired
from printing import met, table_head, table_row
from rows import Row, Rows

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.judge import same_answer
from abduce.orchestrator.recipe import read as recipe
from abduce.orchestrator.solve import Pipeline
from abduce.serving.seeds import derive
from abduce.strategies.base import Task
from abduce.strategies.diffadapt import DiffAdapt
from abduce.strategies.diffadapt.collect import observe
from abduce.strategies.diffadapt.features import Kind, layout, read, read_reference
from abduce.strategies.diffadapt.fitting import Fitting
from abduce.strategies.diffadapt.labels import LAMBDA, Question, Rollout, oracle
from abduce.strategies.diffadapt.modes import digest, plain
from abduce.strategies.diffadapt.probe import Probe, Signature
from abduce.strategies.diffadapt.training import chosen, confusion, train

LEVELS = 4


def main() -> int:
    """Collect, train, test, print the tables."""
    parser = command(__doc__)
    parser.add_argument("--per-level", type=int, default=30)
    parser.add_argument("--test", type=int, default=50)
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--parallel", type=int, default=8)
    keeps_rows(parser, "build/diffadapt.jsonl")
    asyncio.run(measure(parser.parse_args()))
    return 0


def products(n: int) -> list[Row]:
    """n questions of each level: a factor of so many digits (level 1: 2 to 12) times one from 2 to 9 (12)."""
    rows = []
    for level in range(1, LEVELS + 1):
        low, high, most = (2, 12, 12) if level == 1 else (10 ** (level - 1), 10**level - 1, 9)
        pairs = {(a, b) for a in range(low, min(high, low + 400) + 1) for b in range(2, most + 1)}
        for a, b in Random(level).sample(sorted(pairs), n):
            rows.append({"id": f"{a} x {b}", "level": level, "answer": str(a * b)})
    return rows


async def measure(options: argparse.Namespace) -> None:
    """All of it."""
    made = recipe("diffadapt-products").pipeline()
    assert isinstance(made, Pipeline) and isinstance(made.strategy, DiffAdapt)
    bench = Bench(made, made.strategy, options)
    sizes = [options.per_level, options.test, options.samples]  # from which the probes follow
    rows = products(options.per_level + options.test)
    train_rows = [
        row for i, row in enumerate(rows) if i % (options.per_level + options.test) < options.per_level
    ]
    test_rows = [row for row in rows if row not in train_rows]
    Random(0).shuffle(train_rows)
    n_held = int(0.3 * len(train_rows))
    observed = [
        *await bench.kept(["every mode", options.samples], train_rows[:n_held], bench.observe),
        *await bench.kept(
            ["normal mode", options.samples], train_rows[n_held:], partial(bench.observe, only="normal")
        ),
    ]
    read_of = await bench.kept(["features"], train_rows, bench.features)
    observed = [{**row, **features} for row, features in zip(observed, read_of, strict=True)]
    probes = {
        "hidden": await bench.probe("hidden", observed, n_held, Fitting()),
        "linear": await bench.probe("hidden", observed, n_held, Fitting(width=0)),
        "text": await bench.probe("text", observed, n_held, Fitting()),
    }
    by_probe = partial(bench.solve, replace(bench.strategy, probe=probes["hidden"]))
    tests = {"probe": await bench.kept(["probe", *sizes], test_rows, by_probe)}
    for mode in bench.strategy.ways:
        way = partial(bench.solve, replace(bench.strategy, mode=mode))
        tests[mode] = await bench.kept(["mode", mode], test_rows, way)
    drafts = await bench.kept(["features"], test_rows, bench.features)
    report(bench, tests, drafts, probes)


class Bench:
    """The pipeline, and what is done with it."""

    def __init__(self, pipeline: Pipeline, strategy: DiffAdapt, options: argparse.Namespace) -> None:
        self.pipeline, self.strategy, self.options = pipeline, strategy, options
        self.most = plain(strategy.policy).most_tokens(Task("?"))

    async def kept(
        self, what: Sequence[Any], rows: Sequence[Row], do: Callable[[Row], Awaitable[Row]]
    ) -> list[Row]:
        """What `do` says of each row."""

        async def one(row: Row) -> Row:
            return {**row, **await do(row)}

        known: Rows = self.options.rows
        began = perf_counter()
        found = await known.each(rows, lambda row: [*what, row["id"]], one, at_once=self.options.parallel)
        if (took := perf_counter() - began) > 1:
            print(f"{what[0]}: {len(rows)} rows in {took:.0f} s", file=sys.stderr, flush=True)
        return found

    async def observe(self, row: Row, *, only: str | None = None) -> Row:
        """The question's state, and judged rollouts in every mode or in one."""
        n = self.options.samples
        counts = {m: n for m in self.strategy.ways.values() if only in (None, m.name)}
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

    async def probe(self, kind: Kind, observed: Sequence[Row], n_held: int, how: Fitting) -> Probe:
        """A probe of that kind of features; the first rows validate it."""
        flow = read_reference(self.strategy.policy)
        reference = await Driver(self.pipeline.services, seed=0).run(flow)
        modes = tuple(self.strategy.ways.values())
        state = reference.values if kind == "hidden" else ()
        signature = Signature(kind, layout(self.strategy.policy, kind), digest(modes), state)
        asked = [_question(row, kind) for row in observed]
        return train(asked[n_held:], asked[:n_held], modes, signature, most_tokens=self.most, how=how)


def _question(row: Row, kind: str) -> Question:
    runs = {mode: [Rollout(*each) for each in rolled] for mode, rolled in row["runs"].items()}
    return Question(tuple(row[kind]), runs, row["level"])


# ---------------------------------------------------------------- figures


def report(bench: Bench, tests: dict[str, list[Row]], drafts: list[Row], probes: dict[str, Probe]) -> None:
    """What the calibration found, and what came of the test questions."""
    about = probes["hidden"].report
    n = len(drafts)
    print(f"\nMax = {bench.most} tokens, {about['questions']} training questions, {n} test questions\n")
    table_head("level", "accuracy", "entropy")
    for level, row in enumerate(about["bins"], 1):
        table_row(level, f"{row['accuracy']:.3f}", f"{row['entropy']:.3f}")
    print(f"\nlabels {about['labels']}, thresholds {about['thresholds']}, tau {probes['hidden'].tau}")
    print("\n".join(about["warnings"]))
    normal, ours, names = tests["normal"], tests["probe"], list(bench.strategy.ways)
    best = _oracle(tests, names)
    others = _chosen_otherwise(tests, drafts, probes["text"], names)
    ways({**tests, **others, "oracle": _picked(tests, best)}, bench.most)
    print("\nby level, accuracy and tokens out (normal; probe), share of modes:")
    for level in range(1, LEVELS + 1):
        of = [i for i, row in enumerate(normal) if row["level"] == level]
        a, b = ([rows[i] for i in of] for rows in (normal, ours))
        shares = dict(Counter(row["mode"] for row in b))
        print(f"{level}: {_mean(a, 'right'):.2f} {_mean(a, 'out'):.1f}; {_mean(b, 'right'):.2f} "
              f"{_mean(b, 'out'):.1f}; {shares}")  # fmt: skip
    modes = [row["mode"] for row in ours]
    print("\noracle's choice by the probe's, test questions:", confusion(best, modes, names))
    print("fallbacks", fmean(row["why"] != "probe" for row in ours), "validation", about["fallbacks"])
    print("validation: labels by classes", about["confusion"])
    for name, probe in probes.items():
        worths = {key: round(value, 3) for key, value in probe.report["utility"].items()}
        print(f"validation utility, {name}: {worths}, T {probe.temperature:.2f}, tau {probe.tau}")
    print(f"8 % fewer tokens: {met(_mean(ours, 'out') <= 0.92 * _mean(normal, 'out'))}")
    _, low, _ = _gain(ours, normal)
    print(f"accuracy at worst {low:+.3f}, above -2 points: {met(low > -0.02)}")


def ways(table: dict[str, list[Row]], most_tokens: int) -> None:
    """The table of ways to choose a mode, beside the mode `normal` always."""
    normal = table["normal"]
    print()
    columns = ("way", "accuracy", "tokens out", "tokens in", "U", "out saved", "difference in accuracy")
    table_head(*columns, "truncated")
    for name, rows in table.items():
        gain, low, high = _gain(rows, normal)
        saved = 1 - _mean(rows, "out") / _mean(normal, "out")
        worth = fmean(row["right"] - LAMBDA * row["out"] / most_tokens for row in rows)
        table_row(
            name,
            f"{_mean(rows, 'right'):.3f}",
            f"{_mean(rows, 'out'):.1f}",
            f"{_mean(rows, 'in'):.0f}",
            f"{worth:+.3f}",
            f"{saved:.1%}",
            f"{gain:+.3f} ({low:+.3f} to {high:+.3f})",
            f"{_mean(rows, 'truncated'):.2f}",
        )


def _chosen_otherwise(
    tests: dict[str, list[Row]], drafts: Sequence[Row], text_probe: Probe, names: Sequence[str]
) -> dict[str, list[Row]]:
    """Modes at random, as often as by the probe; and by the probe on features of a text, which is a draft."""
    frequencies = Counter(row["mode"] for row in tests["probe"])
    drawn = Random(0).choices(list(frequencies), list(frequencies.values()), k=len(tests["normal"]))
    by_text = _picked(tests, [chosen(names, text_probe(row["text"]), text_probe.tau) for row in drafts])
    counted = [
        {**row, "out": row["out"] + draft["draft"]} for row, draft in zip(by_text, drafts, strict=True)
    ]
    return {
        "a random mode, same shares": _picked(tests, drawn),
        "text features, without the draft": by_text,
        "text features, draft counted": counted,
    }


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


def _gain(rows: Sequence[Row], base: Sequence[Row]) -> Interval:
    """Difference in accuracy on the same questions, with its interval."""
    return paired([row["right"] for row in rows], [row["right"] for row in base])


if __name__ == "__main__":
    sys.exit(main())
