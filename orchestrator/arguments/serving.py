"""Serving recipes, and models."""

import sys
from typing import Any

from .base import command, spans
from .numbers import port, positive


def serve(commands: Any) -> None:
    """`abduce serve`."""
    text = "Serve recipes behind an OpenAI-compatible API"
    parser = command(commands, "serve", "serve:run", text)
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
    parser.add_argument("--port", type=port, default=8000, metavar="N", help="0: any free one (default 8000)")
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
            name, type=positive, default=default, metavar="N", help=f"{told} (default {default})"
        )
    parser.add_argument("--quiet", action="store_true", help="print no line for each request")
    spans(parser)


def engine(commands: Any) -> None:
    """`abduce engine`."""
    text = "Start a SGLang server with the flags this machine needs"
    parser = command(commands, "engine", "engine:run", text)
    parser.add_argument(
        "model", metavar="MODEL", help="a Hugging Face folder or name; small is the package's small model"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to serve at (default 127.0.0.1)")
    parser.add_argument("--port", type=port, default=30000, help="(default 30000)")
    parser.add_argument(
        "--replicas",
        type=positive,
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
    parser.add_argument(
        "--kv",
        metavar="METHOD",
        help="decode by reading less of the cache: ems, actqkv or deltallm, with sizes, e.g. ems:budget=1024",
    )
    parser.add_argument("--logs", metavar="FOLDER", help="where logs go (default a temporary folder)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, start nothing")
