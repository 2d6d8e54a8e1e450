"""`abduce strategies`, `abduce runs` and `abduce trace show`: tables and trees of what there is."""

import argparse
import ast
import json
import re
import sys
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...serving.errors import UsageError
from ...strategies import STRATEGIES
from ..live import status_line, tree_lines
from ..runs import Run
from ..search_view import SearchView, clean, load, printable, to_networkx
from .solve import store


def strategies(chosen: argparse.Namespace) -> int:
    """Name, one line, source: from the docstring of each strategy's file."""
    table = _table("strategy", "idea", "source")
    for name in STRATEGIES:
        idea, source = about(name)
        table.add_row(Text(name, style="bold"), Text(idea), Text(source, style="dim"))
    show(table)
    return 0


def about(name: str) -> tuple[str, str]:
    """A strategy's idea in one sentence, and where it comes from, read without importing it."""
    spec = find_spec(f"...strategies.{name}", __package__)
    if spec is None or spec.origin is None:
        return "", ""
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    idea = re.split(r"(?<=[a-z)\]])\.(?:\s|$)", first)[0].rstrip(".")
    papers = dict.fromkeys(re.findall(r"(\d{4}\.\d{4,5})", text.partition("Source:")[2]))
    return idea, ", ".join(f"arXiv {paper}" for paper in papers)


def runs(chosen: argparse.Namespace) -> int:
    """The newest runs, newest last."""
    kept = store()
    names = kept.names()
    if not names:
        print(f'No runs in {kept.folder} yet. Start one: abduce solve "7 x 8 ="')
        return 0
    table = _table("run", "strategy", "question", "answer", "state")
    for name in names[-chosen.limit :]:
        try:
            cells = _told(kept.open(name))
        except UsageError:
            cells = ("", "", "", "damaged")
        table.add_row(*map(Text, (name, *cells)))
    show(table)
    return 0


def _told(run: Run) -> tuple[str, ...]:
    record, result = run.record, run.result
    state = "unfinished" if result is None else "complete" if result.get("complete") else "incomplete"
    answer = "" if result is None else str(result.get("answer", ""))
    task = record.get("task")
    question = str(task.get("question", "")) if isinstance(task, dict) else ""
    return clean(str(record.get("strategy", ""))), _short(question), _short(answer), state


def trace(chosen: argparse.Namespace) -> int:
    """The tree of a run, and its figures."""
    view = _view(chosen.run)
    console = Console(highlight=False)
    width = console.width if console.is_terminal else 10_000
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    for line in tree_lines(view, max_lines=0 if chosen.all else 60, plain=ascii_only):
        line.truncate(width - 1, overflow="ellipsis")
        console.print(line, soft_wrap=True)
    console.print(status_line(view), soft_wrap=True)
    if view.ended is not None:
        console.print(Text(f"answer: {clean(str(view.ended.answer))}", style="bold"), soft_wrap=True)
    else:
        name = view.started.run if view.started else ""
        console.print(Text(f"not finished; go on with: abduce resume {name}", style="yellow"))
    return 0


def export(chosen: argparse.Namespace) -> int:
    """The tree of a run as data: node-link JSON, or GraphML."""
    import networkx

    graph = to_networkx(_view(chosen.run))
    if chosen.format == "json":
        print(json.dumps(networkx.node_link_data(graph, edges="edges"), ensure_ascii=False, indent=1))
        return 0
    for _, facts in graph.nodes(data=True):
        facts["score"] = "" if facts["score"] is None else facts["score"]  # GraphML has no null
        facts["text"] = printable(facts["text"])  # nor has XML control characters
    print("\n".join(networkx.generate_graphml(graph)))
    return 0


def _view(name: str) -> SearchView:
    """What the trace of a run shows, by the run's name or its file."""
    file = Path(name)
    return load(file if file.is_file() else store().open(name).trace)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0)
    return table


def show(table: Table) -> None:
    """Print a table; to a file or pipe as wide as it is, without trailing blanks."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    wide = Console(highlight=False, width=200, file=StringIO())
    wide.print(table)
    for line in wide.file.getvalue().splitlines():  # type: ignore[attr-defined]
        print(line.rstrip())


def _short(text: str) -> str:
    text = clean(text)
    return text if len(text) <= 60 else text[:59] + "…"
