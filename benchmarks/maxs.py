"""What does an agent gain by looking ahead, at equal settings and equal tokens, and what does halting save?

    python benchmarks/maxs.py toy                                  exact trees: halting at a calibrated δ
    python benchmarks/maxs.py real benchmarks/data/products.jsonl  the small model with calculator and Python
    python benchmarks/maxs.py real gsm8k/test.jsonl --recipe maxs-math --calculations 1

The plain agent is MAXS with one candidate and no look-ahead: the same prompt, sampling, tools and caps. δ is
the 30 % quantile of Var(R) on the first --dev problems; figures are of the rest. Accuracy with its 95 %
interval, and the difference to one row with that of a paired bootstrap.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from arguments import command, keeps_rows
from intervals import Interval, paired, told
from printing import met
from rows import Row

from abduce.orchestrator.evaluate import Problem, read_problems, wilson
from abduce.orchestrator.judge import same_answer
from abduce.orchestrator.recipe import read
from abduce.orchestrator.solve import Pipeline
from abduce.strategies.base import Result, Task
from abduce.strategies.foresight import calibrated
from abduce.strategies.maxs import MAXS
from abduce.strategies.toys import ToyTree, drain

QUANTILE = 0.3


def main() -> int:
    """Run one part, print its table."""
    parser = command(__doc__)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("toy")
    part.add_argument("--trees", type=int, default=2000)
    part.set_defaults(run=toy)
    part = parts.add_parser("real")
    part.add_argument("data", type=Path)
    part.add_argument("--recipe", default="maxs-products")
    part.add_argument("--calculations", type=int, help="GSM8K: only rows whose solution has so many")
    part.add_argument("--dev", type=int, default=15)
    part.add_argument("--limit", type=int, default=60)
    part.add_argument("--parallel", type=int, default=4)
    part.add_argument("--seed", type=int, default=0)
    keeps_rows(part, "build/maxs.jsonl")
    part.set_defaults(run=lambda options: asyncio.run(real(options)))
    options = parser.parse_args()
    return int(options.run(options))


# ---------------------------------------------------------------- exact trees


def toy(options: argparse.Namespace) -> int:
    """Random trees of known probabilities; right is the likeliest answer. Returns 1 if halting loses much."""
    trees = [ToyTree(3, 6, seed=seed) for seed in range(options.trees)]
    dev, test = trees[: len(trees) // 2], trees[len(trees) // 2 :]
    spreads = [spread for tree in dev for spread in _on(tree, delta=-1.0).diagnostics["variances"]]
    delta = calibrated(spreads, QUANTILE)
    print(f"{len(test)} trees of 6 steps, M = N = 4, δ = {delta:.6f} from {len(dev)} others\n")
    ways: dict[str, Row] = {
        "plain": {"candidates": 1, "lookahead": 0},
        "never halts": {"delta": -1.0},
        "δ calibrated": {"delta": delta},
        "δ calibrated, look-ahead discarded": {"delta": delta, "reuse_lookahead": False},
        "δ = 0.002": {},
        "without look-ahead": {"lookahead": 0, "delta": -1.0},
        "drawn, not the largest": {"select": "sample", "delta": -1.0},
    }
    rows: dict[str, list[Row]] = {name: [] for name in ways}
    for tree in test:
        likely = likeliest(tree)
        for name, settings in ways.items():
            result = _on(tree, **settings)
            facts = result.diagnostics
            right = result.answer == likely
            rows[name].append({"right": right, "tokens": facts["tokens"], "ahead": facts["n_ahead"]})
    table(rows, "never halts")
    ours, always = rows["δ calibrated"], rows["never halts"]
    gain, low, _ = gained(ours, always)
    dearer = sum(a["tokens"] > b["tokens"] for a, b in zip(ours, always, strict=True))
    held = gain >= -0.01 and not dearer
    print(f"\nloss {-gain:.3f} (bar 0.010, at worst {-low:.3f}), dearer on {dearer} trees: {met(held)}")
    return int(not held)


def _on(tree: ToyTree, **settings: Any) -> Result:
    return drain(MAXS(policy=tree, **settings).solve(Task("toy"), seed=tree.seed))


def likeliest(tree: ToyTree) -> Any:
    """The answer of largest probability, by enumeration."""
    shares: dict[Any, float] = {}
    for leaf, p in tree.leaves():
        shares[tree.answer(leaf)] = shares.get(tree.answer(leaf), 0.0) + p
    return max(shares, key=lambda answer: shares[answer])


# ---------------------------------------------------------------- the small model


async def real(options: argparse.Namespace) -> int:
    """The table on a file of problems; always 0: it says what was found."""
    problems = chosen(options)
    dev, test = problems[: options.dev], problems[options.dev :]
    runner = Runner(options)
    setting = f"{options.data.name}, {len(test)} problems ({len(dev)} others for δ), recipe {options.recipe}"
    print(f"{setting}, seed {options.seed}, {options.parallel} at a time", flush=True)
    before = await runner.all(dev, delta=-1.0)
    delta = calibrated([spread for row in before for spread in row["variances"]], QUANTILE)
    print(f"δ = {delta:.6f}, from {sum(len(row['variances']) for row in before)} decisions\n", flush=True)
    plain = await runner.all(test, candidates=1, lookahead=0)
    print(HEAD + "plain agent")
    line("plain agent", plain)
    always = await runner.all(test, delta=-1.0)
    line("MAXS, never halts", always, plain)
    votes = await runner.votes(test, [row["tokens"] for row in always])
    line("vote of plain agents, equal tokens", votes, plain)
    line("MAXS, δ calibrated", await runner.all(test, delta=delta), plain)
    line("MAXS, δ = 0.002", await runner.all(test), plain)
    line("MAXS without look-ahead", await runner.all(test, lookahead=0, delta=-1.0), plain)
    return 0


def chosen(options: argparse.Namespace) -> list[Problem]:
    """The problems; of GSM8K those with so many calculation marks in their solution."""
    problems = read_problems(options.data)
    if options.calculations is not None:
        lines = options.data.read_text().splitlines()
        problems = [p for p in problems if lines[p.line - 1].count("<<") == options.calculations]
    return problems[: options.limit]


class Runner:
    """Runs a recipe with other parameters, keeps what came of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        made = read(options.recipe, []).pipeline()
        assert isinstance(made, Pipeline) and isinstance(made.strategy, MAXS)
        self.pipeline, self.strategy = made, made.strategy

    async def all(self, problems: Sequence[Problem], **settings: Any) -> list[Row]:
        """One row for each problem."""
        pipeline = replace(self.pipeline, strategy=replace(self.strategy, **settings))

        async def one(problem: Problem) -> Row:
            result = await pipeline.asolve(_blind(problem), seed=self.options.seed)
            return _row(problem, result)

        return await self._kept(problems, lambda problem: settings, one)

    async def votes(self, problems: Sequence[Problem], tokens: Sequence[int]) -> list[Row]:
        """Plain agents, as many as the tokens of each problem pay for, and the most frequent answer."""
        agent = replace(self.strategy, candidates=1, lookahead=0)
        pipeline = replace(self.pipeline, strategy=agent)
        paid = dict(zip((problem.id for problem in problems), tokens, strict=True))

        async def one(problem: Problem) -> Row:
            answers: Counter[Any] = Counter()
            spent = seed = 0
            while spent < paid[problem.id]:
                result = await pipeline.asolve(_blind(problem), seed=self.options.seed + seed)
                spent, seed = spent + max(1, result.usage.output_tokens), seed + 1
                if result.answer is not None:
                    answers[result.answer] += 1
            best = max(answers, key=lambda answer: answers[answer], default=None)
            right = best is not None and same_answer(best, problem.answer)
            return {"right": right, "tokens": spent, "ahead": 0, "agents": seed}

        return await self._kept(problems, lambda problem: {"votes": paid[problem.id]}, one)

    async def _kept(
        self,
        problems: Sequence[Problem],
        settings: Callable[[Problem], dict[str, Any]],
        one: Callable[[Problem], Awaitable[Row]],
    ) -> list[Row]:
        options, rows = self.options, self.options.rows

        def run(problem: Problem) -> list[Any]:
            return [options.recipe, problem.task.question, options.seed, settings(problem)]

        found: list[Row] = await rows.each(problems, run, one, at_once=options.parallel)
        return found


def _blind(problem: Problem) -> Task:
    return replace(problem.task, checks=())


def _row(problem: Problem, result: Result) -> Row:
    facts = result.diagnostics
    gains = [gain for gain in facts["tool_advantage"] if gain is not None]
    return {
        "right": result.answer is not None and same_answer(result.answer, problem.answer),
        "tokens": result.usage.output_tokens,
        "calls": result.usage.tool_calls,
        "ahead": facts["n_ahead"],
        "variances": facts["variances"],
        "halted": facts["halted"],
        "tool_advantage": sum(gains) / len(gains) if gains else None,
        "text": result.text,
    }


# ---------------------------------------------------------------- tables


def share(rows: Sequence[Row]) -> float:
    """Answered right."""
    return fmean(row["right"] for row in rows)


def gained(rows: Sequence[Row], base: Sequence[Row]) -> Interval:
    """Difference in accuracy on the same problems, with its interval."""
    return paired([row["right"] for row in rows], [row["right"] for row in base], draws=2000)


HEAD = f"{'method':36} {'accuracy':>8}  {'95 % interval':15} {'tokens':>8} {'ahead':>7}  against "


def table(rows: dict[str, list[Row]], first: str) -> None:
    """All methods beside one of them."""
    print(HEAD + first)
    for name, found in rows.items():
        line(name, found, rows[first])


def line(name: str, found: Sequence[Row], base: Sequence[Row] | None = None) -> None:
    """Accuracy, mean tokens and look-ahead steps of a method, and how far it is from the base."""
    low, high = wilson(sum(row["right"] for row in found), len(found))
    against = ""
    if base is not None and base is not found:
        against = told(gained(found, base))
    mean = {key: sum(row[key] for row in found) / len(found) for key in ("tokens", "ahead")}
    figures = f"[{low:.3f}, {high:.3f}] {mean['tokens']:8.1f} {mean['ahead']:7.1f}"
    print(f"{name:36} {share(found):8.3f}  {figures}  {against}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
