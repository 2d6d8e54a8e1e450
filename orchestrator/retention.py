"""How much is kept: the newest finished runs, up to a number, an age and a size.

    Keep.parse("200 runs, 30 days, 2 GB")       prune(Runs(…), keep) ─► names of what was deleted

Whatever the limits, a run that is unfinished, or that a process works on, stays: it may still go on.
"""

import re
import time
from calendar import timegm
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ..serving.errors import UsageError, demand
from .runs import Run, Runs

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Keep:
    """Limits; None is none. `runs` and `mb` count unfinished runs, too, though these stay."""

    runs: int | None = None
    days: float | None = None
    mb: float | None = None

    def __post_init__(self) -> None:
        for name in ("runs", "days", "mb"):
            value = getattr(self, name)
            demand(value is None or value >= 0, name, value, "give a limit of 0 or more, or none")

    @classmethod
    def parse(cls, text: str) -> "Keep":
        """Limits in words: a number of runs, of days (or hours, weeks), of MB (or GB), with commas.

        >>> Keep.parse("200 runs, 2 weeks, 1.5 GB")
        Keep(runs=200, days=14.0, mb=1500.0)
        """
        found: dict[str, float] = {}
        for part in filter(None, map(str.strip, text.split(","))):
            parsed = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]+)", part)
            limit = _UNITS.get(parsed[2].lower().removesuffix("s")) if parsed else None
            if parsed is None or limit is None or (limit[0] == "runs" and "." in parsed[1]):
                raise UsageError(
                    f"{part!r} is no limit of what is kept. Write e.g. '200 runs, 30 days, 2 GB'."
                )
            name, factor = limit
            found[name] = float(parsed[1]) * factor
        runs = found.get("runs")
        return cls(None if runs is None else int(runs), found.get("days"), found.get("mb"))


_UNITS = {
    "run": ("runs", 1.0),
    "h": ("days", 1 / 24),
    "hour": ("days", 1 / 24),
    "d": ("days", 1.0),
    "day": ("days", 1.0),
    "w": ("days", 7.0),
    "week": ("days", 7.0),
    "mb": ("mb", 1.0),
    "gb": ("mb", 1000.0),
}


def prune(runs: Runs, keep: Keep) -> list[str]:
    """Delete the oldest finished runs beyond the limits; their names."""
    deleted = []
    for run in beyond(runs, keep):
        with suppress(UsageError):  # somebody took it up, or deleted it, meanwhile
            runs.delete(run)
            deleted.append(run.id)
    return deleted


def beyond(runs: Runs, keep: Keep) -> Iterator[Run]:
    """The finished runs beyond the limits, newest first."""
    names, now, size = runs.names()[::-1], time.time(), 0
    for i, name in enumerate(names):
        run = Run(runs.store, name)
        over = keep.runs is not None and i >= keep.runs
        over = over or (keep.days is not None and age_s(run, now) > keep.days * _DAY_S)
        if keep.mb is not None:
            size += run.store.n_bytes(name)
            over = over or size > keep.mb * 1e6
        with suppress(UsageError):  # deleted meanwhile
            if over and run.store.result(name) is not None and not run.is_held:
                yield run


def age_s(run: Run, now: float | None = None) -> float:
    """How long ago it was started, by its name."""
    try:
        began = timegm(time.strptime(run.id[:15], "%Y%m%d-%H%M%S"))
    except ValueError:  # not named by us
        return 0.0
    return max(0.0, (time.time() if now is None else now) - began)
