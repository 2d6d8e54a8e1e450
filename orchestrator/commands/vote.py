"""`abduce vote calibrate`: does re-weighting a vote by length and markers gain on this model?"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from ...serving.errors import UsageError
from ...serving.seeds import derive
from ...strategies.base import Result
from ...strategies.reweighted_vote import ReweightedVote
from ...strategies.vote_calibration import Labelled, calibrate
from ...strategies.vote_weights import Features
from ..background import wait_for
from ..evaluate import Problem, read_problems
from ..judge import judge
from ..solve import Pipeline
from .options import recipe_of
from .solve import fetch_models


def run(chosen: argparse.Namespace) -> int:
    """Run a recipe on problems of known answer, and print what was found as a parameter of its strategy."""
    problems = read_problems(Path(chosen.data), chosen.limit)
    recipe = recipe_of(chosen)
    pipeline = recipe.pipeline()
    if not isinstance(pipeline, Pipeline) or not isinstance(pipeline.strategy, ReweightedVote):
        raise UsageError(
            "The recipe must have reweighted_vote as its only step. Write --recipe reweighted-math, or "
            "--strategy reweighted_vote."
        )
    if unknown := [problem.line for problem in problems if not (problem.answer or problem.task.checks)]:
        raise UsageError(f"{chosen.data}:{unknown[0]}: the row has neither 'answer' nor 'checks'.")
    strategy = pipeline.strategy
    use = chosen.use or ("weights" if strategy.use == "ties" else strategy.use)
    plain = replace(pipeline, strategy=replace(strategy, use="ties", calibration=None))
    fetch_models(pipeline)
    pools = wait_for(labelled(plain, problems, seed=recipe.seed, parallel=chosen.parallel))
    found = calibrate(pools, use=use, b=strategy.b, keep=strategy.keep)
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(found).items()}
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
    if not found.fit:
        del rounded["fit"], rounded["auc"]
    print(
        yaml.safe_dump({"use": use, "calibration": rounded}, sort_keys=False, default_flow_style=None), end=""
    )
    verdict = found.refuses(use)
    print(
        f"abduce: {len(pools)} problems: majority {found.majority:.3f}, re-weighted {found.reweighted:.3f}; "
        + (f"the vote will stay a majority: {verdict}" if verdict else "the vote will be re-weighted"),
        file=sys.stderr,
    )
    return 0


async def labelled(
    pipeline: Pipeline, problems: Sequence[Problem], *, seed: int, parallel: int
) -> list[Labelled]:
    """The pools of the problems, in their order, without those that no solution was drawn for."""
    gate = asyncio.Semaphore(parallel)

    async def one(problem: Problem) -> tuple[Problem, Result]:
        async with gate:
            return problem, await pipeline.asolve(problem.task, seed=derive(seed, "eval", problem.id))

    rows = await asyncio.gather(*(one(problem) for problem in problems))
    return [_pool(problem, result) for problem, result in rows if result.diagnostics.get("features")]


def _pool(problem: Problem, result: Result) -> Labelled:
    """All right answers are one: they may be written in several ways."""
    answers = [
        _RIGHT if c.answer is not None and judge(problem.task, problem.answer, c.answer, c.text) else c.answer
        for c in result.candidates
    ]
    seen = tuple(Features(*row) for row in result.diagnostics["features"])
    return Labelled(tuple(answers), seen, _RIGHT)


_RIGHT = ("right",)  # equal to no answer's text
