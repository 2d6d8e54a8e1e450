"""Laws of the MAXS reward: the worked example, what it does not depend on, and what its terms bound."""

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abduce.serving.errors import UsageError
from abduce.strategies.foresight import Glimpse, Signal, calibrated, judge, norm, variance

approx = pytest.approx
LOGP = st.floats(-8.0, 0.0)
PATH = st.lists(LOGP, min_size=1, max_size=8)
PATHS = st.lists(PATH, min_size=1, max_size=6)

EXAMPLE = [(-0.2, -0.3, -0.1, -0.4), (-0.5, -0.5, -0.5, -0.5), (-0.1, -0.2, -0.3, -0.4)]


def signals(paths):
    return [Signal.of(Glimpse(tuple(path))) for path in paths]


def judged(paths, previous=-0.3, **weights):
    return judge(signals(paths), [previous] * len(paths), **weights)


# ---------------------------------------------------------------- the worked example


def test_the_worked_example_to_1e_5():
    def near(values, abs=1e-5):
        return approx(values, abs=abs, rel=0)

    found = signals(EXAMPLE)
    assert [s.F for s in found] == near([-0.25, -0.5, -0.25])
    assert [s.v_step for s in found] == near([0.0125, 0.0, 0.0125])
    assert [s.v_slope for s in found] == near([0.0422222, 0.0, 0.0])
    r = judged(EXAMPLE)
    assert near((0.05, -0.2, 0.05)) == r.A
    for part, values in {
        r.advantage: (1.08690, 0.71653, 1.08690),
        r.step: (0.97938, 1.0, 0.97938),
        r.slope: (0.93205, 1.0, 1.0),
    }.items():
        assert part == near(norm(values, 0.6))
    assert near((0.35748, 0.27765, 0.36488)) == r.R
    assert variance(r.R) == near(0.0015597, abs=1e-7)
    assert norm(r.R, 0.6) == near((0.3463, 0.3031, 0.3506), abs=1e-4)


def test_the_trend_is_the_variance_of_slopes_so_a_steady_fall_is_not_punished():
    falling, level = judged([(-0.1, -0.9, -1.7, -2.5), (-1.3,) * 4]).slope
    assert falling == approx(level)


# ---------------------------------------------------------------- laws


@given(PATHS, st.floats(-4.0, 0.0))
def test_rewards_sum_to_one(paths, previous):
    r = judged(paths, previous)
    for part in (r.R, r.advantage, r.step, r.slope):
        assert sum(part) == approx(1.0)
        assert all(0.0 <= share <= 1.0 for share in part)


@given(PATHS, st.randoms())
def test_rewards_do_not_depend_on_the_order_of_candidates(paths, rng):
    order = list(range(len(paths)))
    rng.shuffle(order)
    R = judged(paths).R
    assert approx([R[i] for i in order]) == judged([paths[i] for i in order]).R


@given(PATH, st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
def test_variances_ignore_a_constant_and_that_of_slopes_a_trend(g, constant, trend):
    here, shifted = Glimpse(tuple(g)), Glimpse(tuple(x + constant for x in g))
    assert shifted.v_step == approx(here.v_step, abs=1e-9)
    assert shifted.v_slope == approx(here.v_slope, abs=1e-9)
    tilted = Glimpse(tuple(x + trend * n for n, x in enumerate(g)))
    assert tilted.v_slope == approx(here.v_slope, abs=1e-9)


@given(PATHS, st.floats(-8.0, 0.0), st.floats(-8.0, 0.0))
def test_with_one_beam_the_last_foresight_never_changes_who_has_the_largest_advantage(paths, a, b):
    # Where the exponential is clipped candidates tie; nobody overtakes anybody.
    first, second = judged(paths, a).advantage, judged(paths, b).advantage
    for i, j in combinations(range(len(paths)), 2):
        assert (first[i] - first[j]) * (second[i] - second[j]) >= -1e-12


@given(st.lists(LOGP, min_size=2, max_size=8))
def test_no_step_strays_further_from_the_mean_than_the_variance_allows(g):
    # Proposition 2 of the paper.
    epsilon, mean = Glimpse(tuple(g)).v_step, sum(g) / len(g)
    assert all(abs(x - mean) <= math.sqrt(len(g) * epsilon) + 1e-7 for x in g)


@given(st.lists(LOGP, min_size=3, max_size=8))
def test_jumps_are_bounded_by_the_mean_slope_and_the_variance_of_slopes(g):
    # Proposition 3 as it should be.
    epsilon, slope = Glimpse(tuple(g)).v_slope, (g[-1] - g[0]) / (len(g) - 1)
    for m, n in combinations(range(len(g)), 2):
        bound = (n - m) * abs(slope) + math.sqrt((n - m) * (len(g) - 1) * epsilon)
        assert abs(g[m] - g[n]) <= bound + 1e-7


def test_the_published_bound_on_jumps_does_not_hold():
    # Proposition 3 as published: |g_m − g_n| ≤ √((N−1)ε)·|m−n|. A straight decline has ε = 0 and jumps.
    g = (-0.1, -0.6, -1.1, -1.6)
    published = math.sqrt(3 * Glimpse(g).v_slope) * 3
    assert abs(g[0] - g[3]) > published + 1.0


# ---------------------------------------------------------------- edges


@pytest.mark.parametrize(("n", "v_step", "v_slope"), [(1, 0, 0), (2, 1, 0), (3, 1, 1)])
def test_short_paths_have_no_variance(n, v_step, v_slope):
    path = Glimpse((-0.1, -0.9, -0.2)[:n])
    assert (path.v_step > 0, path.v_slope > 0) == (bool(v_step), bool(v_slope))


def test_foresight_is_weighted_by_tokens():
    path = Glimpse((-1.0, -0.1), n_tokens=(1, 9))
    assert path.foresight() == approx(-0.19)
    assert path.foresight("prob") == approx(math.exp(-0.19))


def test_paths_of_one_candidate_are_averaged_and_those_without_a_step_left_out():
    a, b = Glimpse((-0.2, -0.4, -0.3)), Glimpse((-0.6,))
    both = Signal.of(a, b, Glimpse())
    assert approx((a.foresight() + b.foresight()) / 2) == both.F
    assert both.v_step == approx(a.v_step / 2)


def test_where_nothing_was_seen_nothing_changes():
    assert judge([Signal.of(Glimpse())], [-0.7]).A == (0.0,)


def test_one_candidate_has_it_all():
    r = judged([(-0.4, -0.2)])
    assert approx((1.0,)) == r.R and variance(r.R) == 0.0


def test_no_advantage_is_too_large_to_be_weighed():
    r = judge([Signal(0.0), Signal(-1e6)], [-1e9, -1e9], tau=1e-3)
    assert all(math.isfinite(share) for share in r.R)


# ---------------------------------------------------------------- calibration


@given(st.lists(st.floats(0.0, 0.2), min_size=1, max_size=50), st.floats(0.0, 1.0))
def test_a_calibrated_delta_stops_about_that_share_of_decisions(spreads, quantile):
    delta = calibrated(spreads, quantile)
    below = sum(spread < delta - 1e-12 for spread in spreads)
    not_above = sum(spread <= delta + 1e-12 for spread in spreads)
    assert below <= quantile * len(spreads) + 1 and not_above >= quantile * (len(spreads) - 1)


@pytest.mark.parametrize(("spreads", "quantile", "hint"), [([], 0.3, "more problems"), ([0.1], 1.2, "0.3")])
def test_a_quantile_needs_decisions_and_a_share(spreads, quantile, hint):
    with pytest.raises(UsageError, match=hint):
        calibrated(spreads, quantile)
