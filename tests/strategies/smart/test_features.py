"""φ: the same for the same problem, of one length, and told by its signature."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abduce.strategies.smart.features import N_HAND, features, signature


@given(st.text(max_size=400), st.text(max_size=9))
def test_any_text_has_finite_features_of_one_length(question, tag):
    phi = features(question, tag=tag)
    assert len(phi) == 1 + N_HAND and phi[0] == 1.0
    assert all(math.isfinite(value) and abs(value) < 20 for value in phi)
    assert phi == features(question, tag=tag)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How many apples are left?", "Which apples are left?"),
        ("What is 3 + 4?", "What is 3 and 4?"),
        ("Prove that it holds.", "Say that it holds."),
        ("```x```", "x"),
        ("1. a\n2. b", "a, b"),
    ],
)
def test_kinds_of_problems_differ(one, other):
    assert features(one) != features(other)


def test_a_tag_is_part_of_it_and_no_tag_is_none():
    assert features("Q", tag="algebra") != features("Q") == features("Q", tag="")


def test_a_projection_keeps_the_direction_of_a_state_and_forgets_its_length():
    rng = Random(0)
    state = [rng.gauss(0, 1) for _ in range(300)]
    phi = features("Q", hidden=state, dims=32)
    assert len(phi) == 33 + N_HAND
    assert phi == features("Q", hidden=[3 * value for value in state], dims=32)
    shown = phi[-32:]
    assert 0.4 < sum(value * value for value in shown) / 32 < 1.8
    assert features("Q", dims=32)[-32:] == (0.0,) * 32


def test_a_signature_names_the_features():
    assert signature(0) == signature(0) != signature(32)
