"""Scores on tables made by hand."""

from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abduce.strategies.arcmemo.scoring import Row, attributed, official, oracle, right, strict


def rows(*tests, train=True):
    return [Row(each, train) for each in tests]


@pytest.mark.parametrize(
    ("attempts", "by_parts", "whole"),
    [
        ({"a": rows((True,))}, 1, 1),
        ({"a": rows((False,))}, 0, 0),
        ({"a": rows((True, False))}, 0.5, 0),
        ({"a": rows((True, False), (False, True))}, 1, 0),
        ({"a": rows((True, True), train=False)}, 1, 0),
        ({"a": rows((False,)), "b": rows((True, True), (False, False))}, 1, 1),
        ({"a": [*rows((True,), train=False), *rows((True,))]}, 1, 1),
        ({}, 0, 0),
    ],
)
def test_the_official_and_the_strict_score(attempts, by_parts, whole):
    assert official(attempts) == by_parts
    assert strict(attempts) == whole


TABLE = st.integers(1, 3).flatmap(lambda n: st.lists(st.tuples(*[st.booleans()] * n), min_size=1, max_size=6))


@given(TABLE, st.data())
def test_the_estimate_is_the_mean_over_all_subsets(table, data):
    k = data.draw(st.integers(1, len(table)))
    runs = rows(*table)
    mean = fmean(official({"a": subset}) for subset in combinations(runs, k))
    assert oracle({"a": runs}, k) == pytest.approx(mean)


@given(TABLE)
def test_of_all_runs_the_best_counts(table):
    assert oracle({"a": rows(*table)}, len(table)) == pytest.approx(official({"a": rows(*table)}))


def test_what_is_never_solved_scores_nothing_and_k_must_fit():
    assert oracle({"a": rows((False,), (False,))}, 2) == 0
    with pytest.raises(ValueError, match="from 1 to the number of runs, 2, got 3"):
        oracle({"a": rows((False,), (False,))}, 3)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("[[[1]], [[2]]]", (True, True)),
        ("[[[1]], null]", (True, False)),
        ("[[[1]]]", (True, False)),
        ("[[[3]], [[2]]]", (False, True)),
        (None, (False, False)),
        ("56", (False, False)),
        ("no", (False, False)),
        ("[[[1.5]], [[2]]]", (False, False)),
    ],
)
def test_which_tests_an_answer_has_right(answer, found):
    assert right(answer, (((1,),), ((2,),))) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def keep_rows(g):", ("keep rows",)),
        ("# Keep rows, then flip", ("keep rows", "flip")),
        ("KeepRows", ()),
        ("flipped", ()),
    ],
)
def test_a_concept_is_used_where_its_name_is(text, found):
    assert attributed(text, ("keep rows", "flip")) == found
