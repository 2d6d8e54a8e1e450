"""The rules of probability against the same sums in linear space."""

import math
import random

import numpy as np
import pytest

from abduce.strategies.thinksum.table import (
    IMPOSSIBLE,
    OPERATORS,
    Table,
    both,
    entropy,
    log_sum_exp,
    majority,
    mixture,
    normalise,
    normalised,
    plus,
    product,
    ratio,
)


def matrix(seed, n=5, m=4):
    return np.random.default_rng(seed).normal(-3, 2, (n, m))


def table(rows):
    return Table.of_rows(("i", "j"), [list(row) for row in rows])


def weights(values):
    return Table(("j",), {(j,): float(w) for j, w in enumerate(values)})


@pytest.mark.parametrize("seed", range(20))
def test_reductions_equal_brute_force_in_linear_space(seed):
    logs, w = matrix(seed), np.random.default_rng(seed + 99).normal(0, 1, 4)
    share = np.exp(w) / np.exp(w).sum()
    expected = {
        "mixture": (np.log(np.exp(logs).mean(1)), np.log(np.exp(logs) @ share)),
        "product": (logs.mean(1), logs @ share),
        "min": (logs.min(1), logs.min(1)),
        "max": (logs.max(1), logs.max(1)),
    }
    for name, (equal, weighed) in expected.items():
        assert OPERATORS[name](table(logs), ["j"], None).vector(5) == pytest.approx(equal.tolist())
        assert OPERATORS[name](table(logs), ["j"], weights(w)).vector(5) == pytest.approx(weighed.tolist())


@pytest.mark.parametrize("seed", range(20))
def test_ratio_plus_both_and_normalise_equal_brute_force(seed):
    logs, b = matrix(seed, 4, 4), matrix(seed + 50, 4, 4)
    base = Table(("i",), {(i,): float(x) for i, x in enumerate(b[:, 0])})
    for found, expected in (
        (ratio(table(logs), base), logs - b[:, :1]),
        (plus(table(logs), table(b)), logs + b),
        (both(table(logs)), logs + logs.T),
        (normalise(table(logs), ["i"]), logs - np.log(np.exp(logs).sum(0))),
        (normalise(table(logs), ["i", "j"]), logs - np.log(np.exp(logs).sum())),
    ):
        assert [found.cells[i, j] for i in range(4) for j in range(4)] == pytest.approx(expected.ravel())


def test_mixture_of_equal_rows_is_the_row():
    row = [-1.0, -20.0, IMPOSSIBLE]
    found = mixture(Table.of_rows(("i", "j"), [[x] * 7 for x in row]), ["j"])
    assert found.vector(3) == pytest.approx(row)


@pytest.mark.parametrize("c", [-300.0, 0.1, 1e4])
def test_ratio_ignores_a_constant_in_both(c):
    logs, b = matrix(1), matrix(2)
    assert ratio(table(logs + c), table(b + c)).cells == pytest.approx(
        ratio(table(logs), table(b)).cells, abs=1e-9
    )


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_normalise_sums_to_one_without_overflow(scale):
    found = normalise(table(matrix(3) * scale - scale), ["i"])
    for j in range(4):
        assert math.fsum(math.exp(found.cells[i, j]) for i in range(5)) == pytest.approx(1)
    assert log_sum_exp([-1e4] * 3) == pytest.approx(-1e4 + math.log(3))
    assert sum(normalised([-1e4, -1e4 - 1])) == pytest.approx(1)


def test_the_impossible_stays_so_and_nothing_becomes_nan():
    logs = Table.of_rows(("i", "j"), [[IMPOSSIBLE, IMPOSSIBLE], [IMPOSSIBLE, -1.0]])
    assert mixture(logs, ["j"]).vector(2) == [IMPOSSIBLE, pytest.approx(-1 - math.log(2))]
    assert product(logs, ["j"]).vector(2) == [IMPOSSIBLE, IMPOSSIBLE]
    assert ratio(logs, logs).cells[0, 0] == IMPOSSIBLE
    assert normalise(logs, ["i"]).cells[0, 0] == IMPOSSIBLE
    assert not any(math.isnan(x) for op in OPERATORS.values() for x in op(logs, ["j"], None).cells.values())


def test_absent_cells_are_left_out_and_not_made_up():
    logs = Table(("i", "j"), {(0, 1): -2.0, (0, 2): -4.0, (1, 0): -6.0})
    assert product(logs, ["j"]).cells == {(0,): -3.0, (1,): -6.0}
    assert both(logs).cells == {(0, 1): -8.0, (1, 0): -8.0}  # (0, 2) has no other direction


def test_a_vote_counts_the_columns_won_and_ties_share_it():
    logs = Table.of_rows(("i", "j"), [[-1, -5, -2], [-3, -4, -2]])
    assert majority(logs, ["j"]).vector(2) == [1.5, 1.5]
    assert sum(majority(table(matrix(4)), ["j"]).vector(5)) == pytest.approx(4)


def test_entropy_is_0_for_certainty_and_1_for_ignorance():
    for cells, expected in (([-1.0] * 6, 1.0), ([0.0, IMPOSSIBLE], 0.0), ([-5.0], 0.0)):
        found = entropy(Table(("i",), {(i,): x for i, x in enumerate(cells)}), ["i"])
        assert found.cells[()] == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_the_order_of_the_items_does_not_matter(name):
    logs, order = matrix(6), list(range(5))
    random.Random(name).shuffle(order)
    over = ["i"] if name in ("entropy", "normalise") else ["j"]
    straight = OPERATORS[name](table(logs), over, None)
    turned = OPERATORS[name](table(logs[order]), over, None)
    if "i" in straight.axes:
        at = {old: new for new, old in enumerate(order)}
        turned = Table(turned.axes, {k: turned.cells[at[k[0]], *k[1:]] for k in straight.cells})
    assert turned.cells == straight.cells
