"""Laws of resampling: unbiased counts, tight counts where promised, weights in log space."""

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abduce.serving.errors import UnknownName
from abduce.strategies.resampling import (
    SCHEMES,
    degenerate,
    ess,
    log_mean_exp,
    logsumexp,
    multinomial,
    normalise,
    scheme,
)

INF = math.inf
WEIGHTS = [0.05, 0.4, 0.0, 0.3, 0.25]
LOG_WEIGHTS = [math.log(w) if w else -INF for w in WEIGHTS]
log_weights = st.lists(st.floats(-30, 30) | st.just(-INF), min_size=1, max_size=20)


class Points:
    """A random generator that returns given numbers."""

    def __init__(self, points):
        self.points = iter(points)

    def random(self):
        return next(self.points)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("n", [1, 4, 5, 13])
def test_counts_are_unbiased(name, n):
    draws, rng = 6000, Random(1)
    totals, squares = Counter(), Counter()
    for _ in range(draws):
        for i, c in Counter(SCHEMES[name](LOG_WEIGHTS, rng, n)).items():
            totals[i] += c
            squares[i] += c * c
    for i, w in enumerate(WEIGHTS):
        mean = totals[i] / draws
        error = math.sqrt(max(squares[i] / draws - mean**2, 0.0) / draws)
        assert abs(mean - n * w) <= 4 * error + 1e-9


@pytest.mark.parametrize("name", ["systematic", "stratified", "residual"])
@given(log_w=log_weights, n=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_counts_stay_close_to_their_mean(name, log_w, n, seed):
    counts = Counter(SCHEMES[name](log_w, Random(seed), n))
    slack = 1e-6
    for i, log_W in enumerate(normalise(log_w)):
        expected = n * math.exp(log_W)
        if name == "systematic":
            assert math.floor(expected - slack) <= counts[i] <= math.ceil(expected + slack)
        elif name == "residual":
            assert counts[i] >= math.floor(expected - slack)
        else:
            assert abs(counts[i] - expected) <= 2 + slack


@pytest.mark.parametrize("name", SCHEMES)
@given(log_w=log_weights, n=st.integers(0, 30), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_n_ancestors_none_of_weight_zero(name, log_w, n, seed):
    ancestors = SCHEMES[name](log_w, Random(seed), n)
    assert len(ancestors) == n
    if not degenerate(log_w):
        assert all(log_w[a] > -INF for a in ancestors)


@pytest.mark.parametrize("name", SCHEMES)
def test_one_hot_weights_leave_one_ancestor(name):
    assert SCHEMES[name]([-INF, 3.0, -INF], Random(0), 7) == [1] * 7


@pytest.mark.parametrize("name", ["systematic", "stratified", "residual"])
@pytest.mark.parametrize("n", [1, 3, 7, 10, 49, 64])
def test_uniform_weights_keep_every_particle(name, n):
    assert sorted(SCHEMES[name]([-5.0] * n, Random(n), n)) == list(range(n))


@pytest.mark.parametrize("name", SCHEMES)
def test_all_zero_weights_resample_uniformly(name):
    log_w = [-INF] * 4
    assert degenerate(log_w) and ess(log_w) == 0.0
    counts = Counter(i for seed in range(2000) for i in SCHEMES[name](log_w, Random(seed), 4))
    assert all(abs(counts[i] - 2000) < 4 * math.sqrt(2000) for i in range(4))


@given(order=st.permutations(range(len(WEIGHTS))), seed=st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_multinomial_is_equivariant_under_permutation(order, seed):
    """Move each point with the stretch of weight it falls into: its particle is drawn again."""
    rng = Random(seed)
    points = [rng.random() for _ in range(6)]
    starts = [sum(WEIGHTS[:i]) for i in range(len(WEIGHTS))]
    moved = {i: sum(WEIGHTS[k] for k in order[: order.index(i)]) for i in order}
    drawn = multinomial(LOG_WEIGHTS, Points(points), len(points))
    shifted = [p - starts[i] + moved[i] for p, i in zip(points, drawn, strict=True)]
    permuted = multinomial([LOG_WEIGHTS[i] for i in order], Points(shifted), len(points))
    assert [order[k] for k in permuted] == drawn


@pytest.mark.parametrize("n", [1, 5, 64])
def test_ess_of_equal_weights_is_n(n):
    assert ess([0.3] * n) == pytest.approx(n)


@given(log_w=st.lists(st.floats(-30, 30), min_size=1, max_size=20))
def test_ess_ignores_a_common_factor(log_w):
    assert ess([x - 500 for x in log_w]) == pytest.approx(ess(log_w))


def test_the_worked_example_of_the_paper():
    """Scores .9 .5 .2 as odds: ESS 1.28, and flatter at T = 2."""
    odds = [math.log(r / (1 - r)) for r in (0.9, 0.5, 0.2)]
    assert [math.exp(x) for x in normalise(odds)] == pytest.approx([0.8780, 0.0976, 0.0244], abs=1e-4)
    assert ess(odds) == pytest.approx(1.28, abs=5e-3)
    assert [math.exp(x) for x in normalise([x / 2 for x in odds])] == pytest.approx(
        [0.667, 0.222, 0.111], abs=1e-3
    )


def test_log_space_neither_overflows_nor_underflows():
    assert logsumexp([-2000.0, -2000.0]) == pytest.approx(-2000 + math.log(2))
    assert logsumexp([]) == logsumexp([-INF]) == -INF
    assert log_mean_exp([800.0, -INF]) == pytest.approx(800 - math.log(2))


def test_an_unknown_scheme_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'systematic'"):
        scheme("sistematic")
