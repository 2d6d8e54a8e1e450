"""Intervals of what benchmarks measure. Wilson's, of a share, is `abduce.orchestrator.evaluate.wilson`."""

from collections.abc import Hashable, Iterable, Sequence
from random import Random
from statistics import fmean

FEWEST_GROUPS = 6  # all of 5 on one side happens by chance in 1 of 32, more than 2.5 %; all of 6 in 1 of 64


def bootstrap(
    values: Sequence[float], *, by: Iterable[Hashable] | None = None, draws: int = 4000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean, and the two ends of its 95 % percentile interval over resamples of the values.

    For a paired difference, give the differences. Values that share something, such as the questions on one
    text, are not independent: `by` names the group of each value, and groups are drawn whole, with the mean
    of all values that were drawn. At least one value is needed.

    The interval knows only what was seen. Of few values or groups it is too narrow, and where all lie on one
    side of zero it does too: below `FEWEST_GROUPS` that says nothing at 95 %. Of shares near 0 or 1 Wilson's
    is the better one, since equal values give an interval without width.

    >>> bootstrap([1, 0, 1, 1])
    (0.75, 0.25, 1.0)
    >>> bootstrap([1, 1, 0, 0], by="aabb")
    (0.5, 0.0, 1.0)
    """
    rng = Random(seed)
    if by is None:
        means = sorted(fmean(rng.choices(values, k=len(values))) for _ in range(draws))
    else:
        groups: dict[Hashable, list[float]] = {}
        for value, group in zip(values, by, strict=True):
            groups.setdefault(group, []).append(value)
        sums = [(sum(each), len(each)) for each in groups.values()]
        drawn = ([*zip(*rng.choices(sums, k=len(sums)), strict=True)] for _ in range(draws))
        means = sorted(sum(totals) / sum(sizes) for totals, sizes in drawn)
    cut = int(0.025 * draws)
    return fmean(values), means[cut], means[-1 - cut]
