"""Which of n items is the odd one, from how true each of J statements is of each: T[j][i] in [0, 1].

    vote    of statement j the smaller side of {i : T_ji ≥ τ_j} shares one vote;  τ_j = mean_i T_ji
    latent  p(F | o) = Π_j [ρ/2 (T̄_jo Π_{i≠o} T_ji + T_jo Π_{i≠o} T̄_ji) + (1 − ρ) 2⁻ⁿ],  T̄ = 1 − T

In the latent model a statement is relevant with probability ρ, and then true of all items but the odd one, or
of that one alone. ρ is found by expectation maximisation; how relevant each statement is explains the answer.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from .table import log_sum_exp, normalised

_CLIP = 0.01  # no statement is quite certain: one wrong label must not rule an item out
_STEPS = 50
_CLOSE = 1e-4


def minority(truth: Sequence[Sequence[float]], threshold: float | None = None) -> list[float]:
    """The votes of each item. `threshold` is τ for all statements, by default the statement's mean.

    >>> minority([[0.9, 0.8, 0.1], [0.9, 0.9, 0.9], [0.2, 0.1, 0.9]])
    [0.0, 0.0, 2.0]
    """
    n = len(truth[0]) if truth else 0
    votes = [0.0] * n
    for row in truth:
        tau = math.fsum(row) / n if threshold is None else threshold
        holds = [i for i in range(n) if row[i] >= tau]
        fails = [i for i in range(n) if row[i] < tau]
        smaller = min(holds, fails, key=len)
        if not smaller or 2 * len(smaller) == n:
            continue
        for i in smaller:
            votes[i] += 1.0 / len(smaller)
    return votes


class Outlier(NamedTuple):
    """ln p(o | F), the share of relevant statements, and how relevant each of them is."""

    log_posterior: list[float]
    rho: float
    relevance: list[float]


def latent(truth: Sequence[Sequence[float]], rho: float = 0.5) -> Outlier:
    """The posterior of the odd one, `rho` being where expectation maximisation begins."""
    rows = [[min(1 - _CLIP, max(_CLIP, t)) for t in row] for row in truth]
    n = len(rows[0])
    relevant = [[_relevant(row, o) for o in range(n)] for row in rows]
    for _ in range(_STEPS):
        posterior, gamma = _expectation(relevant, rho, n)
        before, rho = rho, math.fsum(gamma) / len(gamma)
        if abs(rho - before) < _CLOSE:
            break
    posterior, gamma = _expectation(relevant, rho, n)
    return Outlier(posterior, rho, gamma)


def _relevant(row: Sequence[float], o: int) -> float:
    """½ (T̄_o Π T_i + T_o Π T̄_i), the likelihood of a relevant statement if o is the odd one."""
    others = [t for i, t in enumerate(row) if i != o]
    return 0.5 * ((1 - row[o]) * math.prod(others) + row[o] * math.prod(1 - t for t in others))


def _expectation(relevant: Sequence[Sequence[float]], rho: float, n: int) -> tuple[list[float], list[float]]:
    """ln p(o | F), and for each statement Σ_o p(o) γ_jo."""
    irrelevant = (1 - rho) * 2.0**-n
    logs = [math.fsum(math.log(rho * r[o] + irrelevant) for r in relevant) for o in range(n)]
    total = log_sum_exp(logs)
    p = normalised(logs)
    gamma = [
        math.fsum(p[o] * rho * r[o] / (rho * r[o] + irrelevant) for o in range(n) if rho * r[o] > 0)
        for r in relevant
    ]
    return [log - total for log in logs], gamma
