"""`abduce strategies`, and how tables are printed."""

import argparse
import ast
import re
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ...serving.registry import others
from ...strategies import STRATEGIES


def strategies(chosen: argparse.Namespace) -> int:
    """Name, one line, source: from the docstring of each strategy's file."""
    rows = table("strategy", "idea", "source")
    for name in STRATEGIES:
        idea, source = about(name)
        rows.add_row(Text(name, style="bold"), Text(idea), Text(source, style="dim"))
    for name, entry in sorted(others("abduce.strategies").items()):
        if name not in STRATEGIES:
            rows.add_row(Text(name, style="bold"), Text("Of another package"), Text(entry.value, style="dim"))
    show(rows)
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


def table(*columns: str) -> Table:
    """An empty table in our style."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for i, column in enumerate(columns):
        made.add_column(column, no_wrap=i == 0)
    return made


def show(rows: RenderableType) -> None:
    """Print a table or the like; to a file or pipe as wide as it is, without trailing blanks."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(rows)
        return
    wide = Console(highlight=False, width=200, file=StringIO())
    wide.print(rows)
    for line in wide.file.getvalue().splitlines():  # type: ignore[attr-defined]
        print(line.rstrip())
