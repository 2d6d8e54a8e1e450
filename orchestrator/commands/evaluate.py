"""`abduce eval`: a strategy on a file of problems, with a progress bar and a table."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...serving.errors import UsageError
from ..against import Against, against, outcomes_in
from ..background import wait_for
from ..doors import Doors
from ..evaluate import Outcome, Problem, Report, Results, evaluate, header, read_problems
from ..ledger import Budget
from ..recipe import Recipe
from ..search_view import clean
from .options import recipe_of
from .show import show
from .solve import fetch_models, store
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
    total = Budget.parse(chosen.total) if chosen.total else None
    made_from = header(pipeline, data, recipe.seed)
    theirs = outcomes_in(Path(chosen.against), made_from["sha256"]) if chosen.against else {}
    results = Results(out, made_from, resume=chosen.resume)
    began = perf_counter()
    try:
        report = _evaluated(pipeline, problems, results, recipe, chosen, total)
    except KeyboardInterrupt:
        print(
            f"\nabduce: stopped; {len(results.outcomes)} problems are in {out}. Go on with the same command "
            f"and: --out {out} --resume",
            file=sys.stderr,
        )
        return 130
    finally:
        results.close()
    wall_s, compared = perf_counter() - began, None
    if chosen.against and report.n:
        outcomes = {p.id: results.outcomes[p.id] for p in problems if p.id in results.outcomes}
        compared = against(outcomes, theirs)
    if report.n:
        _print(report, recipe, data, wall_s, compared, chosen.json)
    for advice in _advice(report, len(problems), out):
        print(f"abduce: {advice}", file=sys.stderr)
    return 0 if report.errors < report.n else 1


def _evaluated(
    pipeline: Doors,
    problems: Sequence[Problem],
    results: Results,
    recipe: Recipe,
    chosen: argparse.Namespace,
    total: Budget | None,
) -> Report:
    """The work, with its bar."""
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

        return wait_for(
            evaluate(
                pipeline,
                problems,
                results,
                seed=recipe.seed,
                parallel=chosen.parallel,
                progress=advance,
                observers=() if telemetry is None else (telemetry,),
                store=store() if chosen.keep else None,
                total=total,
            )
        )


def _advice(report: Report, n: int, out: Path) -> Iterator[str]:
    """What else there is to say."""
    if report.n < n:
        begun = f"the total is used up; {n - report.n} of {n} problems were not begun"
        yield f"{begun}. Go on with a larger --total and: --out {out} --resume"
    again = f". Where a call failed, --out {out} --resume asks again" if report.errors else ""
    yield f"results are in {out}{again}"
    if report.n and 2 * report.unread > report.n:
        yield (
            f"{report.unread} answers are of another kind than the right ones. --policy cot reads numbers, "
            "words what stands after 'answer is', math formulas, choice letters, plain the whole text"
        )


def _print(
    report: Report, recipe: Recipe, data: Path, wall_s: float, compared: Against | None, as_json: bool
) -> None:
    if as_json:
        told = {"strategy": recipe.strategy.name, "wall_s": wall_s, **report.to_json()}
        told |= {} if compared is None else {"against": compared.to_json()}
        print(json.dumps(told, indent=2))
        return
    low, high = report.interval
    usage, n = report.usage, report.n
    title = f"{recipe.strategy.name} on {data.name}, model {recipe.model.name}, seed {recipe.seed}"
    rows = [
        ("accuracy", f"{report.accuracy:.3f}  [{low:.3f}, {high:.3f}]  ({report.correct} of {n})"),
        ("against", "" if compared is None else str(compared)),
        ("pass@N", f"{report.any_correct / n:.3f}  (N = {report.candidates / n:.1f} candidates on average)"),
        ("tokens in", f"{usage.input_tokens:,}  (of these cached: {usage.cached_tokens:,})"),
        ("tokens out", f"{usage.output_tokens:,}"),
        ("calls", f"{usage.calls:,}"),
        ("reward passes", f"{usage.reward_passes:,}"),
        ("tool calls", f"{usage.tool_calls:,}" if usage.tool_calls else ""),
        ("cost", f"{usage.cost_usd:,.4g} USD" if usage.cost_usd else ""),
        ("wall time", f"{wall_s:.1f} s  ({report.seconds / n:.2f} s a problem)"),
        ("incomplete", f"{report.incomplete}{_mostly(report.stopped)}" if report.incomplete else ""),
        ("errors", f"{report.errors}, counted as wrong{_mostly(report.error)}" if report.errors else ""),
    ]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows:
        if value:
            table.add_row(Text(name, style="dim"), Text(value))
    Console(highlight=False).print(Text(title, style="bold"), soft_wrap=True)
    show(table)


def _mostly(reason: str) -> str:
    return f": mostly {clean(reason)[:300]}" if reason else ""
