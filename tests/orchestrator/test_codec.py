"""Replies come back from the journal as they went in; nothing else comes back at all."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from abduce.orchestrator.codec import dump_reply, dumps, load_reply
from abduce.serving.entries import Entry, Evidence, Match
from abduce.serving.errors import BudgetExhausted, JournalError
from abduce.serving.flow import (
    Ask,
    CallTool,
    Completion,
    Failure,
    Generate,
    Hidden,
    LogLikelihood,
    LogProb,
    Prompt,
    Rate,
    Recall,
    Remember,
    ToolResult,
)

texts = st.text(st.characters())  # lone surrogates among them
numbers = st.floats()  # infinities and NaN among them
log_probs = st.lists(st.floats(max_value=0.0)).map(tuple)
completions = st.builds(
    Completion,
    text=texts,
    ids=st.lists(st.integers(0, 2**32)).map(tuple),
    logprobs=log_probs,
    finish=st.sampled_from(["eos", "stop", "length"]),
    stop=texts,
    n_tokens=st.integers(0, 2**32),
)
paths = st.lists(st.lists(st.integers(0, 99)).map(tuple)).map(tuple)
evidence = st.builds(Evidence, texts, texts, texts, st.floats(0, 1), st.lists(texts, max_size=2).map(tuple))
entries = st.builds(
    Entry,
    name=texts,
    text=texts,
    data=st.dictionaries(texts, st.integers(-(2**53), 2**53) | texts | st.lists(texts), max_size=3),
    status=st.sampled_from(["active", "retired"]),
    evidence=st.lists(evidence, max_size=2).map(tuple),
    uses=st.integers(0, 9),
)
REPLIES = {
    Generate: st.lists(completions, max_size=3).map(tuple),
    LogProb: log_probs.map(LogLikelihood),
    Hidden: st.lists(numbers).map(tuple),
    Rate: numbers,
    CallTool: st.builds(ToolResult, text=texts, ok=st.booleans()),
    Recall: st.lists(st.builds(Match, entries, st.floats(allow_nan=False), texts), max_size=3).map(tuple),
    Remember: st.integers(0, 2**53),
    Ask: texts,
    tuple: st.tuples(st.lists(st.integers(0, 99)).map(tuple), paths),
}
refusals = st.builds(Failure, texts, texts)


def again(request: type, reply: object) -> object:
    return load_reply(request, dump_reply(reply))


@pytest.mark.parametrize("request_type", REPLIES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_reply_comes_back_as_it_was(request_type, data):
    reply = data.draw(REPLIES[request_type] | refusals)
    back = again(request_type, reply)
    assert repr(back) == repr(reply)  # of which NaN, unlike ==, has one
    assert type(back) is type(reply)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, -0.0, 5e-324])
def test_numbers_that_json_lacks_come_back(number):
    assert repr(again(Rate, number)) == repr(number)
    assert repr(again(LogProb, LogLikelihood((number, -1.0)))) == repr(LogLikelihood((number, -1.0)))
    [completion] = again(Generate, (Completion("null", logprobs=(number,)),))
    assert repr(completion.logprobs) == repr((number,))


@given(resource=texts, limit=st.integers(0, 10**9) | st.floats(0, 1e9))
def test_a_refusal_comes_back_with_its_limit(resource, limit):
    back = again(Generate, BudgetExhausted(resource, limit))
    assert (type(back), back.resource, back.limit) == (BudgetExhausted, resource, limit)


@given(text=st.binary(max_size=30))
@example(b"[]")
@example(b"{}")
@example(b'{"reply": [{}]}')
@example(b'{"reply": null}')
@example(b'{"failure": [1]}')
@example(b'{"reply": 1, "failure": []}')
def test_what_is_no_reply_is_a_journal_error(text):
    with pytest.raises(JournalError, match="cannot be read"):
        load_reply(Generate, text)


def test_what_json_cannot_hold_is_written_down_all_the_same():
    """A model may write such arguments, a tool such text: no reason to end a search."""
    request = CallTool("power", {"base": 10**40, "unit": "\ud800", "powers": [2**64, -(2**70)]})
    assert dumps(request) == dumps(request) != dumps(CallTool("power", {"base": 10**41}))
    assert again(CallTool, ToolResult("half \ud800 a pair")) == ToolResult("half \ud800 a pair")


def test_objects_are_written_down_without_their_address():
    class Own:
        pass

    assert dumps({"engine": Own()}) == dumps({"engine": Own()})
    assert b"Own" in dumps(Own())


def test_a_dataclass_is_an_object_of_its_fields():
    @dataclass(frozen=True)
    class Pair:
        left: int
        right: frozenset[str]

    assert dumps(Pair(1, frozenset("ba"))) == b'{"left":1,"right":["a","b"]}'
    assert dumps(Prompt.user("?")) == dumps(Prompt.user("?"))
