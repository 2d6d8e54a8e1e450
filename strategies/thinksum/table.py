"""Tables of log-likelihoods, and the rules of probability that combine them: the Sum of ThinkSum.

    mixture    m_i = ln Σ_j w_j exp l_ij,  Σ_j w_j = 1      any j may explain i
    product    g_i = Σ_j w_j l_ij                           i must fit all j
    ratio      r_i = l_i − b_i                              what the premise adds
    normalise  ln q_i = l_i − ln Σ_k exp l_k                posterior
    majority   v_i = #{j : i = argmax_k l_kj}               robust vote

A cell that could not be scored, or that makes no sense (a word beside itself), is absent, and every rule
leaves it out. −∞ is a number like others: an impossible row.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Index: TypeAlias = tuple[int, ...]
IMPOSSIBLE = -math.inf


@dataclass(frozen=True)
class Table:
    """Numbers by the index of each axis; axes have names."""

    axes: tuple[str, ...]
    cells: Mapping[Index, float]

    @classmethod
    def of_rows(cls, axes: tuple[str, str], rows: Sequence[Sequence[float]]) -> "Table":
        """A whole matrix."""
        return cls(axes, {(i, j): x for i, row in enumerate(rows) for j, x in enumerate(row)})

    def at(self, axes: Sequence[str], index: Index) -> float | None:
        """The cell at an index over more axes than the table may have."""
        return self.cells.get(tuple(index[axes.index(axis)] for axis in self.axes))

    def vector(self, n: int) -> list[float]:
        """The n cells of a table with one axis, absent ones as impossible."""
        assert len(self.axes) == 1
        return [self.cells.get((i,), IMPOSSIBLE) for i in range(n)]


def log_sum_exp(values: Iterable[float]) -> float:
    """ln Σ exp x; −∞ for nothing.

    >>> log_sum_exp([-1e4, -1e4]) == -1e4 + math.log(2), log_sum_exp([])
    (True, -inf)
    """
    known = list(values)
    best = max(known, default=IMPOSSIBLE)
    if math.isinf(best):
        return best
    return best + math.log(math.fsum(math.exp(x - best) for x in known))


def normalised(values: Sequence[float]) -> list[float]:
    """exp x_i / Σ exp x_k; all equal where every one is impossible.

    >>> normalised([-1e4, -1e4])
    [0.5, 0.5]
    """
    best = max(values)
    if math.isinf(best):
        return [1.0 / len(values)] * len(values)
    weights = [math.exp(x - best) for x in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


# ---------------------------------------------------------------- over an axis


def mixture(table: Table, over: Sequence[str], weights: Table | None = None) -> Table:
    """m = ln Σ_j w_j exp l_j. `weights` are log-weights over these axes; equal ones where there are none."""

    def combine(cells: list[tuple[float, float]]) -> float:
        return log_sum_exp(x + w for x, w in cells) - log_sum_exp(w for _, w in cells)

    return _reduced(table, over, weights, combine)


def product(table: Table, over: Sequence[str], weights: Table | None = None) -> Table:
    """g = Σ_j w_j l_j, weights as in `mixture`: the logarithm of the geometric mean."""

    def combine(cells: list[tuple[float, float]]) -> float:
        shares = normalised([w for _, w in cells])
        return math.fsum(share * x for share, (x, _) in zip(shares, cells, strict=True) if share)

    return _reduced(table, over, weights, combine)


def minimum(table: Table, over: Sequence[str], weights: Table | None = None) -> Table:
    """The weakest link."""
    return _reduced(table, over, weights, lambda cells: min(x for x, _ in cells))


def maximum(table: Table, over: Sequence[str], weights: Table | None = None) -> Table:
    """The best witness."""
    return _reduced(table, over, weights, lambda cells: max(x for x, _ in cells))


def majority(table: Table, over: Sequence[str], weights: Table | None = None) -> Table:
    """v_i = #{j : i = argmax_k l_kj}; ties share the vote."""
    rest = [axis for axis in table.axes if axis not in over]
    columns: dict[Index, dict[Index, float]] = {}
    votes: dict[Index, float] = {}
    for index, value in table.cells.items():
        place = _at(table.axes, index, rest)
        columns.setdefault(_at(table.axes, index, over), {})[place] = value
        votes[place] = 0.0
    for place, column in columns.items():
        best = max(column.values())
        first = [i for i, value in column.items() if value == best]
        weight = 0.0 if weights is None else (weights.at(list(over), place) or 0.0)
        for i in first:
            votes[i] += math.exp(weight) / len(first)
    return Table(tuple(rest), votes)


def entropy(table: Table, over: Sequence[str], weights: Table | None = None) -> Table:
    """−Σ q ln q / ln n of the normalised cells: 0 for one certain answer, 1 for n equal ones."""

    def combine(cells: list[tuple[float, float]]) -> float:
        if len(cells) < 2:
            return 0.0
        q = normalised([x + w for x, w in cells])
        return -math.fsum(p * math.log(p) for p in q if p > 0) / math.log(len(cells))

    return _reduced(table, over, weights, combine)


def normalise(table: Table, over: Sequence[str], weights: Table | None = None) -> Table:
    """ln q = l − ln Σ exp l, the sum over the axes named."""
    rest = [axis for axis in table.axes if axis not in over]
    groups: dict[Index, list[float]] = {}
    for index, value in table.cells.items():
        groups.setdefault(_at(table.axes, index, rest), []).append(value)
    totals = {place: log_sum_exp(values) for place, values in groups.items()}
    cells = {}
    for index, value in table.cells.items():
        total = totals[_at(table.axes, index, rest)]
        cells[index] = IMPOSSIBLE if math.isinf(value) else value - total
    return Table(table.axes, cells)


# ---------------------------------------------------------------- cell by cell


def ratio(above: Table, below: Table) -> Table:
    """r = l − b: a likelihood against that of the same text without the premise. What the premise makes
    impossible stays so."""
    return _joined(above, below, lambda x, b: x if math.isinf(x) else x - b)


def plus(one: Table, other: Table) -> Table:
    """l + m: both."""
    return _joined(one, other, lambda x, y: x + y)


def both(table: Table) -> Table:
    """l_ij + l_ji, of a table over one list twice: the two directions cancel how frequent the words are."""
    pairs = {(i, j): (x, table.cells.get((j, i))) for (i, j), x in table.cells.items()}
    return Table(table.axes, {ij: x + y for ij, (x, y) in pairs.items() if y is not None})


# ---------------------------------------------------------------- parts


def _reduced(
    table: Table,
    over: Sequence[str],
    weights: Table | None,
    combine: Callable[[list[tuple[float, float]]], float],
) -> Table:
    """Each group of cells that differ in the axes `over` only, with their log-weights, as one cell."""
    rest = [axis for axis in table.axes if axis not in over]
    groups: dict[Index, list[tuple[float, float]]] = {}
    for index, value in table.cells.items():
        weight = 0.0 if weights is None else weights.at(table.axes, index)
        if weight is not None:
            groups.setdefault(_at(table.axes, index, rest), []).append((value, weight))
    return Table(tuple(rest), {place: combine(cells) for place, cells in groups.items()})


def _joined(one: Table, other: Table, combine: Callable[[float, float], float]) -> Table:
    """Cell by cell; an axis that the other lacks is one along which it does not change."""
    cells = {}
    for index, value in one.cells.items():
        beside = other.at(one.axes, index)
        if beside is not None:
            cells[index] = combine(value, beside)
    return Table(one.axes, cells)


def _at(axes: Sequence[str], index: Index, chosen: Sequence[str]) -> Index:
    return tuple(index[axes.index(axis)] for axis in chosen)


OPERATORS: dict[str, Callable[[Table, Sequence[str], Table | None], Table]] = {
    "mixture": mixture,
    "product": product,
    "min": minimum,
    "max": maximum,
    "majority": majority,
    "entropy": entropy,
    "normalise": normalise,
}
"""What takes axes away, `normalise` excepted."""
