import random
import time

import pytest

from abduce.memory.likeness import compared, near_pairs, relation
from abduce.serving.entries import Entry

LONG = "look for the largest object of the grid and paint all of its cells in the colour of its frame"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("Sort rows by length.", "sort the row by length", "same"),
        (LONG, LONG + " twice", "same"),
        (LONG, LONG.replace("largest", "smallest"), "similar"),
        (LONG, LONG.replace("paint", "never paint"), "contradicts"),
        ("the angles sum to 180", "the angles sum to 180.0 ", "contradicts"),
        ("what e1 says of it", "what e2 says of it", "other"),
        ("do not use it here", "don't use it here", "same"),
        ("divide a by b", "divide b by a", "other"),
        ("rotate the grid", "count the objects", "other"),
        ("", "rotate", "other"),
        ("42", "43", "other"),
    ],
)
def test_texts_are_compared_by_words_and_either_way_round(one: str, other: str, expected: str) -> None:
    assert compared(one, other) == compared(other, one) == expected


def answer(name: str, question: str, found: str) -> Entry:
    return Entry(name, f"{question} Answer: {found}", "answer", {"question": question, "answer": found})


def lesson(name: str, situation: str, suggestion: str) -> Entry:
    data = {"situation": situation, "suggestion": suggestion}
    return Entry(name, f"{situation}\n{suggestion}", "lesson", data)


def test_answers_contradict_where_the_question_is_the_same() -> None:
    assert relation(answer("a", "7 x 8?", "56"), answer("b", "7 x 8 ?", "56.")) == "same"
    assert relation(answer("a", "7 x 8?", "56"), answer("b", "7 x 8?", "54")) == "contradicts"
    assert relation(answer("a", "7 x 8?", "56"), answer("b", "7 x 9?", "63")) == "other"


def test_lessons_contradict_where_one_denies_the_other_in_the_same_situation() -> None:
    small = "the output is smaller than the input"
    crop = lesson("a", small, "try to crop it")
    assert relation(crop, lesson("b", small, "do not try to crop it")) == "contradicts"
    assert relation(crop, lesson("b", small, "count the colours instead")) == "other"
    assert (
        relation(crop, lesson("b", "the output is larger than the input by far", "try to crop it")) == "other"
    )


def test_concepts_and_solutions_contradict_nothing() -> None:
    for kind in ("structure", "routine", "solution"):
        one, other = (
            Entry("a", "rotate the grid by 90 degrees", kind),
            Entry("b", "rotate the grid by 180 degrees", kind),
        )
        assert relation(one, other) == "similar"


def test_other_kinds_and_domains_are_other() -> None:
    assert relation(Entry("a", "x y z", "note"), Entry("b", "x y z", "lesson")) == "other"
    assert relation(Entry("a", "x y z", domain="arc"), Entry("b", "x y z", domain="maths")) == "other"


@pytest.mark.parametrize("seed", range(20))
def test_no_near_pair_is_missed(seed: int) -> None:
    """The index against all pairs."""
    rng = random.Random(seed)
    words = [f"w{chr(97 + i)}" for i in range(14)]
    entries = [Entry(f"e{i}", " ".join(rng.sample(words, rng.randint(2, 12)))) for i in range(60)]
    entries += [Entry(f"f{i}", f"{e.text} more") for i, e in enumerate(entries[:20])]
    found = {frozenset((a.name, b.name)) for a, b in near_pairs(entries)}
    for i, one in enumerate(entries):
        for other in entries[:i]:
            if relation(one, other) not in ("other",):
                assert frozenset((one.name, other.name)) in found, (one, other)


def test_retired_entries_are_near_nothing() -> None:
    assert not list(near_pairs([Entry("a", "x y z"), Entry("b", "x y z", status="retired")]))


def test_pairs_of_many_entries_are_found_in_time() -> None:
    rng = random.Random(0)
    words = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600)]
    entries = [Entry(f"e{i}", " ".join(rng.choices(words, k=15))) for i in range(3000)]
    entries.append(Entry("again", entries[7].text))
    began = time.process_time()
    assert [(a.name, b.name) for a, b in near_pairs(entries)] == [("e7", "again")]
    assert time.process_time() - began < 20
