"""Setting up strategies for a model: calibrating, fitting, training."""

import argparse
from typing import Any

from .base import Parser, command, parallel, recipe_options
from .numbers import positive


def maxs(commands: Any) -> None:
    """`abduce maxs`."""
    maxs = command(commands, "maxs", "maxs:calibrate", "Set up the strategy maxs for a model")
    verbs = maxs.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    text = "Find the variance of rewards at which look-ahead should stop"
    parser = command(verbs, "calibrate", "maxs:calibrate", text)
    parser.add_argument("data", metavar="DATA.jsonl", help='problems to learn from: rows {"question": …}')
    recipe_options(parser)
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--quantile", default="0.3", metavar="SHARE", help="of decisions that should stop it (default 0.3)"
    )
    parallel(parser)


def rag(commands: Any) -> None:
    """`abduce rag`."""
    rag = command(commands, "rag", "rag:fitting", "Set up retrieval-augmented reasoning for a model")
    verbs = rag.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    fit = command(
        verbs, "fit", "rag:fitting", "Find how much documents, demonstrations and iterations are worth"
    )
    told = 'problems, one task a file: rows {"question": …, "answer": …}; none: fit to what is logged'
    fit.add_argument("data", nargs="*", metavar="DATA.jsonl", help=told)
    fit.add_argument("--out", default="allocation.json", metavar="FILE", help="the model (allocation.json)")
    fit.add_argument("--log", default="readings.jsonl", metavar="FILE", help="the readings (readings.jsonl)")
    fit.add_argument(
        "--metric", choices=("acc", "em", "f1"), default="acc", metavar="NAME", help="acc, em, f1"
    )
    for name, default, what in (("k", "0,1,2,5", "documents"), ("m", "0,1", "demonstrations")):
        fit.add_argument(f"--{name}", default=default, metavar="LIST", help=f"numbers of {what} ({default})")
    fit.add_argument("--n", default="1,3", metavar="LIST", help="iterations, 1 for a single call (1,3)")
    demos = command(verbs, "demos", "rag:demos", "Make demonstrations from problems that are answered right")
    demos.add_argument("data", metavar="DATA.jsonl", help='problems: rows {"question": …, "answer": …}')
    demos.add_argument("--out", default="demos.jsonl", metavar="FILE", help="where to (demos.jsonl)")
    for parser in (fit, demos):
        recipe_options(parser)
        parser.add_argument("--limit", type=positive, metavar="N", help="only the first N rows of a file")
        parallel(parser)


def vote(commands: Any) -> None:
    """`abduce vote`."""
    vote = command(commands, "vote", "vote:run", "Set up the strategy reweighted_vote for a model")
    verbs = vote.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    text = "Find out whether votes weighted by length and markers gain over the majority"
    parser = command(verbs, "calibrate", "vote:run", text)
    parser.add_argument("data", metavar="DATA.jsonl", help='rows {"question": …, "answer": …}')
    recipe_options(parser)
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--use",
        choices=("weights", "filter", "best", "calibrated"),
        help="what to try (default: the recipe's, or weights)",
    )
    parallel(parser)


def diffadapt(commands: Any) -> None:
    """`abduce diffadapt`."""
    group = command(commands, "diffadapt", "diffadapt:fit", "Set up the strategy diffadapt for a model")
    verbs = group.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    text = "Train the probe that tells easy questions from hard ones"
    parser = command(verbs, "fit", "diffadapt:fit", text)
    parser.add_argument(
        "data", metavar="DATA.jsonl", help='problems to learn from: rows {"question", "answer"}'
    )
    recipe_options(parser)
    parser.add_argument("--out", metavar="FILE", default="probe.json", help="the probe (default probe.json)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--samples", type=positive, default=10, metavar="N", help="solutions of each problem (default 10)"
    )
    parser.add_argument("--features", choices=("hidden", "text"), default="hidden", help="what it reads")
    parser.add_argument(
        "--labels", choices=("proxy", "oracle"), default="proxy", help="by the rule, or the best mode"
    )
    parser.add_argument(
        "--pseudo", action="store_true", help="right is the most frequent answer, not the row's"
    )
    parser.add_argument("--key-env", metavar="NAME", help="the variable with the key that seals the file")
    told = "what was solved, one JSON line a problem (default: beside the runs)"
    parser.add_argument("--rows", metavar="FILE", help=told)
    parser.add_argument("--resume", action="store_true", help="go on with the file given by --rows")
    parallel(parser)


def smart(commands: Any) -> None:
    """`abduce smart`."""
    group = command(commands, "smart", "smart:stats", "Learn which strategy to try first")
    verbs = group.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    train = _learned(verbs, "train", "Solve problems whose answers are known, and learn after each")
    train.add_argument("data", metavar="DATA.jsonl", help='rows {"question": …, "answer": …}')
    recipe_options(train)
    train.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    told = "problems at a time, which share a router (default 1)"
    train.add_argument("--parallel", type=positive, default=1, metavar="N", help=told)
    told = "which attempts teach: first_only, or all, which is biased (default first_only)"
    train.add_argument("--learn", default="first_only", metavar="MODE", help=told)
    train.add_argument(
        "--gamma", default="1", metavar="SHARE", help="how much is kept at each row (default 1)"
    )
    learn = _learned(verbs, "learn", "Learn from runs that were kept")
    learn.add_argument("runs", nargs="+", metavar="RUN", help='names, or "last"')
    told = "right or wrong: what you say of the last attempt"
    learn.add_argument("--outcome", metavar="WORD", help=told)
    _learned(verbs, "stats", "Show what was learnt, and how good each fixed choice would have been")
    export = _learned(verbs, "export", "Write training data: right attempts, pairs, outcomes of all arms")
    export.add_argument("folder", metavar="FOLDER", help="where to")
    told = "of several right arms: cheapest, policy or all (default cheapest)"
    export.add_argument("--select", default="cheapest", metavar="WAY", help=told)
    export.add_argument("--cap", type=positive, metavar="N", help="most records of an arm")
    rebuild = _learned(verbs, "rebuild", "Learn anew, on features of the questions alone")
    rebuild.add_argument("new", metavar="NEW", help="the file to write")
    _learned(verbs, "reset", "Forget everything; the file is kept as .old")


def _learned(verbs: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser = command(verbs, name, f"smart:{name}", text)
    parser.add_argument("router", metavar="ROUTER", help="the router's file, such as router.jsonl")
    return parser
