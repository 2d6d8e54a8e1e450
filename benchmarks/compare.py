"""How good are recipes on one file of problems, and at what cost? As `abduce eval` measures them, in a table.

    python benchmarks/compare.py benchmarks/data/products.jsonl one-sample-products best-of-n-products …
    python benchmarks/compare.py gsm8k/test.jsonl --limit 20 --set budget.tokens=3000 one-sample-math …

The last line names the recipes that no other beats for as few tokens; --plot FILE draws accuracy over tokens.
The first recipe is the baseline: "clear" marks intervals that do not overlap with its own. Results are kept
in --out, a folder, and gone on with when the command is given again.
"""

import argparse
import sys
from pathlib import Path
from time import perf_counter

from arguments import command

from abduce.orchestrator.background import wait_for
from abduce.orchestrator.evaluate import Outcome, Problem, Report, Results, evaluate, header, read_problems
from abduce.orchestrator.recipe import read
from abduce.orchestrator.tradeoff import Point, on_frontier, plot


def main() -> int:
    """Run what has not been run, print the table."""
    parser = command(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("build/compare"))
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    options = parser.parse_args()
    problems = read_problems(options.data, options.limit)
    setting = f"{len(problems)} problems, seed {options.seed}, {options.parallel} at a time"
    print(", ".join((options.data.name, setting, *options.settings)) + "\n")
    print(
        f"{'recipe':26} {'accuracy':>8}  {'95 % interval':15} {'pass@N':>6} {'in':>8} {'cached':>8} "
        f"{'out':>7} {'calls':>6} {'passes':>6} {'s/problem':>9}  against the first"
    )
    first: Report | None = None
    points = []
    for name in options.recipes:
        report = measured(name, options.data, problems, options)
        first = first or report
        print(line(name, report, first), flush=True)
        tokens = report.usage.input_tokens + report.usage.output_tokens
        points.append(Point(name, tokens / report.n, report.accuracy, report.interval))
    best = [point.name for point, on in zip(points, on_frontier(points), strict=True) if on]
    print(f"\nfrontier of accuracy and tokens, prompts included: {', '.join(best)}")
    if options.plot:
        plot(points, options.plot)
    return 0


def measured(name: str, data: Path, problems: list[Problem], options: argparse.Namespace) -> Report:
    """One recipe's figures."""
    pipeline = read(name, options.settings).pipeline()
    file = options.out / f"{data.stem}-{name}-{options.limit or 'all'}-{options.seed}.jsonl"
    results = Results(file, header(pipeline, data, options.seed), resume=file.exists())
    began = perf_counter()

    def tell(outcome: Outcome) -> None:
        done = f"{len(results.outcomes)} of {len(problems)}"
        if sys.stderr.isatty():
            print(f"{name}: {done}, {perf_counter() - began:.0f} s", end="\r", file=sys.stderr)

    try:
        work = evaluate(
            pipeline, problems, results, seed=options.seed, parallel=options.parallel, progress=tell
        )
        return wait_for(work)
    finally:
        results.close()


def line(name: str, report: Report, first: Report) -> str:
    """One row of the table."""
    low, high = report.interval
    usage, n = report.usage, report.n
    gain = report.accuracy - first.accuracy
    clear = low > first.interval[1] or high < first.interval[0]
    against = "" if report is first else f"{gain:+.3f}{' clear' if clear else ''}"
    return (
        f"{name:26} {report.accuracy:8.3f}  [{low:.3f}, {high:.3f}] {report.any_correct / n:6.3f} "
        f"{usage.input_tokens:8} {usage.cached_tokens:8} {usage.output_tokens:7} {usage.calls:6} "
        f"{usage.reward_passes:6} {report.seconds / n:9.2f}  {against}"
    )


if __name__ == "__main__":
    sys.exit(main())
