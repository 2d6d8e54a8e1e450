"""The compute-allocation model: how good a reading will be, by what it may spend.

    σ⁻¹(P(θ)) ≈ (a + b ⊙ i)ᵀ ln(θ + ε) + c,    σ(x) = A / (1 + exp(−B (x + C))) + D

θ = (k, m, n): documents, demonstrations, iterations. P is a metric with the mean of its task taken off and
divided by its standard deviation. a, b (b₃ = 0) and c belong to the model that reads, i = (i_doc, i_shot) to
the task: what one document, one demonstration are worth beside nothing, P(1, 0, 1) − P(0, 0, 1) and P(0, 1,
1) − P(0, 0, 1).

Source: Inference Scaling for Long-Context Retrieval Augmented Generation, arXiv 2410.04343, section 5.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ...serving.errors import UsageError
from .algebra import least_squares, levenberg_marquardt
from .forecast import Costs, Theta, Tokens

EPSILON = 0.01
GRID_K = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
GRID_M = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
GRID_N = (1, 2, 3, 4, 5)
_FEW = 30  # points; with fewer the four constants of σ are not fitted
_EDGE = 1e-3


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """A logistic curve of four constants: from the score to P."""

    A: float = 3.30  # the paper's fit
    B: float = 1.81
    C: float = 0.46
    D: float = -2.18

    def __call__(self, x: float) -> float:
        """P at a score."""
        z = -self.B * (x + self.C)
        return self.D + self.A / (1 + math.exp(min(700.0, z)))

    def inverse(self, p: float) -> float:
        """σ⁻¹; what σ never reaches counts as the nearest that it does, 0.001 from its bounds."""
        p = min(max(p, self.D + _EDGE), self.D + self.A - _EDGE)
        return -self.C - math.log(self.A / (p - self.D) - 1) / self.B


PAPER = Sigmoid()
USUAL = Costs()


@dataclass(frozen=True, slots=True)
class Point:
    """The mean of a metric at one θ of a task."""

    task: str
    theta: Theta
    p: float


@dataclass(frozen=True, slots=True)
class Gains:
    """A task: its i, and how its P was normalised."""

    i_doc: float
    i_shot: float
    mean: float = 0.0
    sd: float = 1.0


@dataclass(frozen=True, slots=True)
class Allocation:
    """A fitted model. `r2` and `mse` are those of P over all points."""

    a: tuple[float, float, float]
    b: tuple[float, float, float]
    c: float
    sigma: Sigmoid = PAPER
    tasks: Mapping[str, Gains] = field(default_factory=dict)
    costs: Costs = USUAL
    r2: float = math.nan
    mse: float = math.nan
    n_points: int = 0
    model: str = ""  # what reads

    def score(self, theta: Theta, gains: Gains) -> float:
        """σ⁻¹(P)."""
        beta = (*self.a, self.b[0], self.b[1], self.c)
        return sum(w * x for w, x in zip(beta, features(theta, gains), strict=True))

    def predict(self, theta: Theta, gains: Gains) -> float:
        """P, normalised."""
        return self.sigma(self.score(theta, gains))

    def gains(self, task: str | None = None) -> Gains:
        """The i of a task of the fit, else the mean over all."""
        if task is not None and task not in self.tasks:
            known = ", ".join(self.tasks) or "none"
            raise UsageError(f"The allocation model knows no task {task!r}. Known: {known}.")
        rows = [self.tasks[task]] if task is not None else list(self.tasks.values()) or [Gains(1.0, 0.0)]
        mean = [sum(getattr(row, name) for row in rows) / len(rows) for name in ("i_doc", "i_shot")]
        return Gains(*mean)

    def choose(
        self,
        budget_tokens: float,
        *,
        task: str | None = None,
        most_m: int | None = None,
        most_k: int = GRID_K[-1],
        most_n: int = GRID_N[-1],
    ) -> Theta:
        """θ* = argmax of P over the grid where the forecast fits the budget; of equals the cheapest, and
        zero-shot where nothing fits."""
        gains = self.gains(task)
        grid = [theta for theta in every(most_k, most_m, most_n) if self.fits(theta, budget_tokens)]

        def worth(theta: Theta) -> tuple[float, float]:
            return self.score(theta, gains), -self.costs.forecast(theta)

        return max(grid, key=worth, default=Theta(0, 0, 1))

    def fits(self, theta: Theta, budget_tokens: float) -> bool:
        """Whether a reading is expected to stay within the budget."""
        return self.costs.forecast(theta) <= budget_tokens

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def every(most_k: int, most_m: int | None, most_n: int) -> list[Theta]:
    """The paper's grid, without what is beyond these. (0, m, n > 1) would have nothing to iterate over."""
    ms = [m for m in GRID_M if most_m is None or m <= most_m]
    ks = [k for k in GRID_K if k <= most_k]
    return [Theta(k, m, n) for k in ks for m in ms for n in GRID_N if n <= most_n and (k or n == 1)]


def features(theta: Theta, gains: Gains) -> list[float]:
    """What a₁, a₂, a₃, b₁, b₂ and c are multiplied with."""
    k, m, n = (math.log(each + EPSILON) for each in theta)
    return [k, m, n, gains.i_doc * k, gains.i_shot * m, 1.0]


def from_json(row: Any) -> Allocation:
    """What `to_json` gave. Raises UsageError for anything else."""
    try:
        told = dict(row)
        return Allocation(
            **{
                **told,
                "a": tuple(map(float, told["a"])),
                "b": tuple(map(float, told["b"])),
                "sigma": Sigmoid(**told["sigma"]),
                "tasks": {name: Gains(**gains) for name, gains in told["tasks"].items()},
                "costs": Costs(**{way: Tokens(**row) for way, row in told["costs"].items()}),
            }
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UsageError(
            f"This is no allocation model ({error}). Make one with: abduce rag fit DATA.jsonl --out FILE"
        ) from None


# ---------------------------------------------------------------- fitting


def normalised(points: Iterable[Point]) -> tuple[list[Point], dict[str, Gains]]:
    """Each task's P with mean 0 and standard deviation 1, and its i. Raises UsageError for a task whose P is
    the same everywhere, or that lacks one of the three θ that i is made of."""
    by_task: dict[str, list[Point]] = {}
    for point in points:
        by_task.setdefault(point.task, []).append(point)
    found: list[Point] = []
    gains: dict[str, Gains] = {}
    for task, rows in by_task.items():
        mean = sum(row.p for row in rows) / len(rows)
        sd = math.sqrt(sum((row.p - mean) ** 2 for row in rows) / len(rows))
        if sd <= 1e-12:
            raise UsageError(
                f"All {len(rows)} settings do equally well on {task} ({mean:g}): there is nothing to fit. "
                "Take other problems, or another model."
            )
        rows = [replace(row, p=(row.p - mean) / sd) for row in rows]
        p = {tuple(row.theta): row.p for row in rows}
        if missing := [theta for theta in ((0, 0, 1), (1, 0, 1), (0, 1, 1)) if theta not in p]:
            raise UsageError(f"{task} has no readings at (k, m, n) = {missing[0]}, which i is made of.")
        gains[task] = Gains(p[1, 0, 1] - p[0, 0, 1], p[0, 1, 1] - p[0, 0, 1], mean, sd)
        found += rows
    return found, gains


def fit(points: Sequence[Point], tasks: Mapping[str, Gains], *, sigma: Sigmoid | None = None) -> Allocation:
    """a, b and c by ordinary least squares on normalised points; σ too where there are enough and none is
    given.

    σ: from the paper's constants and least squares on σ⁻¹(P), (A, B, C, D) and the six are fitted in turn,
    two rounds. One task alone cannot tell a from b, nor two from noise: b is 0 where the columns depend on
    each other.
    """
    rounds = 0 if sigma is not None or len(points) < _FEW else 2
    found = _linear(points, tasks, sigma or PAPER)
    for _ in range(rounds):
        scores = [found.score(point.theta, tasks[point.task]) for point in points]
        found = _better(found, _linear(points, tasks, _curve(points, scores, found.sigma)), points, tasks)
    return _judged(found, points, tasks)


def _linear(points: Sequence[Point], tasks: Mapping[str, Gains], sigma: Sigmoid) -> Allocation:
    rows = [features(point.theta, tasks[point.task]) for point in points]
    y = [sigma.inverse(point.p) for point in points]
    for columns in _COLUMNS:
        beta = least_squares([[row[j] for j in columns] for row in rows], y)
        if beta is not None:
            whole = [0.0] * 6
            for j, value in zip(columns, beta, strict=True):
                whole[j] = value
            a1, a2, a3, b1, b2, c = whole
            return Allocation((a1, a2, a3), (b1, b2, 0.0), c, sigma, dict(tasks))
    raise UsageError(
        f"{len(points)} points do not tell the effects of k, m and n apart. Vary all three: --k 0,1,2,5 "
        "--m 0,1,2 --n 1,3."
    )


_COLUMNS = ((0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 5), (0, 1, 2, 4, 5), (0, 1, 2, 5))  # b as far as it can be told


def _curve(points: Sequence[Point], scores: Sequence[float], start: Sigmoid) -> Sigmoid:
    """σ by least squares between its values at the scores and P, kept rising and wider than the data."""
    low, high = min(point.p for point in points), max(point.p for point in points)

    def made(q: Sequence[float]) -> Sigmoid:
        above, below = math.exp(min(50.0, q[0])), math.exp(min(50.0, q[3]))
        d = low - below
        return Sigmoid(high + above - d, math.exp(min(50.0, q[1])), q[2], d)

    def residuals(q: Sequence[float]) -> list[float]:
        sigma = made(q)
        return [sigma(score) - point.p for score, point in zip(scores, points, strict=True)]

    above = max(0.05, start.D + start.A - high)
    below = max(0.05, low - start.D)
    return made(
        levenberg_marquardt(residuals, [math.log(above), math.log(start.B), start.C, math.log(below)])
    )


def _better(
    one: Allocation, other: Allocation, points: Sequence[Point], tasks: Mapping[str, Gains]
) -> Allocation:
    return min(one, other, key=lambda each: _judged(each, points, tasks).mse)


def _judged(of: Allocation, points: Sequence[Point], tasks: Mapping[str, Gains]) -> Allocation:
    left = [of.predict(point.theta, tasks[point.task]) - point.p for point in points]
    mean = sum(point.p for point in points) / len(points)
    total = sum((point.p - mean) ** 2 for point in points)
    squares = sum(each * each for each in left)
    return replace(
        of, r2=1 - squares / total if total else math.nan, mse=squares / len(points), n_points=len(points)
    )


# ---------------------------------------------------------------- what a budget buys


@dataclass(frozen=True, slots=True)
class Best:
    """P*(L_max), and the θ that has it."""

    budget_tokens: float
    p: float
    theta: Theta


def frontier(runs: Sequence[tuple[Theta, float, float]], budgets: Iterable[float]) -> list[Best]:
    """P*(L_max) = max over θ of P, where the longest reading of θ stays within L_max: `runs` are (θ, P,
    longest L). It never falls, since what fits a budget fits a larger one. Budgets that nothing fits are left
    out."""
    found = []
    for budget in sorted(budgets):
        fitting = [(p, -tokens, theta) for theta, p, tokens in runs if tokens <= budget]
        if fitting:
            p, _, theta = max(fitting)
            found.append(Best(budget, p, theta))
    return found


def line(points: Sequence[Best]) -> tuple[float, float, float]:
    """P* ≈ slope · ln L_max + intercept, and R²."""
    x = [[math.log(each.budget_tokens), 1.0] for each in points]
    beta = least_squares(x, [each.p for each in points])
    if beta is None:
        return math.nan, math.nan, math.nan
    slope, intercept = beta
    mean = sum(each.p for each in points) / len(points)
    total = sum((each.p - mean) ** 2 for each in points)
    left = sum((slope * row[0] + intercept - each.p) ** 2 for row, each in zip(x, points, strict=True))
    return slope, intercept, 1 - left / total if total else math.nan
