"""What commands that work through a file of problems share: a progress bar, and where their rows are kept."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .solve import store


def progress() -> Progress:
    """A bar on standard error, if that is a terminal; its tasks have a field `told`."""
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def new_file(folder: str, stem: str) -> Path:
    """A name for rows that no file has yet, in a folder beside the runs."""
    beside, number = store().folder.parent / folder, 1
    while (beside / f"{stem}-{number}.jsonl").exists():
        number += 1
    return beside / f"{stem}-{number}.jsonl"
