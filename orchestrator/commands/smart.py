"""`abduce smart`: train the router that chooses the first strategy, look at it, carry its data elsewhere."""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ...serving.errors import UsageError
from ...strategies.base import Check, Task
from ...strategies.smart import SMART
from ...strategies.smart.export import records
from ...strategies.smart.features import features, signature
from ...strategies.smart.log import Log
from ...strategies.smart.off_policy import evaluate
from ...strategies.smart.router import Attempt, Learning
from .. import trace
from ..background import wait_for
from ..evaluate import Problem, read_problems
from ..solve import Pipeline
from .options import recipe_of
from .solve import fetch_models, store


def train(chosen: argparse.Namespace) -> int:
    """Solve problem after problem, each with the router that the ones before have made."""
    learning = Learning(learn=chosen.learn, gamma=_number("--gamma", chosen.gamma))
    problems = read_problems(Path(chosen.data), chosen.limit)
    recipe = recipe_of(chosen)
    pipeline = recipe.pipeline()
    if not isinstance(pipeline, Pipeline) or not isinstance(pipeline.strategy, SMART):
        raise UsageError("The recipe must have smart as its only step. Write --recipe smart-math.")
    pipeline = replace(pipeline, strategy=replace(pipeline.strategy, router=chosen.router, version=None))
    fetch_models(pipeline)
    wait_for(_trained(pipeline, Log(chosen.router), problems, learning, recipe.seed, chosen.parallel))
    return stats(chosen)


async def _trained(
    pipeline: Pipeline, log: Log, problems: Sequence[Problem], learning: Learning, seed: int, parallel: int
) -> None:
    model = _model(pipeline.settings)
    for i in range(0, len(problems), parallel):
        group = problems[i : i + parallel]
        results = await asyncio.gather(*(pipeline.asolve(known(p), seed=seed) for p in group))
        for problem, result in zip(group, results, strict=True):
            told = {"trace": problem.id, "model": model, "ts": time.time()}
            rows = [Attempt.of(row, **told) for row in result.diagnostics.get("attempts", ())]
            if rows:
                log.append(rows, learning=learning)
            order = " ► ".join(row.arm for row in rows) or "nothing tried"
            right = "right" if result.diagnostics.get("solved") else "wrong"
            print(f"{problem.id}: {order}, {right}", file=sys.stderr)


def known(problem: Problem) -> Task:
    """The problem, with its answer as a check."""
    if problem.task.checks or not problem.answer:
        return problem.task
    return replace(problem.task, checks=(Check("equals", {"value": problem.answer}),))


def learn(chosen: argparse.Namespace) -> int:
    """Append the attempts of kept runs, each run once."""
    if chosen.outcome not in (None, "right", "wrong"):
        raise UsageError(f"--outcome is right or wrong, got {chosen.outcome!r}.")
    log = Log(chosen.router)
    seen = {row.trace for row in log.rows() if row.y is not None} if log.exists() else set()
    fresh: list[Attempt] = []
    for name in chosen.runs:
        run = store().open(name)
        rows = trace.read(run.trace)
        found = [row["data"] for row in rows if row["event"] == "noted" and row["note"] == "attempt"]
        if not found:
            raise UsageError(f"The run {name} has no attempts of the strategy smart. Name one that has.")
        began: Mapping[str, Any] = next(
            (row.get("settings", {}) for row in rows if row["event"] == "run_started"), {}
        )
        made = [Attempt.of(row, trace=run.id, ts=time.time(), model=_model(began)) for row in found]
        if chosen.outcome:
            made[-1] = replace(made[-1], y=int(chosen.outcome == "right"), kind="user", c=1.0)
        fresh += [row for row in made if row.trace not in seen]
    if not fresh:
        raise UsageError("All these runs have been learnt from already.")
    if not any(row.y is not None for row in fresh):
        raise UsageError(
            "Nobody has said whether these were right. Say it: --outcome right, or --outcome wrong."
        )
    router = log.append(fresh)
    print(f"abduce: learnt from {len(fresh)} attempts; {chosen.router} has {router.version}", file=sys.stderr)
    return 0


def stats(chosen: argparse.Namespace) -> int:
    """Arms, and what first attempts say of each fixed choice and of the frozen router."""
    log = Log(chosen.router)
    rows, router = log.rows(), log.router()
    first = [row for row in rows if row.attempt == 1 and row.y is not None]
    arms = list(dict.fromkeys(arm for row in rows for arm in row.arms))
    n_problems = len({row.prompt for row in rows})
    print(f"{len(rows)} attempts at {n_problems} problems, learn: {router.learning.learn}")
    print(f"{'arm':12} {'first':>6} {'right':>6} {'tokens':>7}  expected reward if always chosen first")
    for arm in arms:
        own = [row.y or 0 for row in first if row.arm == arm]
        share = f"{fmean(own):.3f}" if own else "-"
        tokens = router.expected_tokens(arm)
        value = _value(rows, {arm: 1.0})
        print(f"{arm:12} {len(own):6} {share:>6} {'-' if tokens is None else f'{tokens:.0f}':>7}  {value}")
    later = Counter(row.arm for row in rows if row.attempt > 1 and row.y)
    solved = {row.prompt for row in rows if row.y}
    print(f"solved {len(solved)} problems, {sum(later.values())} of them after a first attempt had failed")
    return 0


def _value(rows: Sequence[Attempt], pi: Mapping[str, float]) -> str:
    try:
        found = evaluate(rows, lambda row: pi)
    except UsageError:
        return "too little logged to say"
    return f"{found.dr.value:.3f} ± {1.96 * found.dr.se:.3f} (doubly robust, ESS {found.ess:.0f})"


def export(chosen: argparse.Namespace) -> int:
    """Training data of the rows that hold their texts."""
    made = records(Log(chosen.router).rows(), select=chosen.select, cap=chosen.cap)
    made.write(chosen.folder)
    counts = f"{len(made.sft)} solutions, {len(made.pairs)} pairs, {len(made.router)} problems of all arms"
    print(f"abduce: wrote {counts} to {chosen.folder}", file=sys.stderr)
    return 0


def rebuild(chosen: argparse.Namespace) -> int:
    """A new file from the questions of an old one."""
    log, new = Log(chosen.router), Log(chosen.new)
    if new.exists():
        raise UsageError(f"{chosen.new} is there already. Name a file that is not.")
    rows = [row for row in log.rows() if row.question]
    fresh = [
        replace(row, phi=features(row.question, tag=row.task), signature=signature(0), r=None, w=None)
        for row in rows
    ]
    new.append(fresh, learning=log.router().learning)
    print(f"abduce: wrote {len(fresh)} attempts to {chosen.new}", file=sys.stderr)
    return 0


def reset(chosen: argparse.Namespace) -> int:
    """An empty router again."""
    Log(chosen.router).reset()
    return 0


def _model(settings: Mapping[str, Any]) -> str:
    """The model of a run, as its settings write it."""
    spec = settings.get("recipe", settings).get("model", "embedded")
    return spec if isinstance(spec, str) else json.dumps(spec, sort_keys=True, default=str)


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{option} is a number, got {text!r}.") from None
