"""Resampling: which particles go on, and how often.

A scheme turns log-weights into ancestor indices so that particle i is chosen n·W_i times on average,
W_i = w_i / Σw. The four schemes differ only in how far the counts stray from that mean: multinomial
most, systematic least. Weights need not be normalised; where all of them are zero (log-weight −∞) every
scheme resamples uniformly, and `degenerate` says so.

    ESS = 1 / Σ W_i²          log Ẑ = log (1/N) Σ w_i

Source: Douc, Cappé and Moulines, "Comparison of Resampling Schemes for Particle Filtering", cs/0507025.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from random import Random
from typing import TypeAlias

from ..serving.errors import UnknownName

Scheme: TypeAlias = Callable[[Sequence[float], Random, int], list[int]]


def multinomial(log_weights: Sequence[float], rng: Random, n: int) -> list[int]:
    """`n` independent draws, each i with probability W_i."""
    return _pick(_weights(log_weights), [rng.random() for _ in range(n)])


def stratified(log_weights: Sequence[float], rng: Random, n: int) -> list[int]:
    """One draw in each of `n` equal strata of the weights' cumulative sum; ascending."""
    return _pick(_weights(log_weights), [(k + rng.random()) / n for k in range(n)])


def systematic(log_weights: Sequence[float], rng: Random, n: int) -> list[int]:
    """As stratified, with one draw shared by all strata: counts are ⌊nW_i⌋ or ⌈nW_i⌉; ascending."""
    u = rng.random()
    return _pick(_weights(log_weights), [(k + u) / n for k in range(n)])


def residual(log_weights: Sequence[float], rng: Random, n: int) -> list[int]:
    """⌊nW_i⌋ copies of each i for certain, the rest multinomially from what is left of nW_i."""
    expected = [n * w for w in _weights(log_weights)]
    copies = [math.floor(e + 1e-9) for e in expected]  # n·(1/n) may come out just below 1
    certain = [i for i, c in enumerate(copies) for _ in range(c)]
    left = [max(0.0, e - c) for e, c in zip(expected, copies, strict=True)]
    return certain + _pick(left, [rng.random() for _ in range(n - len(certain))])


SCHEMES: dict[str, Scheme] = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
}


def scheme(name: str) -> Scheme:
    """The scheme of a name. Raises UnknownName with the nearest spelling."""
    if name not in SCHEMES:
        raise UnknownName("resampling scheme", name, SCHEMES)
    return SCHEMES[name]


# ---------------------------------------------------------------- weights in log space


def logsumexp(xs: Sequence[float]) -> float:
    """log Σ eˣ without overflow; −∞ for no or only −∞ terms.

    >>> round(logsumexp([1000.0, 1000.0]) - 1000, 6) == round(math.log(2), 6)
    True
    """
    top = max(xs, default=-math.inf)
    if math.isinf(top):
        return top
    return top + math.log(sum(math.exp(x - top) for x in xs))


def log_mean_exp(xs: Sequence[float]) -> float:
    """log (1/N) Σ eˣ."""
    return logsumexp(xs) - math.log(len(xs))


def degenerate(log_weights: Sequence[float]) -> bool:
    """Whether all weights are zero."""
    return max(log_weights) == -math.inf


def normalise(log_weights: Sequence[float]) -> list[float]:
    """log W; uniform where all weights are zero."""
    if degenerate(log_weights):
        return [-math.log(len(log_weights))] * len(log_weights)
    total = logsumexp(log_weights)
    return [x - total for x in log_weights]


def ess(log_weights: Sequence[float]) -> float:
    """Effective sample size 1 / ΣW²: N for equal weights, 1 for a single one, 0 where all are zero.

    >>> ess([0.0, 0.0, -math.inf, -math.inf])
    2.0
    """
    if degenerate(log_weights):
        return 0.0
    w = _relative(log_weights)
    return sum(w) ** 2 / sum(x * x for x in w)


# ---------------------------------------------------------------- helpers


def _relative(log_weights: Sequence[float]) -> list[float]:
    top = max(log_weights)
    return [math.exp(x - top) for x in log_weights]


def _weights(log_weights: Sequence[float]) -> list[float]:
    if degenerate(log_weights):
        return [1.0 / len(log_weights)] * len(log_weights)
    w = _relative(log_weights)
    total = sum(w)
    return [x / total for x in w]


def _pick(weights: Sequence[float], points: Sequence[float]) -> list[int]:
    """The index whose share of the cumulative sum holds each point of [0, 1); never one of weight 0."""
    if not points:
        return []
    cumulative = list(accumulate(weights))
    total = cumulative[-1]
    last = bisect_right(cumulative, math.nextafter(total, 0.0))
    return [min(bisect_right(cumulative, point * total), last) for point in points]
