"""Looking at runs, recipes, strategies and the machine."""

from typing import Any

from .base import Parser, command
from .numbers import port


def trace(commands: Any) -> None:
    """`abduce trace`."""
    trace = command(commands, "trace", "trace:show", "Look at a run, afterwards or while it goes on")
    verbs = trace.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    told = "a run's name, last, or a trace.jsonl"
    show = command(verbs, "show", "trace:show", "Show the tree of a run")
    show.add_argument("run", metavar="RUN|FILE", help=told)
    show.add_argument("--all", action="store_true", help="every step, however many")
    html = command(verbs, "html", "trace:html", "Write a run as one page for the browser")
    html.add_argument("run", metavar="RUN|FILE", help=told)
    html.add_argument("--out", metavar="FILE", help="the page (default trace-RUN.html, here)")
    html.add_argument("--against", metavar="RUN|FILE", help="a second run, laid over the first")
    serve = command(verbs, "serve", "trace:serve", "Show a run in the browser while it goes on")
    serve.add_argument("run", nargs="?", metavar="RUN|FILE", help=f"{told} (default: always the newest run)")
    serve.add_argument("--port", type=port, default=8400, metavar="N", help="0: any free one (default 8400)")
    plot = command(verbs, "plot", "trace:plot", "Draw a picture of a run for a paper")
    plot.add_argument("run", metavar="RUN|FILE", help=told)
    plot.add_argument("--out", metavar="FILE", required=True, help="the picture: .svg, .png or .pdf")
    plot.add_argument(
        "--what",
        metavar="PICTURE",
        choices=("tree", "timeline", "curves"),
        default="tree",
        help="tree (default), timeline or curves",
    )
    export = command(verbs, "export", "trace:export", "Print the tree of a run as data")
    export.add_argument("run", metavar="RUN|FILE", help=told)
    export.add_argument(
        "--format",
        metavar="FORMAT",
        choices=("json", "graphml"),
        default="json",
        help="json (node-link, as networkx reads it) or graphml",
    )


def recipe(commands: Any) -> None:
    """`abduce recipe`."""
    recipe = command(commands, "recipe", "recipe:check", "Recipes: runs written down in YAML")
    verbs = recipe.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    check = command(verbs, "check", "recipe:check", "Check a recipe without running it")
    show = command(verbs, "show", "recipe:show", "Show a recipe's graph and its normal form")
    for verb in (check, show):
        verb.add_argument("file", metavar="NAME|FILE", help="a packaged recipe or a YAML file")
        verb.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    show.add_argument("--draw", metavar="FILE", help="draw the graph instead: .svg, .png or .mmd (Mermaid)")
    command(verbs, "list", "recipe:listing", "List the packaged recipes")
    command(verbs, "schema", "recipe:schema", "Print the JSON schema of recipes, for editors")


def rest(commands: Any) -> None:
    """`abduce rest`."""
    command(commands, "strategies", "show:strategies", "List the strategies with their sources")

    model = command(commands, "model", "model:fetch", "The small model that comes with the package")
    verbs = model.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    command(verbs, "fetch", "model:fetch", "Fetch it into the cache, once")

    command(commands, "doctor", "doctor:run", "What works on this machine, and how to make the rest work")
