"""How benchmarks print: verdicts, spreads, tables of Markdown, and the machine they ran on."""

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from statistics import median


def met(held: bool) -> str:
    """The verdict on a bar."""
    return "met" if held else "NOT met"


def spread(figures: Iterable[float], form: str = ".1f") -> str:
    """Median (min to max). A width in the form is that of the median.

    >>> spread([3, 1, 2], "6.1f")
    '   2.0  (1.0 to 3.0)'
    """
    found = sorted(figures)
    ends = f".{form.rpartition('.')[2]}"
    return f"{median(found):{form}}  ({found[0]:{ends}} to {found[-1]:{ends}})"


def table_row(*cells: object) -> None:
    """A line of a table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def table_head(*columns: str) -> None:
    """Its first two lines."""
    table_row(*columns)
    print("|---" * len(columns) + "|", flush=True)


def machine() -> str:
    """Versions, and the machine."""
    import abduce

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    system = (
        f"Python {platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}"
    )
    return f"abduce {abduce.__version__}, {system}, {os.cpu_count()} × {models[0] if models else 'CPU'}"
