"""Least squares for a handful of unknowns, in plain Python."""

import math
from collections.abc import Callable, Sequence


def least_squares(x: Sequence[Sequence[float]], y: Sequence[float]) -> list[float] | None:
    """argmin ‖x β − y‖² by Householder's QR of the columns, each scaled to length 1; None where the columns
    depend on each other, or rows are too few.

    >>> least_squares([[1, 0], [1, 1], [1, 2]], [1, 3, 5])
    [1.0, 2.0]
    """
    n = len(x[0]) if x else 0
    if not n or len(x) < n:
        return None
    scale = [math.sqrt(sum(row[j] ** 2 for row in x)) for j in range(n)]
    if not all(scale):
        return None
    a = [[row[j] / scale[j] for j in range(n)] + [y_i] for row, y_i in zip(x, y, strict=True)]
    for j in range(n):
        column = [row[j] for row in a[j:]]
        length = math.copysign(math.sqrt(sum(v * v for v in column)), column[0])
        if abs(length) < 1e-8:
            return None
        v = [column[0] + length, *column[1:]]
        vv = sum(each * each for each in v)
        for c in range(j, n + 1):
            share = 2 * sum(each * row[c] for each, row in zip(v, a[j:], strict=True)) / vv
            for each, row in zip(v, a[j:], strict=True):
                row[c] -= share * each
    beta = [0.0] * n
    for j in reversed(range(n)):
        rest = a[j][n] - sum(a[j][c] * beta[c] for c in range(j + 1, n))
        beta[j] = rest / a[j][j]
    return [round(b / s, 12) for b, s in zip(beta, scale, strict=True)]


def levenberg_marquardt(
    residuals: Callable[[Sequence[float]], Sequence[float]], start: Sequence[float], *, steps: int = 200
) -> list[float]:
    """A local minimum of the sum of squares near `start`, derivatives by differences; a step to where a
    residual is no number is not taken."""
    at, damping = list(start), 1e-2
    now = residuals(at)
    loss = _squares(now)
    for _ in range(steps):
        jacobian = []
        for j, value in enumerate(at):
            h = 1e-6 * max(1.0, abs(value))
            moved = residuals([*at[:j], value + h, *at[j + 1 :]])
            jacobian.append([(b - a) / h for a, b in zip(now, moved, strict=True)])
        rows = [list(row) for row in zip(*jacobian, strict=True)]
        scale = [math.sqrt(sum(d * d for d in column)) or 1.0 for column in jacobian]
        damped = [[math.sqrt(damping) * s * (i == j) for j, s in enumerate(scale)] for i in range(len(at))]
        step = least_squares(rows + damped, [-r for r in now] + [0.0] * len(at))
        if step is None:
            return at
        there = [a + s for a, s in zip(at, step, strict=True)]
        found = residuals(there)
        better = _squares(found)
        if math.isfinite(better) and better < loss:
            done = loss - better <= 1e-12 * loss
            at, now, loss, damping = there, found, better, max(1e-9, damping / 4)
            if done:
                return at
        else:
            damping *= 4
            if damping > 1e9:
                return at
    return at


def _squares(values: Sequence[float]) -> float:
    try:
        return sum(v * v for v in values)
    except OverflowError:
        return math.inf
