"""Laws of the ranking that all stores share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abduce.memory.ranking import Corpus, best, fused, why, words

CORPUS = Corpus(100, 1000, {"rare": 1, "seldom": 10, "common": 90})
texts = st.lists(st.sampled_from(["rare", "seldom", "common", "other"]), max_size=12)


def score(query, text):
    return CORPUS.bm25(CORPUS.rarity(query), text)


@given(texts)
def test_a_text_scores_above_nothing_if_it_shares_a_word(text):
    query = ("rare", "common")
    assert (score(query, text) > 0) == bool({*query} & {*text})


@given(texts, st.sampled_from(["rare", "seldom", "common"]))
def test_one_more_of_a_word_in_place_of_another_scores_more(text, word):
    assert score((word,), [*text, word]) > score((word,), [*text, "other"])


def test_rare_words_count_more_and_long_texts_less():
    assert (
        score(("rare",), ["rare", "x"])
        > score(("seldom",), ["seldom", "x"])
        > score(("common",), ["common", "x"])
    )
    assert score(("rare",), ["rare"]) > score(("rare",), ["rare", *"abcdef"])


@pytest.mark.parametrize(
    ("one", "many"),
    [("circle", "Circles"), ("query", "queries"), ("glass", "glasses"), ("STRASSE", "straße")],
)
def test_words_in_one_and_many_are_the_same(one, many):
    assert words(one) == words(many)


@pytest.mark.parametrize("word", ["bus", "this", "is", "as", "class"])
def test_an_s_that_is_no_plural_stays_one_word(word):
    assert len(words(word)) == 1


def test_scripts_without_spaces_are_read_by_character():
    assert words("東京 tower") == ["東", "京", "tower"]


ranked = st.lists(st.sampled_from("abcdefgh"), unique=True).map(lambda names: [(n, 1.0) for n in names])


@given(ranked, ranked, st.integers(1, 8))
def test_what_is_first_by_both_is_first(by_words, by_vectors, k):
    found = fused(by_words, by_vectors, k)
    assert len(found) == min(k, len({n for n, _ in (*by_words, *by_vectors)}))
    if by_words and by_vectors and by_words[0] == by_vectors[0]:
        assert found[0][0] == by_words[0][0]
    assert list(found) == list(fused(by_vectors, by_words, k))


def test_ties_go_by_name_and_nothing_is_no_match():
    assert list(best({"b": 1.0, "a": 1.0, "c": 0.0, "d": -1.0}, 9)) == [("a", 1.0), ("b", 1.0)]


def test_the_reason_names_the_rarest_words_first():
    rarity = CORPUS.rarity(("common", "rare", "unheard", "seldom"))
    assert why(rarity, ["seldom", "common", "rare"], "near") == "shares rare, seldom, common; near"
    assert why(rarity, ["other"], "near") == "shares no word; near"
