"""`abduce diffadapt fit`: train the probe that tells easy questions from hard ones, on this model."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from statistics import fmean
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
from ..evaluate import Problem, header, read_problems
from ..judge import judge
from ..recipe import Recipe
from ..rows import Rows
from ..solve import Pipeline
from ..together import together
from .options import recipe_of
from .solve import fetch_models
from .working import new_file, progress

VALIDATION = 0.3
"""Share of the problems that every choice is judged on: ours; the paper says "a small validation set"."""


def fit(chosen: argparse.Namespace) -> int:
    """Solve problems several times over, train a probe on what came of it, write its file and say how good
    it is."""
    numeric()
    if chosen.resume and not chosen.rows:
        raise UsageError("--resume needs the file to go on with: --rows FILE.")
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
    probe = _trained(pipeline, problems, recipe.seed, chosen)
    if probe is None:
        return 130
    save(probe, chosen.out, key=key)
    print("\n".join(told(probe)))
    for warning in probe.report["warnings"]:
        print(f"abduce: {warning}", file=sys.stderr)
    print(f"abduce: the probe is in {chosen.out}. Use it with: --set strategy.probe={chosen.out}",
          file=sys.stderr)  # fmt: skip
    return 0


def _trained(
    pipeline: Pipeline, problems: Sequence[Problem], seed: int, chosen: argparse.Namespace
) -> Probe | None:
    """The probe; None if the user stopped it. What is solved is kept in a file meanwhile."""
    data = Path(chosen.data)
    file = Path(chosen.rows) if chosen.rows else new_file("fits", f"{data.stem}-diffadapt")
    names = ("limit", "samples", "features", "labels", "pseudo")
    made_from = header(pipeline, data, seed) | {name: getattr(chosen, name) for name in names}
    rows = Rows(file, "fit", made_from, resume=chosen.resume, command="abduce diffadapt fit", option="--rows")
    known = _known(rows)
    how = {"kind": chosen.features, "labels": chosen.labels, "pseudo": chosen.pseudo, "seed": seed}
    try:
        with progress() as bar:
            line = bar.add_task("diffadapt", total=len(problems), completed=len(known), told=_right(known))

            def keep(name: str, question: Question) -> None:
                rows.add({"id": name, **asdict(question)})
                bar.update(line, advance=1, told=_right(known))

            counts = {"samples": chosen.samples, "parallel": chosen.parallel}
            return wait_for(trained_on(pipeline, problems, known, keep, **counts, **how))
    except (KeyboardInterrupt, EngineError) as stopped:
        there = f"{len(known)} problems are in {file}"
        print(
            f"\nabduce: stopped; {there}. Go on with the same command and: --rows {file} --resume",
            file=sys.stderr,
        )
        if isinstance(stopped, EngineError):
            raise
        return None
    finally:
        rows.close()


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
    known: dict[str, Question],
    keep: Callable[[str, Question], None],
    *,
    kind: Kind,
    samples: int,
    labels: Literal["proxy", "oracle"],
    pseudo: bool,
    parallel: int,
    seed: int,
    how: Fitting | None = None,
) -> Probe:
    """A probe from rollouts of the problems, a share of which is kept for validation. What is `known`, by id,
    is not solved again; what is new is added to it and given to `keep`.

    Validation problems are solved `samples` times in every mode, the others in the normal mode only unless
    the labels are the oracle's.
    """
    strategy = pipeline.strategy
    assert isinstance(strategy, DiffAdapt)
    order = list(problems)
    Random(derive(seed, "validation")).shuffle(order)
    n_held = int(VALIDATION * len(order))
    waiting = iter([each for each in enumerate(order) if each[1].id not in known])

    async def one(problem: Problem, every: bool) -> Question:
        counts = {mode: samples for mode in strategy.ways.values() if every or mode.name == "normal"}
        here = derive(seed, problem.id)
        flow = observe(strategy.policy, problem.task, counts, kind=kind, seed=here)
        features, drawn = await Driver(pipeline.services, seed=here).run(flow)
        return Question(features, {name: _judged(problem, each, pseudo) for name, each in drawn.items()})

    async def worker() -> None:
        for place, problem in waiting:
            question = await one(problem, place < n_held or labels == "oracle")
            known[problem.id] = question
            keep(problem.id, question)

    await together(worker() for _ in range(parallel))
    asked = [known[problem.id] for problem in order]
    state = await _reference(pipeline, strategy, seed) if kind == "hidden" else ()
    modes = tuple(strategy.ways.values())
    signature = Signature(kind, layout(strategy.policy, kind), digest(modes), state)
    most = plain(strategy.policy).most_tokens(order[0].task)
    source = "pseudo" if pseudo else "gold"
    return train(
        asked[n_held:], asked[:n_held], modes, signature, most_tokens=most, labels=labels, source=source,
        how=how or Fitting(seed=seed),
    )  # fmt: skip


async def _reference(pipeline: Pipeline, strategy: DiffAdapt, seed: int) -> tuple[float, ...]:
    """The state of the reference question."""
    reading = await Driver(pipeline.services, seed=seed).run(read_reference(strategy.policy))
    if reading.failure is not None:
        raise EngineError(f"The reference question could not be read: {reading.failure.message}")
    return reading.values


def _known(rows: Rows) -> dict[str, Question]:
    """The questions that were solved before, by id."""
    try:
        return {
            row["id"]: Question(
                tuple(row["features"]),
                {mode: [Rollout(**each) for each in drawn] for mode, drawn in row["runs"].items()},
                row["level"],
            )
            for row in rows.rows
        }
    except (KeyError, TypeError, AttributeError):
        rows.close()
        raise rows.foreign() from None


def _right(known: Mapping[str, Question]) -> str:
    accuracies = [question.accuracy() for question in known.values() if question.runs.get("normal")]
    return f"{fmean(accuracies):.0%} right" if accuracies else ""


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
