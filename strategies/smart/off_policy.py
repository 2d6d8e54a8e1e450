"""How good would another policy have been? Estimates from what was logged under the old one.

    w_i = π(a_i|x_i) / p_i
    V_IPS   = mean of w r
    V_SNIPS = Σ w r / Σ w
    V_DR    = mean of Σ_a π(a|x) q_a(x) + w (r − q_{a_i}(x))        q fitted without the fold of i
    ESS     = (Σ w)² / Σ w²

First attempts only: those that follow are no sample of the problems. Source: Doubly Robust Policy Evaluation
and Learning, arXiv 1103.4601; The Self-Normalized Estimator for Counterfactual Learning, NeurIPS 2015.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from ...serving.errors import UsageError
from .bandit import Regression
from .router import Attempt

MIN_ESS = 50.0
Target = Callable[[Attempt], Mapping[str, float]]
"""π of the policy that is judged, on the problem of a row."""


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error."""

    value: float
    se: float


@dataclass(frozen=True)
class Evaluation:
    """What the log says of a policy: expected reward of its first attempts."""

    ips: Estimate
    snips: Estimate
    dr: Estimate
    ess: float
    n: int


def evaluate(rows: Sequence[Attempt], target: Target, *, folds: int = 5, lam: float = 1.0) -> Evaluation:
    """All three estimates. Raises UsageError below an effective sample size of 50: no verdict is possible."""
    first = [row for row in rows if row.attempt == 1 and row.y is not None and row.r is not None]
    chances = [target(row) for row in first]
    w = [pi.get(row.arm, 0.0) / row.propensity for row, pi in zip(first, chances, strict=True)]
    squares = sum(each * each for each in w)
    ess = sum(w) ** 2 / squares if squares else 0.0
    if ess < MIN_ESS:
        raise UsageError(
            f"The log says too little of this policy: {len(first)} rows are worth {ess:.1f} of its own "
            f"(effective sample size), at least {MIN_ESS:g} are needed. Log more, or with a larger eps."
        )
    r = [row.r or 0.0 for row in first]
    weighed = [x * y for x, y in zip(w, r, strict=True)]
    share = sum(weighed) / sum(w)
    residuals = [x * (y - share) for x, y in zip(w, r, strict=True)]
    spread = math.sqrt(sum(value * value for value in residuals)) / sum(w)
    doubly = []
    for fold in range(folds):
        q = _fitted([row for i, row in enumerate(first) if i % folds != fold], lam)
        for i in range(fold, len(first), folds):
            row, pi = first[i], chances[i]
            direct = sum(share * q(arm, row.phi) for arm, share in pi.items())
            doubly.append(direct + w[i] * (r[i] - q(row.arm, row.phi)))
    return Evaluation(_mean(weighed), Estimate(share, spread), _mean(doubly), ess, len(first))


def _fitted(rows: Sequence[Attempt], lam: float) -> Callable[[str, Sequence[float]], float]:
    models: dict[str, Regression] = {}
    for row in rows:
        model = models.get(row.arm) or Regression.empty(len(row.phi), lam)
        models[row.arm] = model.updated(row.phi, row.r or 0.0)
    return lambda arm, phi: models[arm].q(phi) if arm in models else 0.0


def _mean(values: Sequence[float]) -> Estimate:
    value = fmean(values)
    spread = sum((each - value) ** 2 for each in values) / max(1, len(values) - 1)
    return Estimate(value, math.sqrt(spread / len(values)))
