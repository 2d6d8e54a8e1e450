"""The algebra of the sums, and the policies' distributions."""

import math
from collections import Counter
from random import Random

import numpy as np
import pytest

from abduce.serving.errors import UsageError
from abduce.serving.seeds import derive
from abduce.strategies.smart.bandit import Chooser, Regression, softmax
from abduce.strategies.smart.router import Router


def data(seed, n=40, d=6):
    rng = Random(seed)
    return [(tuple(rng.gauss(0, 1) for _ in range(d)), rng.random(), rng.random()) for _ in range(n)]


def fit(rows, d=6, lam=1.0):
    model = Regression.empty(d, lam)
    for phi, r, w in rows:
        model = model.updated(phi, r, w)
    return model


@pytest.mark.parametrize("seed", range(5))
def test_online_sums_equal_the_batch_solution(seed):
    rows = data(seed)
    model = fit(rows, lam=0.7)
    X, r, w = (np.array(column) for column in zip(*rows, strict=True))
    A = 0.7 * np.eye(6) + (X * w[:, None]).T @ X
    b = X.T @ (w * r)
    assert np.allclose(_full(model), A, atol=1e-8)
    assert np.allclose([[*row, *[0] * (6 - len(row))] for row in model.L], np.linalg.cholesky(A), atol=1e-8)
    assert np.allclose(model.b, b, atol=1e-8)
    phi = X[0]
    assert model.q(phi) == pytest.approx(float(phi @ np.linalg.solve(A, b)), abs=1e-8)
    assert model.u(phi) == pytest.approx(math.sqrt(phi @ np.linalg.solve(A, phi)), abs=1e-8)


def _full(model):
    return np.array(model.S) + model.lam * np.eye(len(model.b))


def test_sums_of_two_logs_are_the_joint_fit_whatever_the_order():
    rows = data(1)
    joint, merged = fit(rows), fit(rows[25:]) + fit(rows[:25])
    assert np.allclose(joint.S, merged.S, atol=1e-8) and np.allclose(joint.theta, merged.theta, atol=1e-8)


def test_forgetting_keeps_the_matrix_positive_definite():
    model = Regression.empty(3, 0.1)
    for phi, r, w in data(2, n=3000, d=3):
        model = model.scaled(0.9).updated(phi, r, w)
    for _ in range(500):
        model = model.scaled(0.9)
    assert min(np.linalg.eigvalsh(_full(model))) > 0.099
    assert model.u((1, 1, 1)) == pytest.approx(math.sqrt(3 / 0.1), rel=1e-6)  # all forgotten: the prior


def router():
    made = Router("x", 3)
    for arm, shift in (("a", 0.0), ("b", 0.05), ("c", 0.08)):
        model = fit([(p, r + shift, w) for p, r, w in data(3, n=30, d=3)], d=3)
        made = Router("x", 3, sums={**made.sums, arm: model}, pulls={**made.pulls, arm: 30})
    return made


@pytest.mark.parametrize("choose", ["softmax", "thompson", "uniform", "greedy", "fixed:b"])
def test_propensities_sum_to_one_and_are_the_frequencies(choose):
    made, chooser, phi = router(), Chooser(choose=choose, tau=0.3), (1.0, 0.4, -0.2)
    n = 2000 if choose == "thompson" else 20_000  # each decision draws 256 times
    decided = [made.decide(phi, "abc", chooser, Random(derive(1, seed))) for seed in range(n)]
    found = Counter(each.arm for each in decided)
    for each in decided[:20]:
        assert sum(each.pi.values()) == pytest.approx(1)
    for arm in "abc":
        p = sum(each.pi[arm] for each in decided) / n
        assert abs(found[arm] / n - p) <= 3 * math.sqrt(p * (1 - p) / n) + 1e-12


def test_thompson_estimates_the_chance_to_be_the_largest():
    made, phi = router(), (1.0, 0.4, -0.2)
    rng, n = Random(0), 20_000
    q, sd = (
        {arm: f(arm) for arm in "abc"}
        for f in (lambda a: made.arm(a).q(phi), lambda a: 0.2 * made.arm(a).u(phi))
    )
    wins = Counter(max("abc", key=lambda arm: rng.gauss(q[arm], sd[arm])) for _ in range(n))
    mean = dict.fromkeys("abc", 0.0)
    for seed in range(200):
        pi = made.decide(phi, "abc", Chooser(choose="thompson"), Random(seed)).pi
        assert min(pi.values()) >= 1 / 512 / 1.01
        mean = {arm: mean[arm] + pi[arm] / 200 for arm in "abc"}
    for arm in "abc":
        p = wins[arm] / n
        assert (
            abs(mean[arm] - p)
            < 3 * math.sqrt(p * (1 - p) / (200 * 256)) + 3 * math.sqrt(p * (1 - p) / n) + 1 / 512
        )


def test_softmax_never_gives_an_arm_less_than_its_share_of_eps():
    assert min(softmax({"a": 100.0, "b": 0.0}, 0.1).values()) == pytest.approx(0.05)


def test_the_beginning_is_even_and_a_masked_arm_is_never_chosen():
    fresh = Router("x", 1)
    decision = fresh.decide((1.0,), ["a", "b"], Chooser(), Random(0))
    assert decision.cold and set(decision.pi.values()) == {0.5}
    assert set(router().decide((1.0, 0, 0), ["a", "c"], Chooser(), Random(0)).pi) == {"a", "c"}


@pytest.mark.parametrize(
    "wrong", [{"choose": "best"}, {"eps": 2}, {"tau": 0}, {"n0": -1}, {"choose": "fixed:"}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(UsageError):
        Chooser(**wrong)
