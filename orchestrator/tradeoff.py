"""Which methods are worth their tokens: those that no other beats in accuracy for as few or fewer.

Source: The quality-efficiency frontier of Think Deep, Think Fast, arXiv 2504.14047.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..serving.errors import MissingExtra


class Point(NamedTuple):
    """A method: its mean tokens for a question, all calls together, its accuracy with its 95 % interval."""

    name: str
    tokens: float
    accuracy: float
    interval: tuple[float, float] = (0.0, 1.0)


def on_frontier(points: Sequence[Point]) -> list[bool]:
    """Whether each point is non-dominated: no other has at most its tokens and at least its accuracy, one of
    them strictly.

    >>> points = [Point("one", 100, 0.5), Point("vote", 800, 0.7), Point("search", 900, 0.6)]
    >>> on_frontier(points)
    [True, True, False]
    """

    def dominated(p: Point) -> bool:
        return any(
            q.tokens <= p.tokens
            and q.accuracy >= p.accuracy
            and (q.tokens, q.accuracy) != (p.tokens, p.accuracy)
            for q in points
        )

    return [not dominated(p) for p in points]


def plot(points: Sequence[Point], file: Path) -> None:
    """Accuracy over tokens, on a logarithmic axis; a line joins the frontier, the others are hollow. Raises
    MissingExtra without matplotlib."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    except ImportError:
        raise MissingExtra("matplotlib", "plot") from None

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    best = on_frontier(points)
    line = sorted((p.tokens, p.accuracy) for p, on in zip(points, best, strict=True) if on)
    axes.plot(*zip(*line, strict=True), color="0.6", zorder=1)
    for p, on in zip(points, best, strict=True):
        low, high = p.interval
        axes.vlines(p.tokens, low, high, color="0.85", zorder=0)
        axes.plot(p.tokens, p.accuracy, "o", color="tab:blue", fillstyle="full" if on else "none", zorder=2)
        axes.annotate(p.name, (p.tokens, p.accuracy), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.2)
    axes.set_xlabel("tokens for a question, all calls")
    axes.set_ylabel("accuracy, 95 % interval")
    figure.savefig(file)
