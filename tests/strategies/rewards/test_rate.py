import math

import pytest

from abduce.serving.errors import UsageError
from abduce.serving.flow import Failure
from abduce.strategies.rewards.rate import RateReward


def test_the_whole_text_is_rated_once(sent, solved):
    states = [solved("a", "b"), solved("a", "b"), solved("c")]
    [batch], scores = sent(RateReward().score(states), [0.0, 2.0])
    assert [r.prompt.prefix for r in batch] == ["ab", "c"]
    assert batch[0].model == "reward"
    assert scores == [0.5, 0.5, pytest.approx(1 / (1 + math.exp(-2)))]


@pytest.mark.parametrize(
    ("aggregate", "asked", "score"),
    [
        ("model", ["abc"], 0.9),
        ("last", ["a|b|c|"], 0.9),
        ("min", ["a|", "a|b|", "a|b|c|"], 0.5),
        ("product", ["a|", "a|b|", "a|b|c|"], 0.5 * 0.8 * 0.9),
    ],
)
def test_aggregates(sent, solved, aggregate, asked, score):
    rated = {"abc": 0.9, "a|": 0.5, "a|b|": 0.8, "a|b|c|": 0.9}
    chosen = RateReward(squash="none", aggregate=aggregate, step_mark="|")
    [batch], [found] = sent(chosen.score([solved("a", "b", "c")]), [rated[text] for text in asked])
    assert [r.prompt.prefix for r in batch] == asked
    assert found == pytest.approx(score)


def test_common_prefixes_are_rated_once(sent, solved):
    chosen = RateReward(squash="none", aggregate="min")
    [batch], scores = sent(chosen.score([solved("a", "b"), solved("a", "c")]), [0.9, 0.2, 0.5])
    assert [r.prompt.prefix for r in batch] == ["a", "ab", "ac"]
    assert scores == [0.2, 0.5]


def test_a_failed_or_senseless_rating_is_a_failure(sent, solved):
    states = [solved("a"), solved("b"), solved("c")]
    _, scores = sent(RateReward().score(states), [Failure("engine", "down"), math.nan, -1e9])
    assert scores[0] == Failure("reward", "down")
    assert isinstance(scores[1], Failure)
    assert scores[2] == 0.0


@pytest.mark.parametrize("settings", [{"squash": "tanh"}, {"aggregate": "mean"}])
def test_mistakes_are_told(settings):
    with pytest.raises(UsageError, match="must be"):
        RateReward(**settings)
