"""What the router learns on problems whose truth is known, and what the log says of other policies."""

import math
from dataclasses import replace
from random import Random
from statistics import fmean

import pytest

from abduce.serving.errors import UsageError
from abduce.strategies.smart.bandit import Chooser
from abduce.strategies.smart.off_policy import MIN_ESS, evaluate
from abduce.strategies.smart.router import Attempt, Learning, Router

from .environments import hidden, planted, play, value

GREEDY = Chooser(choose="greedy")


def test_on_planted_types_the_best_arms_are_found():
    late, frozen = [], []
    for seed in range(3):
        rng = Random(seed)
        learnt = play(planted(1500, rng), Chooser(), rng)
        late += learnt.first[-300:]
        frozen += play(planted(1500, rng), GREEDY, rng, router=learnt.router, frozen=True).first
    assert fmean(late) >= 0.79
    assert fmean(frozen) >= 0.83


def test_where_the_features_do_not_tell_it_stays_near_the_best_single_arm():
    rng = Random(0)
    learnt = play(planted(1500, rng, told=False), Chooser(), rng)
    fresh = planted(4000, rng, told=False)
    frozen = play(fresh, GREEDY, rng, router=learnt.router, frozen=True)
    best = max(fmean(p.right[arm] for p in fresh) for arm in "abc")
    assert fmean(frozen.first) >= best - 0.05


def right(learn, explore_full, seeds, n=3000):
    found = 0
    for seed in seeds:
        rng = Random(seed)
        router = play(hidden(n, rng), Chooser(), rng, learn=learn, explore_full=explore_full).router
        found += router.arm("b").q((1.0,)) > router.arm("a").q((1.0,))
    return found


def test_from_first_attempts_the_order_of_arms_is_right():
    assert right("first_only", 0.0, range(20)) >= 19


def test_warning_from_all_attempts_the_wrong_order_locks_in():
    assert right("all", 0.0, range(20)) <= 17


def test_running_all_arms_half_of_the_time_mends_it():
    assert right("all", 0.5, range(5)) == 5


# ---------------------------------------------------------------- off-policy


def logged(seed, n=1500):
    rng = Random(seed)
    router = play(planted(800, rng), Chooser(), rng).router
    log = play(planted(n, rng), Chooser(choose="uniform"), rng, router=router, frozen=True, retries=False)
    return router, log.rows, rng


def test_estimates_lie_near_the_true_value_and_the_doubly_robust_varies_less():
    inside, tighter = 0, 0
    for seed in range(3):
        router, rows, rng = logged(seed)
        truth = value(planted(1500, rng), target(router))
        found = evaluate(rows, target(router))
        for each in (found.ips, found.snips, found.dr):
            inside += abs(each.value - truth) <= 3 * math.hypot(each.se, 0.17 / math.sqrt(1500))
        tighter += found.dr.se <= found.ips.se
    assert inside == 9 and tighter == 3


def target(router):
    """The frozen policy, on a row or on a problem."""
    return lambda x: router.decide(x.phi, "abc", GREEDY, Random(0)).pi


def test_a_log_that_says_too_little_is_refused():
    router, rows, _ = logged(0, n=120)
    with pytest.raises(UsageError, match="effective sample size"):
        evaluate(rows, target(router))
    assert MIN_ESS == 50


# ---------------------------------------------------------------- rows


def row(**words):
    base = {"arm": "a", "phi": (1.0, 0.5), "signature": "s", "arms": ("a", "b"), "pi": {"a": 0.5, "b": 0.5}}
    base |= {"propensity": 0.5, "y": 1, "kind": "gold", "c": 1.0, "tokens": 100}
    return Attempt(**(base | words))


def test_a_reward_is_what_is_right_less_what_it_cost():
    router = Router("s", 2).fold([row(tokens=100), row(arm="b", tokens=300)])
    assert router.ref_tokens == 200
    assert router.judged(row(tokens=400)).r == pytest.approx(1 - 0.05 * 400 / 200)


@pytest.mark.parametrize(
    ("learn", "words", "w"),
    [
        ("first_only", {}, 1.0),
        ("first_only", {"c": 0.6}, 0.6),
        ("first_only", {"attempt": 2}, 0.0),
        ("first_only", {"attempt": 2, "full": True}, 1.0),
        ("all", {"attempt": 2}, 1.0),
        ("all", {"attempt": 2, "history": True}, 0.5),
        ("all", {"y": None}, 0.0),
    ],
)
def test_the_weight_of_an_attempt(learn, words, w):
    assert Router("s", 2, Learning(learn=learn)).judged(row(**words)).w == w


def test_routers_of_two_logs_add_up_unless_the_order_matters():
    rows = [replace(row(y=i % 2, arm="ab"[i % 3 % 2]), phi=(1.0, i / 10), r=i / 7, w=1.0) for i in range(20)]
    joint = Router("s", 2).fold(rows)
    merged = Router("s", 2).fold(rows[:8]) + Router("s", 2).fold(rows[8:])
    for arm in "ab":
        assert merged.arm(arm).theta == pytest.approx(joint.arm(arm).theta, abs=1e-8)
    assert (merged.pulls, merged.version) == (joint.pulls, 20)
    forgetting = Router("s", 2, Learning(gamma=0.99))
    with pytest.raises(UsageError, match="order"):
        forgetting + forgetting


def test_what_was_learnt_with_another_model_weighs_a_fifth():
    before = Router("s", 2).fold([row(model="old")] * 10)
    after = before.learned(row(model="new", arm="b"))
    assert after.arm("a").S[0][0] == pytest.approx(2.0)
    assert after.arm("b").S[0][0] == pytest.approx(1.0)


def test_a_new_arm_is_tried_for_its_uncertainty():
    router = Router("s", 2).fold([row(y=1)] * 200)
    assert router.arm("b").u((1.0, 0.5)) > 5 * router.arm("a").u((1.0, 0.5))


def test_rows_of_other_features_are_refused():
    with pytest.raises(UsageError, match="features"):
        Router("s", 2).learned(row(signature="other"))
