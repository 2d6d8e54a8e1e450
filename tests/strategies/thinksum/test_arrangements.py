"""Orderings: generated puzzles, clues read wrongly, and the posterior against enumeration."""

import math
import random
from itertools import permutations

import pytest

from abduce.serving.errors import UsageError
from abduce.strategies.thinksum.arrangements import (
    Statement,
    deduce,
    lettered,
    mentioned,
    parse,
    posterior,
    readings,
)


def random_clue(rng, n):
    kind = rng.choice(["left_of", "left_of", "adjacent", "pos", "pos_from_end"])
    if kind in ("left_of", "adjacent"):
        return Statement(kind, tuple(rng.sample(range(n), 2)))
    return Statement(kind, (rng.randrange(n),), rng.randint(1, n))


def puzzle(rng, n):
    """An arrangement, and a set of clues that leaves no other and no clue of which can be spared."""
    truth = rng.sample(range(n), n)
    orders = list(permutations(range(n)))
    clues = []
    while sum(all(c.holds(o) for c in clues) for o in orders) > 1:
        clue = random_clue(rng, n)
        if clue.holds(truth) and clue not in clues:
            clues.append(clue)
    for clue in list(clues):
        rest = [c for c in clues if c is not clue]
        if sum(all(c.holds(o) for c in rest) for o in orders) == 1:
            clues = rest
    return truth, clues


def found_first(n, readings):
    """The object that comes first, as `deduce` says."""
    answers = [{Statement("pos", (i,), 1): 1.0} for i in range(n)]
    logs = deduce(n, readings, answers).log_answers
    return logs.index(max(logs))


@pytest.mark.parametrize(("n", "puzzles"), [(3, 100), (5, 40), (7, 4)])
def test_perfect_clues_solve_every_puzzle(n, puzzles):
    rng = random.Random(n)
    for _ in range(puzzles):
        truth, clues = puzzle(rng, n)
        logs = posterior(n, [{clue: 1.0} for clue in clues])
        orders = list(permutations(range(n)))
        assert orders[logs.index(max(logs))] == tuple(truth)
        assert found_first(n, [{clue: 1.0} for clue in clues]) == truth.index(0)


def read(rng, clue, n, s, wrong):
    """S readings of a clue, each another statement with probability `wrong`."""
    ways = [random_clue(rng, n) if rng.random() < wrong else clue for _ in range(s)]
    return {way: ways.count(way) / s for way in ways}


def test_several_readings_of_each_clue_survive_wrong_ones():
    share = {}
    for s in (1, 3, 5, 9):
        rng = random.Random(11)
        right = 0
        for _ in range(120):
            truth, clues = puzzle(rng, 5)
            logs = posterior(5, [read(rng, clue, 5, s, 0.2) for clue in clues])
            right += list(permutations(range(5)))[logs.index(max(logs))] == tuple(truth)
        share[s] = right / 120
    print("arrangement found, by readings of a clue:", share)
    assert share[5] >= 0.88
    assert share[5] >= share[1] + 0.15


@pytest.mark.parametrize("seed", range(10))
def test_the_posterior_is_that_of_enumeration(seed):
    rng, n, epsilon = random.Random(seed), 4, 0.1
    clues = [read(rng, random_clue(rng, n), n, 4, 0.5) for _ in range(5)]
    weights = []
    for order in permutations(range(n)):
        p = 1.0
        for clue in clues:
            p *= sum(w * (1 - epsilon if g.holds(order) else epsilon) for g, w in clue.items())
        weights.append(p)
    logs = posterior(n, clues, epsilon)
    assert [math.exp(x) for x in logs] == pytest.approx([w / sum(weights) for w in weights])


def test_a_clue_without_a_reading_lowers_the_confidence_and_no_clue_at_all_abstains():
    answers = [{Statement("pos", (i,), 1): 1.0} for i in range(3)]
    clue = {Statement("left_of", (0, 1)): 1.0}
    assert deduce(3, [clue, {}], answers).confidence == 0.5
    assert deduce(3, [{}, {}], answers).abstains
    assert not deduce(3, [clue, {Statement("pos", (2,), 3): 1.0}], answers).abstains


def test_more_than_eight_objects_are_refused():
    with pytest.raises(UsageError, match="Give 1 to 8"):
        posterior(9, [])


@pytest.mark.parametrize(
    "text",
    [
        "left_of(red book, gray book)",
        "adjacent(gray book, red book)",
        "pos(red book) = 2",
        "pos_from_end(tea) = 1",
        "not(left_of(tea, red book))",
        "and(pos(tea) = 1, not(adjacent(tea, red book)))",
    ],
)
def test_what_is_written_is_read_again(text):
    objects = ["red book", "gray book", "tea"]
    assert parse(text, objects).text(objects) == text
    assert parse(text.upper().replace("POS_FROM_END", "pos_from_end"), objects) is None or "(" in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "left_of(red book)",
        "left_of(red book, red book)",
        "left_of(red book, elephant)",
        "pos(red book)",
        "pos(red book) = 0",
        "and(pos(red book) = 1",
        "not()",
        "left_of(red book, tea) or more",
        "not(" * 5000,
        "__import__('os')",
    ],
)
def test_anything_else_is_no_statement(text):
    assert parse(text, ["red book", "tea"]) is None


def test_a_sentence_is_read_by_the_objects_it_names():
    objects = ["red book", "book", "kiwi"]
    assert mentioned("The kiwis are cheaper than the red book.", ["red book", "kiwi"]) == [1, 0]
    assert lettered("The kiwis are cheaper than the red book.", ["red book", "kiwi"]).startswith("The A are")
    assert len(readings(2, 5)) == 2
    assert len({s.mark for s in readings(1, 5)}) == 5
    assert readings(3, 5) == readings(0, 5) == []
    assert Statement("left_of", (0, 1)).of([2, 0]).text(objects) == "left_of(kiwi, red book)"
