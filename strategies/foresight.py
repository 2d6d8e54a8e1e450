r"""What a few steps into the future say of a step: the formulas of MAXS, on log-probabilities alone.

    F = mean log p of the look-ahead's tokens            A = F − F_prev            R_adv = exp(A/τ)
    V_step = Var(g_1 … g_N)          V_slope = Var(g_2 − g_1 … g_N − g_{N−1})      R_v = exp(−V/τ)
    R_c = (1−α−β) Norm(R_adv)_c + α Norm(R_step)_c + β Norm(R_slope)_c
    Norm(R)_c = exp(R_c/τ) / Σ_j exp(R_j/τ)

g_n is the mean log-probability of the n-th step's tokens; variances are those of a population. So R sums to 1
over the candidates, and its variance says whether looking ahead still tells them apart.

Source: MAXS: Meta-Adaptive Exploration with LLM Agents, arXiv 2601.09259. Deviates: the paper says neither
what g_n is of several tokens, nor what F is of a whole segment; both are as in Φ-Decoding, arXiv 2503.13288.

>>> seen = [(-0.2, -0.3, -0.1, -0.4), (-0.5,) * 4, (-0.1, -0.2, -0.3, -0.4)]
>>> r = judge([Signal.of(Glimpse(g)) for g in seen], [-0.3] * 3)
>>> [round(x, 5) for x in r.R], round(variance(r.R), 7)
([0.35748, 0.27765, 0.36488], 0.0015597)
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

from ..serving.errors import UsageError, demand

Foresight: TypeAlias = Literal["mean_logprob", "prob"]

STEEPEST = 20.0  # |A/τ| at most, so that the exponential stays finite


@dataclass(frozen=True, slots=True)
class Glimpse:
    """One look-ahead path: g_n, and how many tokens each step has (one each, where it is not said). Without
    steps nothing was seen ahead."""

    g: tuple[float, ...] = ()
    n_tokens: tuple[int, ...] = ()

    def foresight(self, kind: Foresight = "mean_logprob") -> float:
        """F: the mean over all tokens of the path, or its exponential. The path must have a step."""
        n = self.n_tokens or (1,) * len(self.g)
        mean = sum(g * k for g, k in zip(self.g, n, strict=True)) / sum(n)
        return math.exp(mean) if kind == "prob" else mean

    @property
    def v_step(self) -> float:
        """V_step: how uneven the steps are. 0 for fewer than two."""
        return variance(self.g)

    @property
    def v_slope(self) -> float:
        """V_slope: how unevenly they change. 0 for fewer than three; a straight decline has 0 too."""
        return variance([after - before for before, after in pairwise(self.g)])


@dataclass(frozen=True, slots=True)
class Signal:
    """What is known of a candidate. `F` is None where no token was scored: then it changes nothing, A = 0."""

    F: float | None
    v_step: float = 0.0
    v_slope: float = 0.0

    @classmethod
    def of(cls, *glimpses: Glimpse, kind: Foresight = "mean_logprob") -> "Signal":
        """The means over the look-ahead paths of a candidate that have a step."""
        seen = [glimpse for glimpse in glimpses if glimpse.g]
        if not seen:
            return cls(None)
        n = len(seen)
        return cls(
            sum(glimpse.foresight(kind) for glimpse in seen) / n,
            sum(glimpse.v_step for glimpse in seen) / n,
            sum(glimpse.v_slope for glimpse in seen) / n,
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """A and R of all candidates, in their order, and the three parts of R before they are weighted."""

    A: tuple[float, ...]
    advantage: tuple[float, ...]
    step: tuple[float, ...]
    slope: tuple[float, ...]
    R: tuple[float, ...]


def judge(
    signals: Sequence[Signal],
    previous: Sequence[float],
    *,
    alpha: float = 0.3,
    beta: float = 0.2,
    tau: float = 0.6,
) -> Judged:
    """R of each candidate; `previous` is the F that its beam committed to last."""
    A = [0.0 if s.F is None else s.F - before for s, before in zip(signals, previous, strict=True)]
    R_adv = [math.exp(min(STEEPEST, max(-STEEPEST, a / tau))) for a in A]
    advantage = norm(R_adv, tau)
    step = norm([math.exp(-s.v_step / tau) for s in signals], tau)
    slope = norm([math.exp(-s.v_slope / tau) for s in signals], tau)
    rows = zip(advantage, step, slope, strict=True)
    R = [(1 - alpha - beta) * a + alpha * st + beta * sl for a, st, sl in rows]
    return Judged(tuple(A), advantage, step, slope, tuple(R))


def norm(values: Sequence[float], tau: float) -> tuple[float, ...]:
    """The softmax of `values`/τ."""
    most = max(values)
    weights = [math.exp((x - most) / tau) for x in values]
    total = sum(weights)
    return tuple(w / total for w in weights)


def variance(values: Sequence[float]) -> float:
    """Of a population; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return sum((x - mean) ** 2 for x in values) / len(values)


def calibrated(variances: Iterable[float], quantile: float) -> float:
    """The δ at which look-ahead would have stopped at that share of decisions: a quantile of their Var(R).

    Raises UsageError without a decision.
    """
    demand(0.0 <= quantile <= 1.0, "quantile", quantile, "write a share, such as 0.3")
    known = sorted(variances)
    if not known:
        raise UsageError("No decision was made to calibrate δ from. Give more problems, or more candidates.")
    place = quantile * (len(known) - 1)
    low = math.floor(place)
    high = min(low + 1, len(known) - 1)
    return known[low] + (place - low) * (known[high] - known[low])
