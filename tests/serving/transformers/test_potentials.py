"""Laws of potentials: what is complete was allowed at each beginning, tokens agree with texts."""

import json
import math
import time
from itertools import product

import numpy as np
import pytest

from abduce.serving.constraints import Check, Choices, Critic, JsonSchema, Product, Regex
from abduce.serving.errors import EngineError, UsageError
from abduce.serving.transformers.matchers import Vocabulary
from abduce.serving.transformers.potentials import potential
from abduce.serving.transformers.timed import Timed

pytest.importorskip("llguidance")

TOKENS = (b"", b"a", b"b", b"ab", b"1", b"12", b"\xc3", b"\xa9", "é".encode(), b'"', b"{", b"}", b":", b" ")
VOCABULARY = Vocabulary(TOKENS)
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
EVEN = Check(lambda text: True, lambda text: len(text) % 2 == 0)

CASES = [
    (Regex("(ab)*1?"), ["", "ab", "ab1", "abab"], ["a", "b", "1a"]),
    (Regex("^é+$"), ["é", "éé"], ["", "e"]),
    (JsonSchema(SCHEMA), ['{"a": 1}', '{"a":12}'], ['{"a": ""}', "[]", '{"b":1}']),
    (JsonSchema({}), ["1", "null", '[{"x": [true]}]'], ["nul", "{"]),
    (Choices(("ab", "a", "é")), ["ab", "a", "é"], ["", "b", "aba"]),
    (EVEN, ["", "ab"], ["a"]),
    (Regex("[ab]*") * Regex(".*b"), ["b", "aab"], ["a", ""]),
    (Regex("[ab]*") * EVEN, ["", "ab"], ["a", "11"]),
    (JsonSchema({"type": "integer"}) * JsonSchema({"minimum": 3}), ["3", "12"], ["1"]),
    (Choices(("ab", "a1", "b")) * Regex("a."), ["ab", "a1"], ["b", "a"]),
    (Critic(lambda text: 0.0, lambda text: 0.0), ["", "xyz"], []),
]


@pytest.mark.parametrize(("constraint", "good", "bad"), CASES, ids=lambda x: str(x)[:30])
def test_complete_texts_and_their_beginnings(constraint, good, bad):
    asked = potential(constraint, VOCABULARY)
    for text in good:
        assert asked.complete(text)
        assert all(asked.prefix(text[:i]) for i in range(len(text) + 1))
    for text in bad:
        assert not asked.complete(text)


@pytest.mark.parametrize(("constraint", "good", "bad"), CASES, ids=lambda x: str(x)[:30])
def test_tokens_agree_with_texts(constraint, good, bad):
    """What a token is told is what its text is told, by `allows` and by `mask`, at every state in reach."""
    asked = potential(constraint, VOCABULARY)
    for path in product(range(len(TOKENS)), repeat=2):
        matcher, text = asked.start(), b""
        for token in path:
            told = matcher.mask(np.arange(len(TOKENS)))
            for other, more in enumerate(TOKENS):
                fed = asked.start()
                assert matcher.allows(other) == told[other] == (bool(more) and fed.feed(text + more))
            if not matcher.allows(token):
                break
            copied = matcher.copy()
            matcher.take(token)
            text += TOKENS[token]
            fed = asked.start()
            assert fed.feed(text)
            assert matcher.complete() == fed.complete()
            assert copied.copy().allows(token)  # it did not go on


def test_half_a_character_is_a_beginning_and_no_text():
    for constraint in (Regex(".*"), Check(lambda text: True, lambda text: True)):
        matcher = potential(constraint, VOCABULARY).start()
        assert matcher.allows(6)
        assert not matcher.allows(7)  # no character begins so
        matcher.take(6)
        assert not matcher.complete()
        assert matcher.allows(7)
        assert not matcher.allows(1)


def test_a_product_of_patterns_or_with_choices_has_no_dead_ends():
    assert not potential(Regex("a+|x") * Regex("b+|x")).prefix("a")
    assert not potential(Choices(("ab", "b")) * Regex("b")).prefix("a")


@pytest.mark.parametrize(
    "constraint",
    [
        Regex("(a"),
        Regex("(?=a)b"),
        Regex(r"[^\s\S]"),
        Regex("a+") * Regex("b+"),
        JsonSchema({"type": "nonsense"}),
        JsonSchema({"type": "integer", "minimum": 5, "maximum": 3}),
        JsonSchema({"a": {1}}),
        Choices(()),
        Choices(("a", "b")) * Regex("c"),
        Choices(("a",)) * Choices(("b",)),
        Product(()),
        "a+",
    ],
    ids=repr,
)
def test_what_no_text_can_keep_is_refused_before_anything_is_drawn(constraint):
    with pytest.raises(UsageError):
        potential(constraint, VOCABULARY)


def test_the_message_says_what_is_wrong():
    with pytest.raises(UsageError, match="unclosed group"):
        potential(Regex("(a"))
    with pytest.raises(UsageError, match="minimum"):
        potential(JsonSchema({"type": "integer", "minimum": 5, "maximum": 3}))


def test_critics_add_up_and_forbid_nothing():
    critic = Critic(lambda text: float(len(text)), lambda text: -math.inf if text == "b" else 2.0)
    asked = potential(Regex("[ab]*") * critic * critic, VOCABULARY)
    assert asked.judged
    assert not potential(Regex("a")).judged
    matcher = asked.start()
    matcher.take(2)
    assert matcher.complete()
    assert matcher.log_prefix() == 2.0
    assert matcher.log_complete() == -math.inf
    matcher.take(3)
    assert matcher.log_complete() == 4.0


def test_a_critic_of_infinite_praise_is_refused():
    matcher = potential(Critic(lambda text: math.inf, lambda text: math.nan)).start()
    with pytest.raises(UsageError, match="log-weight"):
        matcher.log_prefix()
    with pytest.raises(UsageError, match="log-weight"):
        matcher.log_complete()


def test_a_slow_check_is_an_error_and_no_verdict():
    timed = Timed(0.05)
    slow = Check(lambda text: time.sleep(0.3) or True, lambda text: True)
    with pytest.raises(EngineError, match="took longer"):
        potential(slow, VOCABULARY, timed=timed).prefix("a")
    assert potential(EVEN, VOCABULARY, timed=timed).complete("ab")  # the next call is not held up
    timed.close()


def test_a_failing_check_is_an_error_and_no_verdict():
    broken = Check(lambda text: text.nonsense, lambda text: True)
    with pytest.raises(EngineError, match="nonsense"):
        potential(broken).prefix("a")


def test_any_json_is_any_json():
    asked = potential(JsonSchema({}))
    for value in (1, "x", None, [1, {"a": []}], {"k": "é\n"}):
        assert asked.complete(json.dumps(value))
