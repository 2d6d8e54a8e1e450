"""Laws of the frontier: what is on it, whatever the order, and that it can be drawn."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abduce.orchestrator.tradeoff import Point, on_frontier, plot

POINTS = st.lists(
    st.builds(Point, st.just("m"), st.integers(1, 9).map(float), st.integers(0, 5).map(lambda k: k / 5)),
    min_size=1,
    max_size=9,
)


@given(POINTS)
def test_the_best_and_the_cheapest_are_on_it_and_it_rises(points):
    best = on_frontier(points)
    line = sorted({(p.tokens, p.accuracy) for p, on in zip(points, best, strict=True) if on})
    assert line[-1][1] == max(p.accuracy for p in points)
    assert line[0][0] == min(p.tokens for p in points)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(line))


@given(POINTS, st.randoms(use_true_random=False))
def test_the_order_does_not_matter(points, rng):
    order = rng.sample(range(len(points)), len(points))
    best = on_frontier(points)
    assert on_frontier([points[i] for i in order]) == [best[i] for i in order]


def test_equals_are_both_on_it():
    assert on_frontier([Point("a", 5, 0.5), Point("b", 5, 0.5), Point("c", 5, 0.4)]) == [True, True, False]


def test_it_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    plot([Point("one", 100, 0.5, (0.4, 0.6)), Point("vote", 900, 0.4)], tmp_path / "frontier.svg")
    text = (tmp_path / "frontier.svg").read_text()
    assert "<svg" in text
