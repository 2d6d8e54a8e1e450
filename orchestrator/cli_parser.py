"""What may be typed: one function for each group of commands.

A command names its function as `module:function` of `commands/`, which is imported once it is chosen: the
parser itself imports nothing heavy.
"""

import argparse
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from .. import __version__
from ..serving.errors import UsageError


class _Parser(argparse.ArgumentParser):
    """argparse with our errors: one message, the nearest spelling, where to find help."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=_Wide, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See: {self.prog} --help")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            near = get_close_matches(str(value), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            name = action.metavar or action.dest
            raise UsageError(f"No {name} named {value!r}.{hint} Known: {', '.join(known)}.")


class _Wide(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


def parser() -> argparse.ArgumentParser:
    """All that may be typed."""
    top = _Parser(
        prog="abduce",
        description="Inference to the best explanation: search strategies for language models.",
        epilog='Start with: abduce solve "7 x 8 =" --recipe best-of-n-products --check numeric=56',
    )
    top.add_argument("--version", action="version", version=f"abduce {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    commands.metavar = "COMMAND"
    _solve(commands)
    _repl(commands)
    _eval(commands)
    _runs(commands)
    _trace(commands)
    _recipe(commands)
    _serve(commands)
    _engine(commands)
    _maxs(commands)
    _rest(commands)
    return top


def _command(commands: Any, name: str, target: str, text: str, **more: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text}.", **more)
    parser.set_defaults(command=target)
    return parser


def _solve(commands: Any) -> None:
    parser = _command(commands, "solve", "solve:run", "Solve one problem and watch the search")
    parser.add_argument("question", metavar="QUESTION", help="the problem; - reads it from standard input")
    _recipe_options(parser)
    parser.add_argument(
        "--check",
        action="append",
        default=[],
        metavar="ID=VALUE",
        help="a verifiable demand on the answer, e.g. numeric=56; may be repeated",
    )
    parser.add_argument("--no-trace", action="store_true", help="show no search, only the answer")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    _spans(parser)


def _repl(commands: Any) -> None:
    text = "Ask, watch the search step by step, go back, fork, compare"
    parser = _command(commands, "repl", "repl:run", text)
    _recipe_options(parser)
    parser.add_argument(
        "--check",
        action="append",
        default=[],
        metavar="ID=VALUE",
        help="a verifiable demand on the answers, e.g. numeric=56; may be repeated",
    )
    parser.add_argument("--script", metavar="FILE", help="carry out a file's commands; - is standard input")


def _eval(commands: Any) -> None:
    parser = _command(commands, "eval", "evaluate:run", "Measure a strategy on a JSON-lines file of problems")
    parser.add_argument(
        "data", metavar="DATA.jsonl", help='rows {"question", "answer"} or {"question", "checks"}'
    )
    _recipe_options(parser)
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--out", metavar="FILE", help="results, one JSON line each (default: beside the runs)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the file given by --out")
    parser.add_argument(
        "--parallel", type=_positive, default=4, metavar="N", help="problems at a time (default 4)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    _spans(parser)


def _spans(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("OpenTelemetry; also on where OTEL_EXPORTER_OTLP_ENDPOINT is set")
    group.add_argument("--otel", action="store_true", help="send what happens to a collector, as spans")
    group.add_argument(
        "--otel-content", action="store_true", help="the same, prompts and completions included"
    )


def _recipe_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to run; each replaces the recipe's own")
    group.add_argument("--recipe", metavar="NAME|FILE", help="a packaged recipe or a YAML file")
    group.add_argument("--strategy", metavar="NAME", help="see: abduce strategies (default best_of_n)")
    group.add_argument("--model", metavar="NAME", help="the engine (default embedded)")
    group.add_argument("--reward", metavar="NAME", help="what scores partial solutions")
    group.add_argument("--policy", metavar="NAME", help="how steps are proposed")
    group.add_argument("--budget", metavar="LIMITS", help="e.g. '8k tokens, 60 s, 20 calls'")
    group.add_argument("--seed", metavar="N", help="same seed, same search (default 0)")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="any key of a recipe or parameter of the strategy, e.g. budget.tokens=4000 or n=16",
    )


def _runs(commands: Any) -> None:
    runs = _command(
        commands, "runs", "runs:listing", "The runs that are kept: list, show, go on, fork, delete"
    )
    verbs = runs.add_subparsers(metavar="VERB", parser_class=_Parser)
    listing = _command(verbs, "list", "runs:listing", "List the newest runs; so does no verb at all")
    for parser, default in ((runs, 20), (listing, argparse.SUPPRESS)):
        parser.add_argument(
            "--limit", type=_positive, default=default, metavar="N", help="the newest N (default 20)"
        )
    show = _command(
        verbs, "show", "runs:showing", "Show the settings of a run, what it spent, how far it got"
    )
    _run_argument(show)
    show.add_argument("--replies", action="store_true", help="number its replies: where a fork may begin")
    for group in (verbs, commands):
        resume = _command(group, "resume", "runs:resume", "Go on with a run that was stopped")
        _run_argument(resume)
        _watching(resume)
    fork = _command(verbs, "fork", "runs:fork", "Begin as a run began, and go on with other settings")
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
    _deleting(_command(verbs, "delete", "runs:delete", "Delete runs, or the oldest beyond limits"))


def _deleting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names or beginnings of names")
    group = parser.add_argument_group("or all finished runs beyond limits")
    group.add_argument("--keep", type=_number, metavar="N", help="all but the newest N")
    group.add_argument("--older-than", metavar="AGE", help="those started longer ago, e.g. 30d, 12h, 2w")
    group.add_argument("--max-mb", type=_number, metavar="N", help="the oldest, until the rest fits in N MB")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="its name, the beginning of it, or last")


def _watching(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-trace", action="store_true", help="show no search, only the answer")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    _spans(parser)


def _trace(commands: Any) -> None:
    trace = _command(commands, "trace", "trace:show", "Look at a run, afterwards or while it goes on")
    verbs = trace.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    told = "a run's name, last, or a trace.jsonl"
    show = _command(verbs, "show", "trace:show", "Show the tree of a run")
    show.add_argument("run", metavar="RUN|FILE", help=told)
    show.add_argument("--all", action="store_true", help="every step, however many")
    html = _command(verbs, "html", "trace:html", "Write a run as one page for the browser")
    html.add_argument("run", metavar="RUN|FILE", help=told)
    html.add_argument("--out", metavar="FILE", help="the page (default trace-RUN.html, here)")
    html.add_argument("--against", metavar="RUN|FILE", help="a second run, laid over the first")
    serve = _command(verbs, "serve", "trace:serve", "Show a run in the browser while it goes on")
    serve.add_argument("run", nargs="?", metavar="RUN|FILE", help=f"{told} (default: always the newest run)")
    serve.add_argument("--port", type=_port, default=8400, metavar="N", help="0: any free one (default 8400)")
    plot = _command(verbs, "plot", "trace:plot", "Draw a picture of a run for a paper")
    plot.add_argument("run", metavar="RUN|FILE", help=told)
    plot.add_argument("--out", metavar="FILE", required=True, help="the picture: .svg, .png or .pdf")
    plot.add_argument(
        "--what",
        metavar="PICTURE",
        choices=("tree", "timeline", "curves"),
        default="tree",
        help="tree (default), timeline or curves",
    )
    export = _command(verbs, "export", "trace:export", "Print the tree of a run as data")
    export.add_argument("run", metavar="RUN|FILE", help=told)
    export.add_argument(
        "--format",
        metavar="FORMAT",
        choices=("json", "graphml"),
        default="json",
        help="json (node-link, as networkx reads it) or graphml",
    )


def _serve(commands: Any) -> None:
    text = "Serve recipes behind an OpenAI-compatible API"
    parser = _command(commands, "serve", "serve:run", text)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="packaged recipes or YAML files")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        dest="models",
        metavar="ENGINE",
        help="an engine to pass through as it is, e.g. embedded; may be repeated",
    )
    parser.add_argument("--host", default="127.0.0.1", help="other addresses need keys (default 127.0.0.1)")
    parser.add_argument(
        "--port", type=_port, default=8000, metavar="N", help="0: any free one (default 8000)"
    )
    parser.add_argument("--keys", metavar="FILE", help="API keys and their budgets, in YAML")
    numbers = {
        "--concurrency": (64, "requests that run at once"),
        "--queue": (256, "requests that wait behind them"),
        "--max-body-mb": (4, "megabytes of a request"),
        "--timeout-s": (600, "seconds for a request; then its search ends with the best so far"),
        "--drain-s": (30, "seconds for running requests after Ctrl-C or SIGTERM"),
    }
    for name, (default, told) in numbers.items():
        parser.add_argument(
            name, type=_positive, default=default, metavar="N", help=f"{told} (default {default})"
        )
    parser.add_argument("--quiet", action="store_true", help="print no line for each request")
    _spans(parser)


def _engine(commands: Any) -> None:
    text = "Start a SGLang server with the flags this machine needs"
    parser = _command(commands, "engine", "engine:run", text)
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder or name; small is the package's small model"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to serve at (default 127.0.0.1)")
    parser.add_argument("--port", type=_port, default=30000, help="(default 30000)")
    parser.add_argument(
        "--replicas",
        type=_positive,
        default=1,
        metavar="N",
        help="servers, at the ports after PORT, behind a router at PORT (default 1, no router)",
    )
    parser.add_argument(
        "--python",
        default=sys.executable,
        metavar="FILE",
        help="the Python that has SGLang (default this one)",
    )
    parser.add_argument(
        "--flags", default="", metavar="TEXT", help="further flags of SGLang's, e.g. --flags='--tp 2'"
    )
    parser.add_argument("--logs", metavar="FOLDER", help="where logs go (default a temporary folder)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, start nothing")


def _recipe(commands: Any) -> None:
    recipe = _command(commands, "recipe", "recipe:check", "Recipes: runs written down in YAML")
    verbs = recipe.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    check = _command(verbs, "check", "recipe:check", "Check a recipe without running it")
    show = _command(verbs, "show", "recipe:show", "Show a recipe's graph and its normal form")
    for verb in (check, show):
        verb.add_argument("file", metavar="NAME|FILE", help="a packaged recipe or a YAML file")
        verb.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    show.add_argument("--draw", metavar="FILE", help="draw the graph instead: .svg, .png or .mmd (Mermaid)")
    _command(verbs, "list", "recipe:listing", "List the packaged recipes")
    _command(verbs, "schema", "recipe:schema", "Print the JSON schema of recipes, for editors")


def _maxs(commands: Any) -> None:
    maxs = _command(commands, "maxs", "maxs:calibrate", "Set up the strategy maxs for a model")
    verbs = maxs.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    text = "Find the variance of rewards at which look-ahead should stop"
    parser = _command(verbs, "calibrate", "maxs:calibrate", text)
    parser.add_argument("data", metavar="DATA.jsonl", help='problems to learn from: rows {"question": …}')
    _recipe_options(parser)
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--quantile", default="0.3", metavar="SHARE", help="of decisions that should stop it (default 0.3)"
    )
    parser.add_argument(
        "--parallel", type=_positive, default=4, metavar="N", help="problems at a time (default 4)"
    )


def _rest(commands: Any) -> None:
    _command(commands, "strategies", "show:strategies", "List the strategies with their sources")

    model = _command(commands, "model", "model:fetch", "The small model that comes with the package")
    verbs = model.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    _command(verbs, "fetch", "model:fetch", "Fetch it into the cache, once")

    _command(commands, "doctor", "doctor:run", "What works on this machine, and how to make the rest work")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a whole number from 0 to 65535")
    return int(text)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)
