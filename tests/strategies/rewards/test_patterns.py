import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abduce.serving.errors import UsageError
from abduce.strategies.rewards.patterns import count, search

atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\w", r"\d", r"\s", "é", r"\.", " "])
places = st.sampled_from(["^", "$", r"\b", r"\B"])
repeats = st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "{,2}", "*?", "+?", "{0}", ""])
patterns = st.recursive(
    st.tuples(atoms, repeats).map("".join) | places,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(inner, inner).map(lambda p: f"(?:{p[0]}|{p[1]})"),
        st.tuples(inner, repeats).map(lambda p: f"({p[0]}){p[1]}"),
    ),
    max_leaves=6,
)


# In an empty text Python before 3.14 finds no \B, against its own definition: begin with one character.
@given(patterns, st.text(alphabet="abAB1 .é\n", min_size=1, max_size=12), st.booleans(), st.booleans())
def test_search_agrees_with_re(pattern, text, ignore_case, multiline):
    pattern = ("(?m)" if multiline else "") + pattern
    flags = re.IGNORECASE if ignore_case else re.NOFLAG
    assert search(pattern, text, ignore_case=ignore_case) == (re.search(pattern, text, flags) is not None)


@given(
    st.lists(st.tuples(atoms, st.sampled_from(["", "+", "{2}"])).map("".join), min_size=1, max_size=3).map(
        "".join
    )
)
def test_count_agrees_with_re_where_greedy_is_longest(pattern):
    text = "ab ba.aab é 12\nabba"
    assert count(pattern, text) == len(re.findall(pattern, text))


@pytest.mark.parametrize(
    "pattern", [r"(a+)+b", r"(a|a)*b", r"(a*)*b", r"(\w+\s?)*!", r"a*a*a*a*a*b", r"(.*)(.*)(.*)b"]
)
def test_patterns_that_stall_re_take_no_time(pattern):
    began = time.process_time()
    assert not search(pattern, "a" * 3000)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(", "not a regular expression"),
        (r"(a)\1", "backreferences"),
        ("(?=a)b", "look-around"),
        ("C++", "write `\\+`"),
        ("(((a{50}){50}){50})", "smaller counts"),
    ],
)
def test_what_cannot_be_done_is_said(pattern, told):
    with pytest.raises(UsageError, match=re.escape(told)):
        search(pattern, "abc")
