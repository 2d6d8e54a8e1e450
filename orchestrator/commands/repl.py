"""`abduce repl`: the tracing REPL, in a terminal, over lines, or from a script."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ...serving.errors import UsageError
from ..repl.plain import Plain, farewell, is_dumb
from ..repl.sitting import Sitting
from .options import parse_checks, recipe_of
from .solve import fetch_models, store

if TYPE_CHECKING:
    from ..repl.terminal import Terminal


def run(chosen: argparse.Namespace) -> int:
    """Sit down."""
    recipe, checks = recipe_of(chosen), parse_checks(chosen.check)
    console = Console(highlight=False, markup=False, emoji=False)
    shell = _shell(chosen, console)
    sitting = Sitting(store(), recipe, checks=checks, tell=shell.told, prepare=fetch_models)
    try:
        if isinstance(shell, Plain) and (name := chosen.script or ("" if sys.stdin.isatty() else "-")):
            return shell.script(sitting, _lines(name), "standard input" if name == "-" else name)
        return shell.talk(sitting)
    finally:
        unfinished = farewell(sitting)
        sitting.close()
        for line in unfinished:
            console.print(Text(line, style="dim"), soft_wrap=True)


def _shell(chosen: argparse.Namespace, console: Console) -> "Plain | Terminal":
    if chosen.script is not None or is_dumb(console):
        return Plain(console)
    from ..repl.terminal import Terminal

    return Terminal(console)


def _lines(name: str) -> Iterator[str]:
    if name == "-":
        return iter(sys.stdin)
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"No script to read: {name}: {error}.") from None
    return iter(text.splitlines())
