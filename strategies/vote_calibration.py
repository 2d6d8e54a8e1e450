"""Is re-weighting a vote worth it on this model and these tasks? Tried on questions of known answer.

    P(right) = σ(β₀ + β · (z_l, z_h, z_t, z_d, vote share))     logistic regression, ridge 10⁻²
    guard    re-weight only if accuracy(re-weighted) ≥ accuracy(majority) on the calibration questions

The fitted vote is tried on questions that its coefficients were not fitted on (two folds).

Source: Think Deep, Think Fast, arXiv 2504.14047. Deviates: the fit and the guard are ours; with no signal in
the lengths a length-weighted vote loses about two points, so none is used unwatched.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp
from statistics import fmean
from typing import NamedTuple

from ..serving.errors import UsageError
from .vote_weights import DEFAULT, Coefficients, Features, reweighted, z_scores
from .voting import Poll, poll

ENOUGH = 200
"""Labelled solutions below which nothing is fitted."""
LEAST_AUC = 0.55


class Labelled(NamedTuple):
    """The pool of one question, and the right answer."""

    answers: tuple[Hashable | None, ...]
    features: tuple[Features, ...]
    gold: Hashable


@dataclass(frozen=True)
class Calibration:
    """What was found on labelled questions: accuracy of the majority and of the re-weighted vote, how well
    the fit ranks solutions (`auc`), and the fit itself: β₀, then those of length, hedging, thinking,
    discourse and vote share."""

    candidates: int
    majority: float
    reweighted: float
    auc: float = 0.5
    fit: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.fit and len(self.fit) != 6:
            raise UsageError(
                f"fit has six numbers, as `abduce vote calibrate` prints them, got {self.fit!r}."
            )

    def refuses(self, use: str) -> str:
        """Why the vote must not be re-weighted; "" if it may."""
        if self.candidates < ENOUGH:
            return f"calibrated on {self.candidates} solutions, fewer than {ENOUGH}"
        if use == "calibrated" and (self.auc < LEAST_AUC or not self.fit):
            return f"the fit ranks solutions with an AUC of {self.auc:.2f}, below {LEAST_AUC}"
        if self.reweighted < self.majority:
            return f"accuracy {self.reweighted:.3f} re-weighted, {self.majority:.3f} by majority"
        return ""


def calibrate(
    pools: Sequence[Labelled], *, use: str, b: Coefficients = DEFAULT, keep: float = 0.5
) -> Calibration:
    """Try a use of the features on labelled questions."""
    n = sum(len(pool.answers) for pool in pools)
    majority = accuracy(pools, lambda pool: poll(pool.answers, lengths=[f.length for f in pool.features]))
    if use != "calibrated":
        tried = accuracy(pools, lambda pool: reweighted(pool.answers, pool.features, b, use, keep))
        return Calibration(n, majority, tried)
    halves = (pools[::2], pools[1::2])
    if not all(halves):
        return Calibration(n, majority, 0.0)
    parts = [(fitted(other), half) for half, other in (halves, halves[::-1])]
    scored = [
        (p, answer == pool.gold)
        for fit, half in parts
        for pool in half
        for p, answer in zip(chances(fit, pool.answers, pool.features), pool.answers, strict=True)
    ]
    right = [accuracy(half, partial(_by_fit, fit)) * len(half) for fit, half in parts]
    return Calibration(n, majority, sum(right) / len(pools), auc(scored), fitted(pools))


def accuracy(pools: Sequence[Labelled], vote: Callable[[Labelled], Poll]) -> float:
    """Share of questions whose vote is right; of a tie, the share of right answers in it."""
    return fmean(_credit(vote(pool), pool.gold) for pool in pools) if pools else 0.0


def by_chance(fit: Sequence[float], answers: Sequence[Hashable | None], pool: Sequence[Features]) -> Poll:
    """The vote weighted by P(right)."""
    return poll(answers, chances(fit, answers, pool), lengths=[row.length for row in pool])


def chances(
    fit: Sequence[float], answers: Sequence[Hashable | None], pool: Sequence[Features]
) -> list[float]:
    """P(right) of each solution of a pool."""
    return [_sigmoid(_dot(fit, row)) for row in _rows(answers, pool)]


def fitted(pools: Sequence[Labelled]) -> tuple[float, ...]:
    """β₀ and β of the regression."""
    rows = [row for pool in pools for row in _rows(pool.answers, pool.features)]
    labels = [float(answer == pool.gold) for pool in pools for answer in pool.answers]
    beta = [0.0] * 6
    for _ in range(25):
        p = [_sigmoid(_dot(beta, row)) for row in rows]
        gradient = [
            sum((y - q) * row[i] for y, q, row in zip(labels, p, rows, strict=True)) for i in range(6)
        ]
        spread = [q * (1 - q) for q in p]
        hessian = [
            [sum(v * row[i] * row[j] for v, row in zip(spread, rows, strict=True)) for j in range(6)]
            for i in range(6)
        ]
        for i in range(6):
            gradient[i] -= _RIDGE * beta[i]
            hessian[i][i] += _RIDGE
        step = _solved(hessian, gradient)
        beta = [x + d for x, d in zip(beta, step, strict=True)]
        if max(map(abs, step)) < 1e-8:
            break
    return tuple(round(x, 4) for x in beta)


def auc(scored: Sequence[tuple[float, bool]]) -> float:
    """P(a right solution scores above a wrong one), ties half; ½ where one of them is missing.

    >>> auc([(0.9, True), (0.2, False), (0.5, True), (0.7, False)]), auc([(0.9, True)])
    (0.75, 0.5)
    """
    right, wrong = sum(y for _, y in scored), sum(not y for _, y in scored)
    if not right or not wrong:
        return 0.5
    counts = Counter(scored)
    below = total = 0.0
    for score in sorted({p for p, _ in scored}):
        total += counts[score, True] * (below + 0.5 * counts[score, False])
        below += counts[score, False]
    return total / (right * wrong)


_RIDGE = 1e-2


def _by_fit(fit: Sequence[float], pool: Labelled) -> Poll:
    return by_chance(fit, pool.answers, pool.features)


def _credit(votes: Poll, gold: Hashable) -> float:
    return (gold in votes.tied) / len(votes.tied) if votes.tied else 0.0


def _rows(answers: Sequence[Hashable | None], pool: Sequence[Features]) -> list[tuple[float, ...]]:
    counts = Counter(answer for answer in answers if answer is not None)
    shares = [counts[answer] / len(answers) if answer is not None else 0.0 for answer in answers]
    return [(1.0, *z, share) for z, share in zip(z_scores(pool), shares, strict=True)]


def _dot(beta: Sequence[float], row: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(beta, row, strict=True))


def _sigmoid(x: float) -> float:
    return 1 / (1 + exp(-max(-30.0, min(30.0, x))))


def _solved(a: list[list[float]], b: list[float]) -> list[float]:
    """x with a x = b, a positive definite; Gauss."""
    n = len(b)
    rows = [[*row, y] for row, y in zip(a, b, strict=True)]
    for i in range(n):
        for k in range(i + 1, n):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [x - factor * y for x, y in zip(rows[k], rows[i], strict=True)]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (rows[i][n] - sum(rows[i][j] * x[j] for j in range(i + 1, n))) / rows[i][i]
    return x
