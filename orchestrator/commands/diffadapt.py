"""`abduce diffadapt fit`: train the probe that tells easy questions from hard ones, on this model."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

from ...serving import settings
from ...serving.errors import EngineError, MissingCapability, UsageError
from ...serving.seeds import derive
from ...strategies.diffadapt import DiffAdapt
from ...strategies.diffadapt.collect import NEEDS, Sample, observe
from ...strategies.diffadapt.features import Kind, layout, read_reference
from ...strategies.diffadapt.file import save
from ...strategies.diffadapt.fitting import Fitting
from ...strategies.diffadapt.labels import Question, Rollout, plurality
from ...strategies.diffadapt.modes import digest, plain
from ...strategies.diffadapt.probe import Probe, Signature, numeric
from ...strategies.diffadapt.training import train
from ..background import wait_for
from ..driver import Driver
from ..evaluate import Problem, read_problems
from ..judge import judge
from ..recipe import Recipe
from ..solve import Pipeline
from .options import recipe_of
from .solve import fetch_models

VALIDATION = 0.3
"""Share of the problems that every choice is judged on: ours; the paper says "a small validation set"."""


def fit(chosen: argparse.Namespace) -> int:
    """Solve problems several times over, train a probe on what came of it, write its file and say how good
    it is."""
    numeric()
    problems = read_problems(Path(chosen.data), chosen.limit)
    recipe = _without_probe(chosen)
    pipeline = recipe.pipeline()
    if not isinstance(pipeline, Pipeline) or not isinstance(pipeline.strategy, DiffAdapt):
        raise UsageError(
            "The recipe must have diffadapt as its only step. Write --recipe diffadapt-products, or "
            "--strategy diffadapt."
        )
    able(pipeline, chosen.features)
    key = settings.secret(chosen.key_env) if chosen.key_env else None
    if chosen.key_env and not key:
        raise UsageError(f"The environment variable {chosen.key_env} is not set: --key-env names the key.")
    fetch_models(pipeline)
    how = {"kind": chosen.features, "labels": chosen.labels, "pseudo": chosen.pseudo, "seed": recipe.seed}
    trained = trained_on(pipeline, problems, samples=chosen.samples, parallel=chosen.parallel, **how)
    probe = wait_for(trained)
    save(probe, chosen.out, key=key)
    print("\n".join(told(probe)))
    for warning in probe.report["warnings"]:
        print(f"abduce: {warning}", file=sys.stderr)
    print(f"abduce: the probe is in {chosen.out}. Use it with: --set strategy.probe={chosen.out}",
          file=sys.stderr)  # fmt: skip
    return 0


def _without_probe(chosen: argparse.Namespace) -> Recipe:
    """The recipe that was named; the probe that it names need not exist yet."""
    settings = chosen.settings
    chosen.settings = [*settings, 'strategy.probe=""']
    try:
        return recipe_of(chosen)
    except UsageError:  # another strategy's recipe, or another mistake, told without a word of ours
        chosen.settings = settings
        return recipe_of(chosen)


def able(pipeline: Pipeline, kind: Kind) -> None:
    """Raise MissingCapability where the engine cannot give what training needs."""
    engine = pipeline.services.engine("policy")
    if missing := NEEDS[kind] - engine.capabilities:
        raise MissingCapability(
            f"The engine {engine.name!r} cannot {' or '.join(sorted(missing))}, which training a probe on "
            f"{kind} features needs. The engines embedded, transformers and sglang can."
        )


async def trained_on(
    pipeline: Pipeline,
    problems: Sequence[Problem],
    *,
    kind: Kind,
    samples: int,
    labels: Literal["proxy", "oracle"],
    pseudo: bool,
    parallel: int,
    seed: int,
    how: Fitting | None = None,
) -> Probe:
    """A probe from rollouts of the problems, a share of which is kept for validation.

    Validation problems are solved `samples` times in every mode, the others in the normal mode only unless
    the labels are the oracle's.
    """
    strategy = pipeline.strategy
    assert isinstance(strategy, DiffAdapt)
    order = list(problems)
    Random(derive(seed, "validation")).shuffle(order)
    n_held = int(VALIDATION * len(order))
    gate = asyncio.Semaphore(parallel)

    async def one(problem: Problem, every: bool) -> Question:
        counts = {mode: samples for mode in strategy.ways.values() if every or mode.name == "normal"}
        here = derive(seed, problem.id)
        flow = observe(strategy.policy, problem.task, counts, kind=kind, seed=here)
        async with gate:
            features, drawn = await Driver(pipeline.services, seed=here).run(flow)
        return Question(features, {name: _judged(problem, each, pseudo) for name, each in drawn.items()})

    held = await asyncio.gather(*(one(problem, True) for problem in order[:n_held]))
    rest = await asyncio.gather(*(one(problem, labels == "oracle") for problem in order[n_held:]))
    state: tuple[float, ...] = ()
    if kind == "hidden":
        reading = await Driver(pipeline.services, seed=seed).run(read_reference(strategy.policy))
        if reading.failure is not None:
            raise EngineError(f"The reference question could not be read: {reading.failure.message}")
        state = reading.values
    modes = tuple(strategy.ways.values())
    signature = Signature(kind, layout(strategy.policy, kind), digest(modes), state)
    most = plain(strategy.policy).most_tokens(order[0].task)
    source = "pseudo" if pseudo else "gold"
    return train(
        rest, held, modes, signature, most_tokens=most, labels=labels, source=source,
        how=how or Fitting(seed=seed),
    )  # fmt: skip


def _judged(problem: Problem, drawn: Sequence[Sample], pseudo: bool) -> list[Rollout]:
    right = (
        plurality([sample.answer for sample in drawn])
        if pseudo
        else [s.answer is not None and judge(problem.task, problem.answer, s.answer, s.text) for s in drawn]
    )
    return [Rollout(correct, s.n_tokens, s.entropy) for correct, s in zip(right, drawn, strict=True)]


def told(probe: Probe) -> list[str]:
    """What is in a probe's report, for people."""
    report: Any = probe.report
    lines = ["difficulty   n  accuracy  entropy"]
    for i, row in enumerate(report["bins"], 1):
        lines.append(f"{i:10} {row['n']:3}  {row['accuracy']:8.3f}  {row['entropy']:7.3f}")
    labels = ", ".join(f"{name} {n}" for name, n in sorted(report["labels"].items()))
    lines.append(f"labels ({report['source']}): {labels}")
    if report["thresholds"]:
        lines.append("thresholds: " + ", ".join(f"{k} {v:.3g}" for k, v in report["thresholds"].items()))
    lines.append(f"tau: {probe.tau:g}; below it {report['fallbacks']:.0%} of the validation questions")
    worths = sorted(report["utility"].items(), key=lambda item: -item[1])
    lines.append("utility: " + ", ".join(f"{name} {value:.3f}" for name, value in worths))
    return lines
