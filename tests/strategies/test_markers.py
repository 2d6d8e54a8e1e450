"""Laws of counting markers: whole phrases, longest first, in what was thought, outside code and formulas."""

import json
from importlib.resources import files

import pytest

from abduce.serving.errors import UsageError
from abduce.strategies.languages import NAMES
from abduce.strategies.markers import CLASSES, Lexicon, lexicon, thinking_part

KNOWN = json.loads((files("abduce") / "strategies" / "markers.json").read_text("utf-8"))


def rates(text, language="en"):
    return tuple(lexicon(language).marks(text)[:3])


@pytest.mark.parametrize("language", sorted(KNOWN))
def test_each_phrase_of_the_lexicon_counts_for_its_own_class_and_no_other(language):
    assert language in NAMES
    for i, name in enumerate(CLASSES):
        for phrase in KNOWN[language][name]:
            said = rates(f"abc {phrase.upper()} abc", language)
            assert said[i] > 0
            assert sum(rate > 0 for rate in said) == 1


def test_a_phrase_is_whole_words_whatever_stands_between_them():
    assert rates("sofa, seconds, thenar, mightily") == (0, 0, 0)
    assert rates("I\n think") == (50.0, 0, 0)


def test_the_longest_phrase_counts_alone():
    words = Lexicon({"hedging": ["could be"], "thinking": ["could be wrong"]})
    assert words.marks("it could be wrong")[:3] == (0, 25.0, 0)


def test_code_and_formulas_do_not_count():
    assert rates("x\n```\nmaybe wait so\n```\n`so` $so$ $$so\nso$$ \\(so\\) \\[so\\]") == (0, 0, 0)


def test_only_what_was_thought_counts_where_it_is_marked():
    assert thinking_part("<think>maybe</think>So it is 7.") == "maybe"
    assert thinking_part("maybe</think>So it is 7.") == "maybe"
    assert thinking_part("<think>cut short") == "cut short"
    assert rates("<think>maybe</think>So it is 7.") == (100.0, 0, 0)


def test_rates_do_not_depend_on_length_and_kinds_are_distinct():
    text = "Wait, maybe it is seven. "
    once, twice = lexicon().marks(text), lexicon().marks(text * 2)
    assert once == twice
    assert once.kinds == 2


def test_scripts_without_spaces_count_characters_as_words():
    assert rates("也许是七", "zh") == (25.0, 0, 0)


def test_a_language_without_a_lexicon_has_no_markers_and_an_unknown_one_has_english():
    assert rates("maybe", "te") == (0, 0, 0)
    assert rates("maybe", "und") == rates("maybe", "en")


def test_typed_apostrophes_are_those_of_the_lexicon():
    assert rates("d\u2019abord sept", "fr") == (0, 0, 50.0)


@pytest.mark.parametrize(
    ("phrases", "hint"),
    [
        ({"doubt": ["maybe"]}, "hedging, thinking"),
        ({"hedging": ["so"], "discourse": ["So"]}, "in two classes"),
    ],
)
def test_wrong_phrases_are_refused(phrases, hint):
    with pytest.raises(UsageError, match=hint):
        Lexicon(phrases)
