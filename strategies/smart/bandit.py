"""The mathematics of the choice: a Bayesian linear regression for each arm, and policies over arms.

    A = λI + Σ w φφᵀ,   b = Σ w r φ,   θ = A⁻¹ b
    q(x) = θ·φ,   u(x) = √(φᵀ A⁻¹ φ)
    softmax    π(a|x) = (1−ε) softmax((q_a + α u_a) / τ) + ε/K
    thompson   θ̃_a·φ ~ N(q_a, v² u_a²), the largest is chosen; π by 256 draws, at least 1/512

θ̃ enters through θ̃·φ only, so one normal number an arm is a draw. Source: A Contextual-Bandit Approach to
Personalized News Article Recommendation (LinUCB), arXiv 1003.0146; Thompson Sampling for Contextual Bandits
with Linear Payoffs, arXiv 1209.3352.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from ...serving.errors import UsageError, demand

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Regression:
    """One arm's sums. `S` = Σ w φφᵀ stands apart from λI, so that sums of two logs add and forgetting shrinks
    what was seen, never the prior."""

    lam: float
    S: tuple[Vector, ...]
    b: Vector

    @classmethod
    def empty(cls, d: int, lam: float = 1.0) -> "Regression":
        """Nothing seen yet."""
        return cls(lam, tuple((0.0,) * d for _ in range(d)), (0.0,) * d)

    def updated(self, phi: Sequence[float], r: float, w: float = 1.0) -> "Regression":
        """After one more observation."""
        S = tuple(
            tuple(s + w * x * y for s, y in zip(row, phi, strict=True))
            for row, x in zip(self.S, phi, strict=True)
        )
        return Regression(self.lam, S, tuple(b + w * r * x for b, x in zip(self.b, phi, strict=True)))

    def scaled(self, factor: float) -> "Regression":
        """All that was seen, weighing so much less."""
        S = tuple(tuple(factor * s for s in row) for row in self.S)
        return Regression(self.lam, S, tuple(factor * b for b in self.b))

    def __add__(self, other: "Regression") -> "Regression":
        """The sums of both logs."""
        S = tuple(
            tuple(x + y for x, y in zip(mine, theirs, strict=True))
            for mine, theirs in zip(self.S, other.S, strict=True)
        )
        return Regression(self.lam, S, tuple(x + y for x, y in zip(self.b, other.b, strict=True)))

    @cached_property
    def L(self) -> list[list[float]]:
        """A = L Lᵀ, lower triangular. Exists for every λ > 0 and w ≥ 0."""
        L: list[list[float]] = []
        for i, row in enumerate(self.S):
            line: list[float] = []
            for j in range(i):
                line.append((row[j] - sum(map(_times, line, L[j]))) / L[j][j])
            line.append(math.sqrt(row[i] + self.lam - sum(value * value for value in line)))
            L.append(line)
        return L

    @cached_property
    def theta(self) -> Vector:
        """A⁻¹ b."""
        half = _forward(self.L, self.b)
        theta = [0.0] * len(half)
        for i in reversed(range(len(half))):
            rest = sum(self.L[k][i] * theta[k] for k in range(i + 1, len(half)))
            theta[i] = (half[i] - rest) / self.L[i][i]
        return tuple(theta)

    def q(self, phi: Sequence[float]) -> float:
        """The reward that is expected."""
        return sum(t * x for t, x in zip(self.theta, phi, strict=True))

    def u(self, phi: Sequence[float]) -> float:
        """How uncertain that is."""
        return math.sqrt(sum(value * value for value in _forward(self.L, phi)))


def _times(x: float, y: float) -> float:
    return x * y


def _forward(L: Sequence[Sequence[float]], b: Sequence[float]) -> list[float]:
    """L⁻¹ b."""
    found: list[float] = []
    for row, value in zip(L, b, strict=True):
        found.append((value - sum(map(_times, row, found))) / row[-1])
    return found


# ---------------------------------------------------------------- policies


@dataclass(frozen=True)
class Chooser:
    """A policy over arms: "softmax", "thompson", "greedy", "uniform" or "fixed:<arm>". Until `n0` first
    attempts an arm have been seen, the first two are uniform."""

    choose: str = "softmax"
    eps: float = 0.05
    tau: float = 0.05
    alpha: float = 0.5
    v: float = 0.2
    n0: int = 10

    def __post_init__(self) -> None:
        known = self.choose in ("softmax", "thompson", "greedy", "uniform") or self.fixed
        demand(bool(known), "choose", self.choose, "write softmax, thompson, greedy, uniform or fixed:<arm>")
        demand(0 <= self.eps <= 1, "eps", self.eps, "write a share, such as 0.05")
        demand(self.tau > 0, "tau", self.tau, "write a number above 0, such as 0.05")
        demand(self.alpha >= 0 and self.v >= 0, "alpha or v", (self.alpha, self.v), "write 0 or more")
        demand(self.n0 >= 0, "n0", self.n0, "write 0 or more")

    @property
    def fixed(self) -> str:
        """The one arm, if it is always the same."""
        return self.choose.removeprefix("fixed:") if self.choose.startswith("fixed:") else ""

    @property
    def estimated(self) -> bool:
        """Whether propensities are Monte-Carlo estimates."""
        return self.choose == "thompson"

    def pi(
        self, q: Mapping[str, float], u: Mapping[str, float], *, cold: bool, rng: Random
    ) -> dict[str, float]:
        """π over the arms of `q`, in their order. Raises UsageError if the fixed arm is not among them."""
        arms = list(q)
        if self.fixed:
            if self.fixed not in q:
                raise UsageError(f"choose is {self.choose!r}, and the arms there are: {', '.join(arms)}.")
            return {arm: float(arm == self.fixed) for arm in arms}
        if self.choose == "greedy":
            best = max(arms, key=lambda arm: q[arm])
            return {arm: float(arm == best) for arm in arms}
        if self.choose == "uniform" or cold:
            return dict.fromkeys(arms, 1 / len(arms))
        if self.choose == "softmax":
            return softmax({a: (q[a] + self.alpha * u[a]) / self.tau for a in arms}, self.eps)
        return thompson(q, {a: self.v * u[a] for a in arms}, rng)


def softmax(logits: Mapping[str, float], eps: float = 0.0) -> dict[str, float]:
    """(1−ε) softmax + ε/K.

    >>> softmax({"a": 0.0, "b": 0.0})
    {'a': 0.5, 'b': 0.5}
    """
    top = max(logits.values())
    weights = {arm: math.exp(value - top) for arm, value in logits.items()}
    total = sum(weights.values())
    return {arm: (1 - eps) * weight / total + eps / len(weights) for arm, weight in weights.items()}


_DRAWS = 256
_FLOOR = 1 / 512


def thompson(mean: Mapping[str, float], sd: Mapping[str, float], rng: Random) -> dict[str, float]:
    """How often each arm's draw is the largest, floored and made to sum to 1."""
    wins = dict.fromkeys(mean, 0)
    for _ in range(_DRAWS):
        drawn = {arm: rng.gauss(mean[arm], sd[arm]) for arm in mean}
        wins[max(drawn, key=drawn.__getitem__)] += 1
    floored = {arm: max(n / _DRAWS, _FLOOR) for arm, n in wins.items()}
    total = sum(floored.values())
    return {arm: share / total for arm, share in floored.items()}
