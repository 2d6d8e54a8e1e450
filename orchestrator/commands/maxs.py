"""`abduce maxs calibrate`: at what variance of the rewards should look-ahead stop, on this model?"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...serving.errors import UsageError
from ...strategies.foresight import calibrated
from ...strategies.maxs import MAXS
from ..background import wait_for
from ..evaluate import Problem, read_problems
from ..solve import Pipeline
from .options import recipe_of
from .solve import fetch_models


def calibrate(chosen: argparse.Namespace) -> int:
    """Run a recipe on problems without ever halting, and print the quantile of Var(R) as a parameter."""
    quantile = _share(chosen.quantile)
    problems = read_problems(Path(chosen.data), chosen.limit)
    recipe = recipe_of(chosen)
    pipeline = recipe.pipeline()
    if not isinstance(pipeline, Pipeline) or not isinstance(pipeline.strategy, MAXS):
        raise UsageError(
            "The recipe must have maxs as its only step. Write --recipe maxs-math, or --strategy maxs."
        )
    fetch_models(pipeline)
    always = replace(pipeline, strategy=replace(pipeline.strategy, delta=-1.0))
    spreads = wait_for(variances(always, problems, seed=recipe.seed, parallel=chosen.parallel))
    delta = calibrated(spreads, quantile)
    now = sum(spread <= pipeline.strategy.delta for spread in spreads) / len(spreads)
    print(f"delta: {delta:.3g}")
    print(
        f"abduce: of {len(spreads)} decisions on {len(problems)} problems, look-ahead would have stopped at "
        f"{quantile:.0%}; with delta: {pipeline.strategy.delta:g} at {now:.0%}",
        file=sys.stderr,
    )
    return 0


async def variances(
    pipeline: Pipeline, problems: Sequence[Problem], *, seed: int, parallel: int
) -> list[float]:
    """Var(R) of every decision on the problems, in their order."""
    gate = asyncio.Semaphore(parallel)

    async def one(problem: Problem) -> list[float]:
        async with gate:
            result = await pipeline.asolve(problem.task, seed=seed)
        found: list[float] = result.diagnostics.get("variances", [])
        return found

    rows = await asyncio.gather(*(one(problem) for problem in problems))
    return [spread for row in rows for spread in row]


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"--quantile is a share from 0 to 1, such as 0.3, got {text!r}.")
    return value
