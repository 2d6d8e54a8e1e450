import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abduce.serving.errors import UsageError
from abduce.serving.flow import Failure, LogLikelihood, LogProb
from abduce.strategies.base import State, Task, requirements
from abduce.strategies.rewards.self_eval import SelfEval


def said(*logprobs):
    return [LogLikelihood((x,)) for x in logprobs]


def test_it_asks_for_both_words_after_the_same_prompt(sent, solved):
    [batch], scores = sent(SelfEval().score([solved("a"), solved("b")]), said(-1.0, -1.0, -2.0, -1.0))
    assert [type(r) for r in batch] == [LogProb] * 4
    assert [r.continuation for r in batch] == [" Yes", " No"] * 2
    assert batch[0].prompt == batch[1].prompt != batch[2].prompt
    assert "7 x 8" in batch[0].prompt.messages[-1].content
    assert scores == [0.5, pytest.approx(math.exp(-2) / (math.exp(-2) + math.exp(-1)))]


finite = st.floats(-800, 0)


@given(finite, finite)
def test_the_two_probabilities_add_up(yes, no):
    def score(first, second):
        flow = SelfEval().score([State(Task("q"))])
        next(flow)
        try:
            flow.send(said(first, second))
        except StopIteration as end:
            return end.value[0]

    p, q = score(yes, no), score(no, yes)
    assert 0.0 <= p <= 1.0
    assert p + q == pytest.approx(1.0)
    assert p == 0.5 or (p > 0.5) == (yes > no)


def test_what_cannot_be_told_is_a_failure_and_never_a_half(sent, solved):
    replies = [*said(-math.inf, -math.inf), Failure("engine", "down"), *said(-1.0), *said(-math.inf, -1.0)]
    _, scores = sent(SelfEval().score([solved("a"), solved("b"), solved("c")]), replies)
    assert [type(score) for score in scores[:2]] == [Failure, Failure]
    assert (scores[1].kind, scores[1].message) == ("reward", "down")
    assert scores[2] == 0.0


def test_text_in_braces_is_not_filled_in(sent, solved):
    state = solved("the set {question} and {solution}", question="What is {solution}?")
    [batch], _ = sent(SelfEval().score([state]), said(-1.0, -1.0))
    content = batch[0].prompt.messages[-1].content
    assert "What is {solution}?" in content and "the set {question} and {solution}" in content


def test_another_role_may_judge():
    assert requirements(SelfEval(model="critic")) == {"critic": frozenset({"logprob"})}


def test_a_prompt_without_the_solution_is_refused():
    with pytest.raises(UsageError, match=r"lacks \{solution\}"):
        SelfEval(question="Is {question} solved?")
