"""Solving problems, one or many, and going on with runs."""

import argparse
from typing import Any

from .base import Parser, checks, command, parallel, recipe_options, spans
from .numbers import number, positive


def solve(commands: Any) -> None:
    """`abduce solve`."""
    parser = command(commands, "solve", "solve:run", "Solve one problem and watch the search")
    parser.add_argument("question", metavar="QUESTION", help="the problem; - reads it from standard input")
    recipe_options(parser)
    checks(parser)
    parser.add_argument("--no-trace", action="store_true", help="show no search, only the answer")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    spans(parser)


def repl(commands: Any) -> None:
    """`abduce repl`."""
    text = "Ask, watch the search step by step, go back, fork, compare"
    parser = command(commands, "repl", "repl:run", text)
    recipe_options(parser)
    checks(parser)
    parser.add_argument("--script", metavar="FILE", help="carry out a file's commands; - is standard input")


def eval(commands: Any) -> None:
    """`abduce eval`."""
    parser = command(commands, "eval", "evaluate:run", "Measure a strategy on a JSON-lines file of problems")
    parser.add_argument(
        "data", metavar="DATA.jsonl", help='rows {"question", "answer"} or {"question", "checks"}'
    )
    recipe_options(parser)
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--out", metavar="FILE", help="results, one JSON line each (default: beside the runs)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the file given by --out")
    parser.add_argument(
        "--total", metavar="LIMITS", help="of all problems together, e.g. '5 usd' (--budget is of each)"
    )
    parser.add_argument("--keep", action="store_true", help="keep each run, for abduce trace show RUN")
    parser.add_argument(
        "--against", metavar="FILE", help="compare with other results of the same data, in pairs"
    )
    parallel(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    spans(parser)


def learn(commands: Any) -> None:
    """`abduce learn`."""
    text = "Solve problems in their order, with a memory that grows from batch to batch"
    parser = command(commands, "learn", "learn:run", text)
    parser.add_argument("data", metavar="DATA", help="puzzles in ARC's JSON, or rows (.jsonl) with checks")
    recipe_options(parser)
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N problems")
    parser.add_argument(
        "--batch", type=positive, default=10, metavar="N", help="so many see the same memory (default 10)"
    )
    parser.add_argument(
        "--passes", type=positive, default=1, metavar="N", help="later ones take up what is left (default 1)"
    )
    parser.add_argument("--freeze", action="store_true", help="read the memory, write nothing")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def runs(commands: Any) -> None:
    """`abduce runs`."""
    runs = command(
        commands, "runs", "runs:listing", "The runs that are kept: list, show, go on, fork, delete"
    )
    verbs = runs.add_subparsers(metavar="VERB", parser_class=Parser)
    listing = command(verbs, "list", "runs:listing", "List the newest runs; so does no verb at all")
    for parser, default in ((runs, 20), (listing, argparse.SUPPRESS)):
        parser.add_argument(
            "--limit", type=positive, default=default, metavar="N", help="the newest N (default 20)"
        )
    show = command(verbs, "show", "runs:showing", "Show the settings of a run, what it spent, how far it got")
    _run_argument(show)
    show.add_argument("--replies", action="store_true", help="number its replies: where a fork may begin")
    for group in (verbs, commands):
        resume = command(group, "resume", "runs:resume", "Go on with a run that was stopped")
        _run_argument(resume)
        _watching(resume)
    fork = command(verbs, "fork", "runs:fork", "Begin as a run began, and go on with other settings")
    _run_argument(fork)
    fork.add_argument(
        "--at",
        required=True,
        metavar="STEP",
        help="the reply to go on after, by its number (see: abduce runs show RUN --replies), or visit:N for "
        "what was before a node's visit",
    )
    fork.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="as for solve, e.g. strategy=a_star, strategy.k=3 or seed=1; may be repeated",
    )
    fork.add_argument("--no-run", action="store_true", help="only make it, and print its name")
    _watching(fork)
    _deleting(command(verbs, "delete", "runs:delete", "Delete runs, or the oldest beyond limits"))


def _deleting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names or beginnings of names")
    group = parser.add_argument_group("or all finished runs beyond limits")
    group.add_argument("--keep", type=number, metavar="N", help="all but the newest N")
    group.add_argument("--older-than", metavar="AGE", help="those started longer ago, e.g. 30d, 12h, 2w")
    group.add_argument("--max-mb", type=number, metavar="N", help="the oldest, until the rest fits in N MB")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="its name, the beginning of it, or last")


def _watching(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-trace", action="store_true", help="show no search, only the answer")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    spans(parser)
