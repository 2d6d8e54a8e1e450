"""The compute-allocation model: the paper's numbers, recovery from its own data, choosing, forecasts."""

import math
from itertools import pairwise, product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx

from abduce.serving.errors import UsageError
from abduce.strategies.rag.algebra import least_squares, levenberg_marquardt
from abduce.strategies.rag.allocation import (
    GRID_K,
    GRID_M,
    GRID_N,
    Allocation,
    Best,
    Gains,
    Point,
    Sigmoid,
    every,
    fit,
    from_json,
    frontier,
    line,
    normalised,
)
from abduce.strategies.rag.forecast import Costs, Sent, Theta, Tokens, calibrated, sent

PAPER = Allocation((0.325, 0.101, 0.177), (-0.067, -0.008, 0.0), -0.730)
TASKS = {"one": Gains(1.0, 0.2), "two": Gains(0.3, 1.1), "three": Gains(1.7, -0.4)}


@pytest.mark.parametrize(
    ("theta", "score", "p"),
    [
        ((0, 0, 1), -2.3741, -2.0799),
        ((1, 0, 1), -1.1834, -1.4785),
        ((10, 4, 1), 0.0041, 0.1250),
        ((50, 4, 1), 0.4192, 0.5616),
        ((50, 4, 5), 0.7026, 0.7614),
        ((500, 32, 5), 1.5031, 1.0281),
    ],
)
def test_the_golden_values(theta, score, p):
    assert PAPER.score(Theta(*theta), Gains(1.0, 0.2)) == approx(score, abs=1e-4)
    assert PAPER.predict(Theta(*theta), Gains(1.0, 0.2)) == approx(p, abs=1e-4)


@given(st.floats(-2.179, 1.119))
def test_the_inverse_undoes_sigma_inside_its_domain(p):
    assert Sigmoid()(Sigmoid().inverse(p)) == approx(p, abs=1e-9)


def test_what_sigma_never_reaches_is_clipped():
    sigma = Sigmoid()
    assert sigma(sigma.inverse(5.0)) == approx(1.12 - 1e-3)
    assert sigma(sigma.inverse(-5.0)) == approx(-2.18 + 1e-3)
    assert sigma(-1e9) == approx(-2.18) and sigma(1e9) == approx(1.12)


# ---------------------------------------------------------------- fitting


SMALL = [Theta(*theta) for theta in product((1, 5, 20, 100), (0, 4), (1, 3, 5))]
LARGE = [Theta(*theta) for theta in product((0, 1, 5, 20, 100), (0, 1, 4, 16), (1, 3, 5))]


def made(noise, seed, grid=LARGE, *, on_score=True):
    """Points of the paper's model, with noise on the score or on P."""
    random = Random(seed)
    points = []
    for (name, gains), theta in product(TASKS.items(), grid):
        score, error = PAPER.score(theta, gains), random.gauss(0, noise)
        p = PAPER.sigma(score + error) if on_score else PAPER.sigma(score) + error
        points.append(Point(name, theta, p))
    return points


@pytest.mark.parametrize("on_score", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_least_squares_find_the_six_numbers_again_and_choose_as_well_as_they_would(seed, on_score):
    points = made(0.05, seed, SMALL, on_score=on_score)
    assert len(points) >= 60
    found = fit(points, TASKS, sigma=Sigmoid())
    for ours, true in zip((*found.a, *found.b, found.c), (*PAPER.a, *PAPER.b, PAPER.c), strict=True):
        assert ours == approx(true, abs=0.05)
    for name, gains in TASKS.items():
        for budget in (16_000, 128_000, 1_000_000):
            ours = PAPER.predict(found.choose(budget, task=name), gains)
            best = PAPER.predict(PAPER_OF[name].choose(budget), gains)
            assert best - ours <= 0.02 * abs(best)


PAPER_OF = {name: Allocation(PAPER.a, PAPER.b, PAPER.c, tasks={name: gains}) for name, gains in TASKS.items()}


@pytest.mark.parametrize("seed", range(3))
def test_a_curve_that_is_not_the_papers_is_found(seed):
    random = Random(seed)
    true = Allocation(PAPER.a, PAPER.b, PAPER.c, Sigmoid(2.4, 1.2, 0.1, -1.3))
    points = [
        Point(p.task, p.theta, true.predict(p.theta, TASKS[p.task]) + random.gauss(0, 0.02))
        for p in made(0, seed)
    ]
    free, fixed = fit(points, TASKS), fit(points, TASKS, sigma=Sigmoid())
    assert free.mse < fixed.mse and free.r2 > 0.97
    assert free.n_points == len(points)


def test_with_few_points_the_papers_curve_is_kept():
    points = [p for p in made(0.01, 0) if p.task == "one"][:20]
    assert fit(points, {"one": TASKS["one"]}).sigma == Sigmoid()


def test_a_task_alone_has_no_b_and_settings_that_never_vary_are_refused():
    one = [p for p in made(0.0, 0) if p.task == "one"]
    found = fit(one, {"one": TASKS["one"]}, sigma=Sigmoid())
    assert found.b == (0, 0, 0)
    for p in one:
        assert found.predict(p.theta, TASKS["one"]) == approx(p.p, abs=1e-6)
    with pytest.raises(UsageError, match="Vary all three"):
        fit([Point("one", Theta(5, 2, 1), 0.1)] * 8, {"one": TASKS["one"]})


def test_normalising_takes_the_mean_and_the_spread_and_tells_what_one_more_is_worth():
    p = {(0, 0, 1): 0.1, (1, 0, 1): 0.4, (0, 1, 1): 0.2, (5, 1, 3): 0.7}
    points, gains = normalised([Point("t", Theta(*theta), value) for theta, value in p.items()])
    values = [point.p for point in points]
    assert sum(values) == approx(0) and sum(v * v for v in values) == approx(len(values))
    assert (gains["t"].mean, gains["t"].i_doc) == (approx(0.35), approx(0.3 / gains["t"].sd))
    with pytest.raises(UsageError, match="equally well"):
        normalised([Point("t", Theta(*theta), 0.5) for theta in p])
    with pytest.raises(UsageError, match=r"\(0, 1, 1\)"):
        normalised([Point("t", Theta(0, 0, 1), 0.1), Point("t", Theta(1, 0, 1), 0.2)])


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=2), st.integers(0, 1000))
def test_least_squares_are_exact_where_there_is_no_noise(beta, seed):
    random = Random(seed)
    x = [[random.uniform(-1, 1), 1.0] for _ in range(6)]
    found = least_squares(x, [a * beta[0] + beta[1] for a, _ in x])
    assert found == approx(beta, abs=1e-6)
    assert least_squares([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], [1, 2, 3]) is None


def test_a_valley_is_descended():
    rosenbrock = levenberg_marquardt(lambda q: [10 * (q[1] - q[0] ** 2), 1 - q[0]], [-1.2, 1.0])
    assert rosenbrock == approx([1, 1], abs=1e-4)


# ---------------------------------------------------------------- choosing


def test_more_budget_never_chooses_worse_and_every_choice_fits():
    scores = []
    for budget in (200, 1_000, 16_000, 32_000, 128_000, 1_000_000, 5_000_000):
        theta = PAPER_OF["one"].choose(budget)
        assert PAPER.costs.forecast(theta) <= budget
        scores.append(PAPER.score(theta, TASKS["one"]))
    assert all(a <= b for a, b in pairwise(scores))
    assert PAPER_OF["one"].choose(1) == (0, 0, 1)


def test_among_equals_the_cheapest_and_never_beyond_the_bounds():
    flat = Allocation((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.0)
    assert flat.choose(1e9) == (0, 0, 1)
    theta = PAPER_OF["one"].choose(1e9, most_k=20, most_m=3, most_n=2)
    assert theta == (20, 2, 2)
    grid = every(GRID_K[-1], None, GRID_N[-1])
    assert len(grid) == len(set(grid)) == (len(GRID_K) - 1) * len(GRID_M) * len(GRID_N) + len(GRID_M)


def test_documents_that_hurt_are_not_read():
    hurt = Allocation((0.0, 0.1, 0.1), (0.2, 0.0, 0.0), 0.0, tasks={"t": Gains(-1.0, 0.1)})
    assert hurt.choose(1e6, task="t").k == 0
    with pytest.raises(UsageError, match="Known: t"):
        hurt.choose(1e6, task="u")


def test_a_model_survives_its_file():
    found = fit(made(0.05, 1), TASKS)
    assert from_json(found.to_json()) == found
    for wrong in ({}, [], None, {"a": [1]}, {**found.to_json(), "extra": 1}):
        with pytest.raises(UsageError, match="abduce rag fit"):
            from_json(wrong)


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize(("k", "m"), [(0, 0), (3, 0), (3, 2)])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_forecast_sums_what_each_call_reads(k, m, n):
    if n == 1:
        assert sent(Theta(k, m, n)) == (1, k * (m + 1), m, 0)
        return
    documents = (
        sum(2 * k * (1 + j) for j in range(n)) + k * n + k * (1 + n)
    )  # each follow-up, each answer, the end
    assert sent(Theta(k, m, n)) == (
        2 * n + 1,
        documents + k * m * (2 * n + 1),
        m * (2 * n + 1),
        sum(range(2 * n + 1)),
    )


@pytest.mark.parametrize("n", [(1,), (2, 3, 5)])
def test_what_each_part_costs_is_read_off_logged_calls(n):
    true = Tokens(70, 120, 33, 12, 1.0)
    random = Random(0)
    grid = [theta for theta in every(20, 4, 5) if theta.n in n]
    runs = [(sent(t), true.total(sent(t)) * random.uniform(0.95, 1.05)) for t in grid]
    found = calibrated(runs, Tokens())
    assert found.document == approx(120, rel=0.03) and found.call == approx(70, rel=0.1)
    assert 1.0 <= found.margin <= 1.1
    costs = Costs(found, found)
    within = sum(costs.forecast(theta) >= total for theta, (_, total) in zip(grid, runs, strict=True))
    assert within >= 0.9 * len(runs)


def test_what_was_never_sent_alone_keeps_what_is_usual():
    usual = Tokens()
    assert calibrated([], usual) == usual
    only = calibrated([(Sent(1, 0, 0, 0), 50.0)], usual)
    assert (only.call, only.document) == (approx(50), usual.document)
    together = calibrated([(Sent(5, 10, 0, 10), 5 * 60 + 10 * 100 + 10 * usual.line)] * 3, usual)
    assert together.total(Sent(5, 10, 0, 10)) == approx(5 * 60 + 10 * 100 + 10 * usual.line)


def test_either_way_has_costs_of_its_own():
    costs = Costs(Tokens(10, 0, 0, 0, 2.0), Tokens(20, 0, 0, 0, 1.0))
    assert costs.forecast(Theta(1, 0, 1)) == 20 and costs.forecast(Theta(1, 0, 1), hard=False) == 10
    assert costs.forecast(Theta(1, 0, 2)) == 100


# ---------------------------------------------------------------- P*


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(1, 1e6)), min_size=1, max_size=30),
    st.lists(st.floats(1, 1e6), min_size=1, max_size=8),
)
def test_the_best_within_a_budget_never_falls_with_it(runs, budgets):
    found = frontier([(Theta(1, 0, 1), p, tokens) for p, tokens in runs], budgets)
    assert all(a.p <= b.p for a, b in pairwise(found))


def test_growth_with_the_logarithm_of_the_budget_is_a_line():
    points = [Best(budget, 0.1 * math.log(budget) + 0.2, Theta(1, 0, 1)) for budget in (1e3, 1e4, 1e5)]
    assert line(points) == (approx(0.1), approx(0.2), approx(1.0))
    assert math.isnan(line(points[:1])[0])
