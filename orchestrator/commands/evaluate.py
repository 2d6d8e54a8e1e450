"""`abduce eval`: a strategy on a file of problems, with a progress bar and a table."""

import argparse
import json
import sys
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...serving.errors import UsageError
from ..background import wait_for
from ..evaluate import Outcome, Report, Results, evaluate, header, read_problems
from ..recipe import Recipe
from .options import recipe_of
from .show import show
from .solve import fetch_models
from .spans import spans
from .working import new_file, progress


def run(chosen: argparse.Namespace) -> int:
    """Evaluate, or go on with an evaluation."""
    data = Path(chosen.data)
    if chosen.resume and not chosen.out:
        raise UsageError("--resume needs the file to go on with: --out FILE.")
    problems = read_problems(data, chosen.limit)
    recipe = recipe_of(chosen)
    pipeline = recipe.pipeline()
    fetch_models(pipeline)
    out = Path(chosen.out) if chosen.out else new_file("evals", f"{data.stem}-{recipe.strategy.name}")
    results = Results(out, header(pipeline, data, recipe.seed), resume=chosen.resume)
    began = perf_counter()
    try:
        with progress() as bar, spans(chosen) as telemetry:
            known = [results.outcomes[p.id] for p in problems if p.id in results.outcomes]
            done = [outcome for outcome in known if not outcome.error]
            correct = sum(outcome.correct for outcome in done)
            line = bar.add_task(
                recipe.strategy.name, total=len(problems), completed=len(done), told=f"{correct} right"
            )

            def advance(outcome: Outcome) -> None:
                nonlocal correct
                correct += outcome.correct
                bar.update(line, advance=1, told=f"{correct} right")

            work = evaluate(
                pipeline,
                problems,
                results,
                seed=recipe.seed,
                parallel=chosen.parallel,
                progress=advance,
                observers=() if telemetry is None else (telemetry,),
            )
            report = wait_for(work)
    except KeyboardInterrupt:
        print(
            f"\nabduce: stopped; {len(results.outcomes)} problems are in {out}. Go on with the same command "
            f"and: --out {out} --resume",
            file=sys.stderr,
        )
        return 130
    finally:
        results.close()
    _print(report, recipe, data, perf_counter() - began, chosen.json)
    print(f"abduce: results are in {out}", file=sys.stderr)
    return 0 if report.errors < report.n else 1


def _print(report: Report, recipe: Recipe, data: Path, wall_s: float, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"strategy": recipe.strategy.name, "wall_s": wall_s, **report.to_json()}, indent=2))
        return
    low, high = report.interval
    usage, n = report.usage, report.n
    title = f"{recipe.strategy.name} on {data.name}, model {recipe.model.name}, seed {recipe.seed}"
    rows = [
        ("accuracy", f"{report.accuracy:.3f}  [{low:.3f}, {high:.3f}]  ({report.correct} of {n})"),
        ("pass@N", f"{report.any_correct / n:.3f}  (N = {report.candidates / n:.1f} candidates on average)"),
        ("tokens in", f"{usage.input_tokens:,}  (of these cached: {usage.cached_tokens:,})"),
        ("tokens out", f"{usage.output_tokens:,}"),
        ("calls", f"{usage.calls:,}"),
        ("reward passes", f"{usage.reward_passes:,}"),
        ("tool calls", f"{usage.tool_calls:,}") if usage.tool_calls else ("", ""),
        ("wall time", f"{wall_s:.1f} s  ({report.seconds / n:.2f} s a problem)"),
        ("incomplete", f"{report.incomplete}") if report.incomplete else ("", ""),
        ("errors", f"{report.errors}, counted as wrong") if report.errors else ("", ""),
    ]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows:
        if name:
            table.add_row(Text(name, style="dim"), Text(value))
    Console(highlight=False).print(Text(title, style="bold"), soft_wrap=True)
    show(table)
