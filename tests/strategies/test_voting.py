"""Laws of the vote: the suite's goldens, its tie rules, what changes no result, when a vote is decided."""

import math
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from abduce.strategies.voting import min_max, p_leader, poll, weighted_vote

ANSWERS = st.sampled_from([None, "A", "B", "C"])
POOLS = st.lists(st.tuples(ANSWERS, st.integers(0, 20), st.integers(1, 5)), min_size=1, max_size=8)


def columns(pool) -> tuple[list, list[float], list[float]]:
    answers, rewards, lengths = map(list, zip(*pool, strict=True))
    return answers, [r / 20 for r in rewards], lengths


# ---------------------------------------------------------------- goldens


def test_majority_and_weighted_vote_may_disagree():
    answers, rewards = ["A", "A", "B"], [0.2, 0.4, 0.9]
    assert poll(answers).winner == "A"
    weighted = poll(answers, min_max(rewards))
    assert weighted.votes["A"] == pytest.approx(0.2857, abs=5e-5)
    assert weighted.votes["B"] == 1.0
    assert weighted.winner == "B"


def test_equal_rewards_make_the_weighted_vote_a_majority():
    assert poll(["A", "A", "B"], min_max([0.4, 0.4, 0.4])).winner == "A"


def test_empty_answers_have_no_vote_however_many_they_are():
    assert poll([None, None, None, "A", "B"]).votes == {"A": 1, "B": 1}
    assert poll([None, None, None, None, "B"], min_max([1, 1, 1, 1, 0])).winner == "B"


def test_without_any_answer_nobody_wins():
    for answers in ([], [None, None]):
        assert poll(answers) == (None, {}, ())
        assert weighted_vote(answers, [1.0] * len(answers)) is None


# ---------------------------------------------------------------- ties


def test_ties_go_to_the_larger_reward_then_to_the_shorter_then_to_the_first():
    answers = ["A", "B", "B", "A"]
    assert poll(answers, rewards=[0.1, 0.9, 0.9, 0.1], lengths=[1, 9, 9, 1]).winner == "B"
    assert poll(answers, rewards=[0.5] * 4, lengths=[9, 1, 9, 9]).winner == "B"
    assert poll(answers, lengths=[9, 1, 1, 9]).winner == "B"
    assert poll(answers, rewards=[0.5] * 4, lengths=[5] * 4).winner == "A"
    assert poll(answers).tied == ("A", "B")


def test_length_is_compared_on_average():
    assert poll(["A", "B", "B"], [1, 0.5, 0.5], lengths=[4, 3, 3]).winner == "B"


@settings(deadline=None)
@given(POOLS)
def test_only_ties_are_decided_by_rewards_and_lengths(pool):
    answers, rewards, lengths = columns(pool)
    plain, told = poll(answers), poll(answers, rewards=rewards, lengths=lengths)
    assert plain.votes == told.votes
    assert set(plain.tied) == set(told.tied)
    assert told.winner in (plain.tied or (None,))


# ---------------------------------------------------------------- what changes nothing


@settings(deadline=None)
@given(POOLS, st.randoms(use_true_random=False))
def test_the_order_of_the_pool_matters_only_to_full_ties(pool, rng):
    shuffled = rng.sample(pool, len(pool))
    for weigh in (lambda r: None, min_max):
        results = []
        for order in (pool, shuffled):
            answers, rewards, lengths = columns(order)
            results.append(poll(answers, weigh(rewards), rewards=rewards, lengths=lengths))
        first, second = results
        assert first.votes == pytest.approx(second.votes)
        assert set(first.tied) == set(second.tied)
        if len(first.tied) == 1:
            assert first.winner == second.winner


def test_rewards_and_lengths_leave_nothing_to_the_order():
    pool = [("A", 4, 3), ("B", 4, 2), ("A", 4, 3), ("B", 4, 2), (None, 20, 1)]
    winners = set()
    for order in permutations(pool):
        answers, rewards, lengths = columns(order)
        winners.add(poll(answers, rewards=rewards, lengths=lengths).winner)
    assert winners == {"B"}


@settings(deadline=None)
@given(POOLS, st.floats(-10, 10), st.floats(0.01, 100))
def test_adding_to_all_rewards_or_scaling_them_changes_no_weighted_vote(pool, add, scale):
    answers, rewards, _ = columns(pool)
    before = poll(answers, min_max(rewards))
    after = poll(answers, min_max([scale * r + add for r in rewards]))
    assert after.votes == pytest.approx(before.votes, abs=1e-9)
    votes = sorted(before.votes.values(), reverse=True)
    assume(len(votes) < 2 or votes[0] - votes[1] > 1e-6)
    assert after.winner == before.winner


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_min_max_keeps_the_order_and_reaches_both_ends(rewards):
    stretched = min_max(rewards)
    assert all(0 <= v <= 1 for v in stretched)
    if len(set(rewards)) == 1:
        assert set(stretched) == {1.0}
    else:
        assert (min(stretched), max(stretched)) == (0, 1)
        by_reward = sorted(zip(rewards, stretched, strict=True))
        assert [v for _, v in by_reward] == sorted(stretched)


@settings(deadline=None)
@given(st.lists(ANSWERS, max_size=12))
def test_the_lead_is_the_two_largest_counts(answers):
    counts = sorted((answers.count(a) for a in {*answers} - {None}), reverse=True)
    assert poll(answers).lead == tuple([*counts, 0, 0][:2])


def test_equal_sums_are_equal_however_they_are_added_up():
    """0.1 + 0.2 is not 0.3 in floating point, but it is a tie."""
    assert set(poll(["A", "A", "B"], [0.1, 0.2, 0.3]).tied) == {"A", "B"}


# ---------------------------------------------------------------- the Beta bound


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 200))
def test_the_leaders_chance_is_the_beta_tail(v1, v2):
    assert p_leader(v1, v2) == pytest.approx(beta.sf(0.5, v1 + 1, v2 + 1), abs=1e-12)


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(0, 20))
def test_the_chances_of_both_sum_to_one_and_grow_with_the_votes(v1, v2):
    assert p_leader(v1, v2) + p_leader(v2, v1) == pytest.approx(1)
    assert p_leader(v1 + 1, v2) > p_leader(v1, v2) > p_leader(v1, v2 + 1)


def test_the_leaders_chance_is_exact_on_small_votes():
    for v1 in range(6):
        for v2 in range(6):
            n = v1 + v2 + 1
            assert p_leader(v1, v2) == Fraction(sum(math.comb(n, k) for k in range(v1 + 1)), 2**n)


def test_many_votes_are_no_trouble():
    assert p_leader(5000, 4000) == pytest.approx(1.0)
    assert p_leader(4000, 5000) == pytest.approx(0.0, abs=1e-9)
