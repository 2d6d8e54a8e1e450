"""Laws of best-of-n: the maximum, whatever the scale; empty answers never win."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from abduce.serving.errors import UsageError
from abduce.serving.flow import Failure
from abduce.strategies.best_of_n import BestOfN
from abduce.strategies.toys import ToyTree, drain

from .baselines import POLICY as STEPS
from .baselines import TASK, Says, Table, listen, said

TREE = ToyTree(3, 5, seed=0)
LOST = Failure("engine", "lost")


def chosen(pool: dict[str, float], **parameters):
    """The result over a pool of distinct texts with their scores."""
    policy = Says([*pool] * 4)
    return drain(BestOfN(policy=policy, reward=Table(pool), n=len(pool), **parameters).solve(TASK, seed=0))


def with_bias(texts, rewards, add=0.0, scale=1.0):
    return {text: scale * r + add for text, r in zip(texts, rewards, strict=True)}


# ---------------------------------------------------------------- which is chosen


@pytest.mark.parametrize("seed", range(5))
def test_the_best_scored_of_n_solutions_is_returned(seed):
    result = drain(BestOfN(policy=TREE, reward=TREE, n=8).solve(TASK, seed=seed))
    assert len(result.candidates) == 8
    best = max(result.candidates, key=lambda c: c.score)
    assert (result.text, result.answer) == (best.text, best.answer)
    assert result.diagnostics["reward_passes"] == len({c.text for c in result.candidates})


def test_more_solutions_score_higher():
    def mean(n):
        results = (drain(BestOfN(policy=TREE, reward=TREE, n=n).solve(TASK, seed=s)) for s in range(60))
        return sum(max(c.score for c in result.candidates) for result in results) / 60

    assert mean(1) < mean(4) < mean(16)


def test_the_first_of_equals_wins():
    assert chosen({"a": 0.5, "b": 0.9, "c": 0.9}).text == "b"


def test_an_empty_answer_never_wins_while_another_solution_has_one():
    for select in ("best", "weighted"):
        assert chosen({" ": 0.9, "  ": 0.9, "   ": 0.9, "a": 0.1}, select=select).answer == "a"


def test_the_weighted_vote_is_the_suites():
    """Golden: A 0.2857 + 0, B 1. The majority would be A."""
    pool = {"A one": 0.2, "A two": 0.4, "B one": 0.9}
    assert chosen(pool, select="weighted").answer == "B"
    equal = chosen(dict.fromkeys(pool, 0.4), select="weighted")
    assert (equal.answer, equal.text) == ("A", "A one")


def test_the_weighted_vote_returns_the_best_scored_backer():
    pool = {"A one": 0.6, "B": 0.75, "A two": 0.7, "C": 0.0}
    assert chosen(pool).text == "B"
    assert chosen(pool, select="weighted").text == "A two"


TEXTS = ["A 1", "A 2", "B 1", "B 2", "C 1", " "]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 100), min_size=6, max_size=6),
    st.integers(0, 50),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
@pytest.mark.parametrize("select", ["best", "weighted"])
def test_shifting_scaling_and_reordering_change_nothing_but_ties(select, rewards, add, divide, rng):
    rewards = [r / 256 for r in rewards]  # exact in floating point, as are the changes
    pool = with_bias(TEXTS, rewards)
    result = chosen(pool, select=select)
    low, high = min(rewards), max(rewards)
    weights = {t: (r - low) / (high - low) if high > low else 1.0 for t, r in pool.items()}
    votes = [sum(w for t, w in weights.items() if t.startswith(a)) for a in "ABC"]
    worth = votes if select == "weighted" else rewards[:5]
    first, second = sorted(worth)[-1:-3:-1]
    backers = [r for t, r in pool.items() if t.startswith(str(result.answer))]
    assume(first - second > 1e-9 and len(set(backers)) == len(backers))  # the tie rules may see the scale
    assert chosen(with_bias(TEXTS, rewards, add / 128), select=select).text == result.text
    assert chosen(with_bias(TEXTS, rewards, scale=1 / 2**divide), select=select).text == result.text
    shuffled = rng.sample(list(pool.items()), len(pool))
    assert chosen(dict(shuffled), select=select).text == result.text


# ---------------------------------------------------------------- the pool


def test_what_agrees_word_for_word_is_scored_once():
    reward = Table({"a": 0.3, "b": 0.8})
    result = drain(BestOfN(policy=Says(["a", "b", "a", "a"]), reward=reward, n=4).solve(TASK, seed=0))
    assert reward.asked == ["a", "b"]
    assert [c.score for c in result.candidates] == [0.3, 0.8, 0.3, 0.3]


def test_a_pool_without_answers_is_drawn_anew_as_often_as_allowed():
    for attempts, answer in ((1, None), (2, None), (3, "a")):
        policy = Says([" "] * 4 + ["a", " "])
        result = drain(
            BestOfN(policy=policy, reward=Table(lambda text: 0.5), n=2, attempts=attempts).solve(TASK, seed=0)
        )
        assert (result.answer, result.complete) == (answer, True)
        assert policy.drawn == 2 * attempts


def test_a_pool_is_kept_where_drawing_anew_fails():
    result = drain(
        BestOfN(policy=Says([" ", LOST, LOST, LOST]), reward=Table({" ": 0.5}), n=2).solve(TASK, seed=0)
    )
    assert (result.text, result.answer) == (" ", None)


def test_the_whole_pool_is_one_request():
    policy = BestOfN(policy=STEPS, reward=Table(lambda text: 0.5), n=3)
    [asked], result = listen(policy.solve(TASK, seed=0), said("a") * 3)
    assert asked.n == 3
    assert len(result.candidates) == 3


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"n": 0}, "at least 1, got 0"),
        ({"attempts": 0}, "at least 1"),
        ({"select": "vote"}, "'best' or 'weighted'"),
    ],
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        BestOfN(policy=TREE, reward=TREE, **wrong)
