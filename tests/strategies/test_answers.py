import re
import time
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from abduce.serving.errors import UnknownName
from abduce.strategies.answers import EXTRACTORS, canon, extract, number, stated

# ---------------------------------------------------------------- canon


@given(st.text(max_size=80))
@example("$$'a'.")
@example("\\boxed{\\boxed{(b)}}")
@example("\\text{ (A) }")
@example("ßẞ ŉ.")
def test_canon_is_idempotent(text):
    assert canon(canon(text)) == canon(text)


@given(st.text(alphabet="0123456789.,/-+ $%\\{}()^eExboxdfrac", max_size=30))
def test_canon_is_idempotent_on_formula_like_text(text):
    assert canon(canon(text)) == canon(text)


@given(st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=999))
def test_every_way_to_write_a_rational_is_one_answer(q):
    p, n = q.numerator, q.denominator
    sign = "-" if p < 0 else ""
    ways = [
        f"{p}/{n}",
        f"{p} / {n}",
        f"\\frac{{{p}}}{{{n}}}",
        f"{sign}\\frac{{{abs(p)}}}{{{n}}}",
        f"\\dfrac{{{p}}}{{{n}}}",
        f"$\\boxed{{{p}/{n}}}$",
    ]
    assert {canon(way) for way in ways} == {str(q)}


@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_decimals_separators_currency_and_units_make_no_difference(n, places):
    ways = [
        f"{n}",
        f"{n:,}",
        f"${n:,}",
        f"{n}.{'0' * places}",
        f"{n}%",
        f"{n} apples",
        f" {n}. ",
        f"\\({n}\\)",
    ]
    assert {canon(way) for way in ways} == {str(n)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1/2", "0.5"),
        (r"\frac12", ".5"),
        (r"\tfrac{1}{2}", "2/4"),
        ("1 1/2", "1.5"),
        ("−5", "-5"),
        ("- 5", "-$5"),
        ("50%", "50"),
        (r"1.5 \times 10^{3}", "1,500"),
        ("12 cm", "12"),
        ("12km", "12"),
        (r"5 \text{ cm}", "5"),
        (r"90^\circ", "90"),
        ("(b)", "B"),
        ("B.", "B"),
        ("Paris.", " paris"),
        (r"\text{Paris}", "Paris"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        ("x^{2} + 1", "x^2+1"),
        (r"\boxed{x^2}", "x^2"),
    ],
)
def test_equal_answers(one, other):
    assert canon(one) == canon(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("3", "3x"), ("12", "1,2"), ("0.333", "1/3"), ("x^2", "x2"), ("5", "-5"), ("1/0", "0"), ("10%", "0.1")],
)
def test_different_answers(one, other):
    assert canon(one) != canon(other)


def test_number_is_exact_and_refuses_what_is_none():
    assert number("0.1") == Fraction(1, 10)
    assert number("1/0") is None
    assert number("1e999999") is None or number("1e999999").denominator == 1
    assert number("9" * 5000) is None
    assert number("three") is None


# ---------------------------------------------------------------- extract


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("number", "I had 3, then 4, so 12", "12"),
        ("number", "The answer is 4. Check: 2 + 2 = 4, 9 more.", "4"),
        ("number", "The answer is 6 x 7 = 42.", "42"),
        ("number", "so 48+24 = 72\n#### 72\nLine 99", "72"),
        ("number", "so \\boxed{1,200} and 5", "1200"),
        ("number", "The answer is:\n\n12", "12"),
        ("number", "the answer is $\\frac{3}{4}$.", "3/4"),
        ("number", "x=-3", "-3"),
        ("number", "10-12", "12"),
        ("number", " 56\n", "56"),
        ("number", "The answer is unclear, maybe 7", "7"),
        ("number", "none", None),
        ("boxed", "a \\boxed{\\frac{1}{2}} b \\boxed{x^{2}} c \\boxed{", "x^2"),
        ("boxed", "nothing", None),
        ("boxed", "The answer is \\boxed{ 12\nand so on", "12"),
        ("words", "In 1889 it was built.\n\nThe answer is Paris.", "paris"),
        ("words", "The answer is St. Louis. It is a city.", "st. louis"),
        ("words", "The answer is J. S. Bach. He was a cantor.", "j. s. bach"),
        ("words", "The answer is No. It is even.", "no"),
        ("words", "The answer is 7. Or so.", "7"),
        ("words", "The answer is 42 apples. Or so.", "42"),
        ("words", "so \\boxed{\\text{Oslo}}", "oslo"),
        ("words", "Oslo, 7", None),
        ("final", "a. Final answer: x.\nThe final answer is Rome.\nmore", "rome"),
        ("final", "Final answer: Oslo. End of answer. And so on", "oslo"),
        ("final", "The (final) refined solution: yes", "yes"),
        ("final", "First this. Then that one.", "then that one"),
        ("final", "The final answer is $\\boxed{3}$", "3"),
        ("text", "  all of it\n", "all of it"),
        ("text", "   ", None),
    ],
)
def test_extract(kind, text, answer):
    found = extract(kind, text)
    assert (None if found is None else canon(found)) == answer


@pytest.mark.parametrize(
    ("text", "choices", "letter"),
    [
        ("The answer is (B).", ("x", "y"), "B"),
        ("The answer is b.", ("x", "y"), "B"),
        ("The answer is B because", ("x", "y"), "B"),
        ("B", (), "B"),
        ("Answer: C) foo", ("a", "b", "c"), "C"),
        ("The answer is a good one", ("x", "y"), None),
        ("The answer is Paris.", ("London", "Paris"), "B"),
        ("The answer is New York City", ("New York", "New York City"), "B"),
        ("I first thought (A), but (C)", ("x", "y", "z"), "C"),
        ("The answer is option B", (), "B"),
        ("\\boxed{D}", ("1", "2", "3", "4"), "D"),
        ("The answer is (E)", ("x", "y"), None),
        ("paris", ("London", "Paris"), "B"),
    ],
)
def test_extract_choice(text, choices, letter):
    assert extract("choice", text, choices) == letter


@given(st.sampled_from(sorted(EXTRACTORS)), st.text(max_size=200), st.lists(st.text(max_size=5), max_size=4))
def test_extract_never_raises_and_never_gives_blanks(kind, text, choices):
    found = extract(kind, text, choices)
    assert found is None or found == found.strip() != ""


def test_an_unknown_kind_is_told_the_nearest():
    with pytest.raises(UnknownName, match=re.escape("Did you mean 'number'?")):
        extract("nubmer", "1")


@pytest.mark.parametrize(
    ("kind", "text", "yes"),
    [
        ("number", "so there are 5 left", False),
        ("number", "The answer is", False),
        ("number", "The answer is 5", True),
        ("number", "#### 5", True),
        ("boxed", "the answer is 5", False),
        ("boxed", "\\boxed{5}", True),
        ("choice", "Answer: (A)", True),
        ("text", "The answer is 5", False),
    ],
)
def test_stated(kind, text, yes):
    assert stated(kind, text) is yes


def test_long_texts_are_handled_quickly():
    for text in (
        "1" * 50_000,
        "\\boxed{" * 2_000,
        "\\frac{" + " " * 50_000,
        "answer is " * 5_000,
        "1,111" * 9_000,
    ):
        began = time.process_time()
        canon(text)
        for kind in EXTRACTORS:
            extract(kind, text)
        assert time.process_time() - began < 5, text[:20]  # quadratic work would take minutes
