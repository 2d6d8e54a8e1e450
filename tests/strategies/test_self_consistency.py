"""Laws of self-consistency: the exact stop changes no answer, and what each rule saves."""

from collections import Counter
from itertools import product
from random import Random

import pytest

from abduce.serving.errors import BudgetExhausted, UsageError
from abduce.serving.flow import Failure
from abduce.strategies.self_consistency import SelfConsistency
from abduce.strategies.toys import ToyTree, drain
from abduce.strategies.voting import poll

from .baselines import POLICY as STEPS
from .baselines import TASK, Says, notes, said

TREE = ToyTree(3, 5, seed=0)


def voted(texts, **parameters):
    """Result and samples used on a pool of given texts."""
    policy = Says(texts)
    result = drain(SelfConsistency(policy=policy, **{"n": len(texts), **parameters}).solve(TASK, seed=0))
    return result, policy.drawn


# ---------------------------------------------------------------- the answer


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_the_exact_stop_gives_the_same_answer_as_the_full_vote_on_every_pool(batch):
    """All pools of five over three answers and none; texts differ in length, so that ties are decided."""
    for texts in product(("a", "bb", "c .", " "), repeat=5):
        full, all_of_them = voted(texts, rule="fixed", attempts=1)
        early, used = voted(texts, rule="exact", batch=batch, attempts=1)
        assert early.answer == full.answer
        assert used <= all_of_them == 5


def test_the_fixed_rule_is_the_majority_of_n_independent_solutions():
    for seed in range(10):
        result = drain(SelfConsistency(policy=TREE, n=16, rule="fixed").solve(TASK, seed=seed))
        votes = Counter(c.answer for c in result.candidates)
        assert votes.total() == 16
        assert votes[result.answer] == max(votes.values())
        assert result.diagnostics["votes"] == dict(votes)
        assert result.diagnostics["tied"] == list(votes.values()).count(max(votes.values()))


def test_the_first_solution_that_holds_the_answer_is_returned():
    result, _ = voted(["b", "a 1", "a 2", "b 2", "a 3"], rule="fixed")
    assert (result.answer, result.text) == ("a", "a 1")


def test_ties_go_to_the_shorter_solutions():
    assert voted(["a long", "b", "a", "b"], rule="fixed")[0].answer == "b"


def test_empty_answers_with_three_of_five_votes_lose():
    assert voted([" ", " ", "a", " ", "b"], rule="fixed")[0].answer == "a"


def test_without_any_answer_n_more_are_drawn_as_often_as_allowed():
    for attempts, answer in ((1, None), (2, None), (3, "a")):
        result, used = voted([" "] * 4 + ["a", "a"], n=2, attempts=attempts)
        assert (result.answer, used, result.complete) == (answer, 2 * attempts, True)


def test_failed_draws_have_no_vote_and_do_not_end_the_vote():
    lost = Failure("engine", "lost")
    result, used = voted(["a", lost, "b", lost, "b", "a", "b"], rule="exact", batch=1)
    assert (result.answer, used) == ("b", 7)
    assert result.complete
    assert result.diagnostics["failed_proposals"] == 2


# ---------------------------------------------------------------- what is saved


def spent(n: int, rule: str, p: float = 0.8, pools: int = 4000) -> tuple[float, float]:
    """Mean share of samples used, and share of changed answers."""
    rng, method = Random(0), SelfConsistency(policy=TREE, n=n, rule=rule, batch=1)
    used = changed = 0
    for _ in range(pools):
        pool = rng.choices("rabc", [p, (1 - p) * 0.6, (1 - p) * 0.25, (1 - p) * 0.15], k=n)
        k = next((k for k in range(1, n) if method.decided(poll(pool[:k]), n - k)), n)
        used += k
        changed += poll(pool[:k]).winner != poll(pool).winner
    return used / (pools * n), changed / pools


@pytest.mark.parametrize(
    ("n", "rule", "share"), [(8, "beta", 0.77), (8, "exact", 0.74), (16, "beta", 0.46), (16, "exact", 0.66)]
)
def test_early_stops_save_what_the_specification_says(n, rule, share):
    used, changed = spent(n, rule)
    assert used == pytest.approx(share, abs=0.02)
    assert changed == 0 if rule == "exact" else changed < 0.01


@pytest.mark.parametrize(
    ("n", "p", "rule", "share"),
    [(32, 0.8, "beta", 0.23), (32, 0.8, "exact", 0.63), (16, 0.5, "beta", 0.88), (16, 0.5, "exact", 0.87)],
)
def test_and_for_larger_pools_and_harder_questions(n, p, rule, share):
    used, changed = spent(n, rule, p)
    assert used == pytest.approx(share, abs=0.02)
    assert changed == 0 if rule == "exact" else changed < 0.01


def test_the_simulation_stops_where_the_strategy_does():
    for rule in ("exact", "beta", "share"):
        for seed in range(30):
            pool = Random(seed).choices("rabc", [0.6, 0.2, 0.1, 0.1], k=9)
            method = SelfConsistency(policy=TREE, n=9, rule=rule, batch=1)
            drawn = 0
            while drawn < 9 and not method.decided(poll(pool[:drawn]), 9 - drawn):
                drawn = min(9, drawn + method.next_batch(drawn))
            assert voted(pool, rule=rule, batch=1)[1] == drawn


@pytest.mark.parametrize(
    ("texts", "parameters", "used"),
    [
        ("aaaaaaaa", {"rule": "fixed"}, 8),
        ("aaaaaaaa", {"rule": "exact", "batch": 1}, 5),  # 5 > 0 + 3
        ("aaaabbbb", {"rule": "exact", "batch": 1}, 8),
        ("aaaaaaaa", {"rule": "exact", "batch": 4}, 8),
        ("aaaaaaaa", {"rule": "beta", "batch": 1}, 4),  # 1 − 2⁻⁵ = 0.969
        ("aaaaaaaa", {"rule": "beta", "batch": 1, "confidence": 0.9}, 3),
        ("aaaaaaaa", {"rule": "beta", "batch": 1, "confidence": 1.0}, 8),
        ("aaaaaaaa", {"rule": "share"}, 2),
        ("abaaaaaa", {"rule": "share"}, 4),  # 3 of 4
        ("abababab", {"rule": "share"}, 8),
        ("abaaaaaa", {"rule": "share", "agreement": 0.8}, 8),
    ],
)
def test_each_rule_stops_when_it_says(texts, parameters, used):
    assert voted(list(texts), **parameters)[1] == used


def test_share_doubles_what_is_drawn():
    method = SelfConsistency(policy=TREE, rule="share")
    drawn, batches = 0, []
    while drawn < 32:
        batches.append(method.next_batch(drawn))
        drawn += batches[-1]
    assert batches == [2, 2, 4, 8, 16]


def test_the_votes_are_told_to_the_trace():
    method = SelfConsistency(policy=Says(["a", "b", "a", "b"]), n=4, rule="fixed")
    assert notes(method.solve(TASK, seed=0), "vote") == [{"votes": {"a": 2, "b": 2}, "tied": 2}]


# ---------------------------------------------------------------- edges


def test_where_the_budget_ends_what_is_drawn_is_counted():
    """The second of three batches is refused."""
    flow = SelfConsistency(policy=STEPS, n=9, batch=3).solve(TASK, seed=0)
    next(flow)
    flow.send([said("a") + said("b") + said("b")])
    [asked] = flow.send([None])
    assert asked.n == 3
    with pytest.raises(StopIteration) as end:
        flow.throw(BudgetExhausted("tokens", 9))
    result = end.value.value
    assert (result.answer, result.complete) == ("b", False)
    assert result.diagnostics["votes"] == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"n": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"attempts": 0}, "at least 1"),
        ({"rule": "bayes"}, "fixed, exact, beta, share"),
        ({"confidence": 0.5}, "Write confidence=0.9"),
        ({"agreement": 1.5}, "Write agreement=0.9"),
    ],
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        SelfConsistency(policy=TREE, **wrong)
