"""Intervals of what benchmarks measure. Wilson's, of a share, is `abduce.orchestrator.evaluate.wilson`."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from random import Random
from statistics import fmean
from typing import Any, TypeVar

Interval = tuple[float, float, float]  # a figure, and the two ends of its 95 % interval
Group = TypeVar("Group")
FEWEST_GROUPS = 6  # all of 5 on one side happens by chance in 1 of 32, more than 2.5 %; all of 6 in 1 of 64


def bootstrap(
    values: Sequence[float], *, by: Iterable[Hashable] | None = None, draws: int = 4000, seed: int = 0
) -> Interval:
    """Mean, and the two ends of its 95 % percentile interval over resamples of the values.

    For a paired difference see `paired`. Values that share something, such as the questions on one text, are
    not independent: `by` names the group of each value, and groups are drawn whole, with the mean of all
    values that were drawn. At least one value is needed.

    The interval knows only what was seen. Of few values or groups it is too narrow, and where all lie on one
    side of zero it does too: below `FEWEST_GROUPS` that says nothing at 95 %. Of shares near 0 or 1 Wilson's
    is the better one, since equal values give an interval without width.

    >>> bootstrap([1, 0, 1, 1])
    (0.75, 0.25, 1.0)
    >>> bootstrap([1, 1, 0, 0], by="aabb")
    (0.5, 0.0, 1.0)
    """
    if by is None:
        return fmean(values), *resampled(values, fmean, draws=draws, seed=seed)
    groups: dict[Hashable, list[float]] = {}
    for value, group in zip(values, by, strict=True):
        groups.setdefault(group, []).append(value)
    sums = [(sum(each), len(each)) for each in groups.values()]

    def mean(drawn: Sequence[tuple[float, int]]) -> float:
        return sum(total for total, _ in drawn) / sum(size for _, size in drawn)

    return fmean(values), *resampled(sums, mean, draws=draws, seed=seed)


def paired(ours: Sequence[float], theirs: Sequence[float], **how: Any) -> Interval:
    """Mean difference on the same problems, with its interval; `how` as for `bootstrap`.

    >>> paired([True, True], [False, True])
    (0.5, 0.0, 1.0)
    """
    return bootstrap([a - b for a, b in zip(ours, theirs, strict=True)], **how)


def resampled(
    groups: Sequence[Group],
    statistic: Callable[[Sequence[Group]], float],
    *,
    draws: int = 4000,
    seed: int = 0,
) -> tuple[float, float]:
    """The ends of the 95 % percentile interval of any statistic, over resamples of independent groups. Draws
    of which it is not a number are left out; with none left the ends are no numbers either."""
    rng = Random(seed)
    drawn = (statistic(rng.choices(groups, k=len(groups))) for _ in range(draws))
    found = sorted(value for value in drawn if not math.isnan(value))
    cut = int(0.025 * len(found))
    return (found[cut], found[-1 - cut]) if found else (math.nan, math.nan)


def told(interval: Interval, form: str = "+.3f") -> str:
    """A figure with its interval.

    >>> told((0.5, -0.25, 1.0))
    '+0.500 [-0.250, +1.000]'
    """
    figure, low, high = interval
    return f"{figure:{form}} [{low:{form}}, {high:{form}}]"
