import time

import pytest

from abduce.serving.errors import UnknownName, UsageError
from abduce.strategies.rewards.ifeval import INSTRUCTIONS, check, ok
from abduce.strategies.rewards.prose import in_language, sentences, tokens

AT_LEAST, LESS = "at least", "less than"

# id, kwargs, texts that meet it, texts that do not
CASES = [
    ("keywords:existence", {"keywords": ["cat", "dog"]}, ["A CAT and a dogfight"], ["a cat", "do g cat"]),
    ("keywords:existence", {"keywords": ["colou?r"]}, ["Colors"], ["coloour"]),
    (
        "keywords:frequency",
        {"keyword": "so", "frequency": 2, "relation": AT_LEAST},
        ["So, also", "so so so"],
        ["so", "none"],
    ),
    (
        "keywords:frequency",
        {"keyword": "so", "frequency": 2, "relation": LESS},
        ["so", "none"],
        ["so also", "soso"],
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["bad", "ugly"]}, ["badly done"], ["Bad!", "so ugly"]),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 3, "let_relation": AT_LEAST},
        ["Eee", "the tree"],
        ["the end", "a"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": LESS},
        ["one # only"],
        ["# two #"],
    ),
    (
        "language:response_language",
        {"language": "hi"},
        ["यह एक वाक्य है"],
        ["this is English", "это по-русски"],
    ),
    ("language:response_language", {"language": "ko"}, ["이것은 문장입니다"], ["no Korean here"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": AT_LEAST},
        ["One. Two!", "Dr. No left. Why?"],
        ["Only one.", "Mr. A. Smith came"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": LESS},
        ["It cost 3.50 at St. Ives."],
        ["One. Two."],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": AT_LEAST},
        ["one two three", "it's two"],
        ["one two", "..."],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": LESS}, ["one two"], ["one two three"]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["one\n***\ntwo", "***\none\n***\ntwo\n***"],
        ["one", "one\n***\n***\ntwo", "a***b***c", "one\n\ntwo"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Rain"},
        ["Sun.\n\nrain, again", 'Sun.\n\n"Rain" fell'],
        ["Rain.\n\nSun.", "a\n\nrain\n\nb", "Rain", "Sun.\n\nrainy"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[a] [b]", "[a][b][]"],
        ["[a]", "[a"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye\nP.S. more", "bye p. s. more"],
        ["Bye\nPS more", "bye"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["x\nP.P.S more", "x\np. p. s"],
        ["x\nP.S. more"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* one\n* two", "intro\n- one\n  - two"],
        ["* one", "** bold **\n* one", "* a\n* b\n- c"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["Well, My answer is no. That is it"],
        ["my answer is no.", "My answer is perhaps."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** b *c*"],
        ["*a*", "* a\n* b", "* * *"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\nx\nSECTION 2\ny", "SECTION1 SECTION2"],
        ["SECTION 1", "SECTION A\nSECTION B", "Section 1 Section 2"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": [1]}\n```', "```\n[]\n```"],
        ["{a: 1}", 'Here: {"a": 1}'],
    ),
    ("detectable_format:title", {}, ["<<My poem>>\nx", "x <<t>> y"], ["<< >>", "<My poem>", "<<a\nb>>"]),
    (
        "combination:two_responses",
        {},
        ["one******two", "******\none\n******\ntwo\n******"],
        ["one", "one******one", "a******b******c", "a******  ******b"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem. "},
        ["write a poem.\nRoses", "  Write a poem.Yes"],
        ["Sure! Write a poem.", "Write"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Any questions?"},
        ["Well. any questions?", 'Well. Any questions?"'],
        ["Any questions? No.", "questions?"],
    ),
    ("startend:quotation", {}, ['"all of it"', ' "a"\n'], ['"', '"a" he said', "plain"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": AT_LEAST},
        ["NASA and ESA", "I AM"],
        ["NASA only", "Big Words"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LESS},
        ["NASA's plan", "none"],
        ["GO NOW"],
    ),
    ("change_case:english_capital", {}, ["THIS IS LOUD!"], ["This is not", "123", "ЭТО ГРОМКО"]),
    ("change_case:english_lowercase", {}, ["this is quiet, 1."], ["This is not", "123", "это тихо"]),
    ("punctuation:no_comma", {}, ["no commas here; none"], ["one, two"]),
]
EXAMPLES = [(id, kwargs, text, True) for id, kwargs, met, _ in CASES for text in met]
EXAMPLES += [(id, kwargs, text, False) for id, kwargs, _, unmet in CASES for text in unmet]


@pytest.mark.parametrize(("id", "kwargs", "text", "met"), EXAMPLES)
def test_check(id, kwargs, text, met):
    assert ok(id, kwargs, text) is met
    assert ok(id, kwargs, text, loose=True) or not met  # loose never fails what strict passes


def test_every_id_has_a_text_that_meets_it_and_one_that_does_not():
    assert {id for id, *_ in CASES} == set(INSTRUCTIONS)
    assert len(INSTRUCTIONS) == 25
    assert all(met and unmet for _, _, met, unmet in CASES)


@pytest.mark.parametrize(("id", "kwargs"), [(id, kwargs) for id, kwargs, _, _ in CASES])
@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_fails_every_check(id, kwargs, text):
    assert not ok(id, kwargs, text)
    assert not ok(id, kwargs, text, loose=True)


@pytest.mark.parametrize(("id", "kwargs"), [(id, kwargs) for id, kwargs, _, _ in CASES if kwargs])
def test_a_missing_argument_is_an_error(id, kwargs):
    for name in kwargs:
        with pytest.raises(UsageError, match=f"lacks '{name}'"):
            ok(id, {**kwargs, name: None}, "text")


@pytest.mark.parametrize(
    ("text", "strict", "loose"),
    [
        ("no commas", True, True),
        ("Sure, here:\nno commas", False, True),
        ("no commas\nHope this helps, bye", False, True),
        ("Sure, here:\nno commas\nHope this helps, bye", False, True),
        ("a\nb, c\nd", False, False),
        ("Sure, here it is", False, False),
    ],
)
def test_loose_forgives_the_first_and_last_line(text, strict, loose):
    assert ok("punctuation:no_comma", {}, text) is strict
    assert ok("punctuation:no_comma", {}, text, loose=True) is loose


def test_loose_forgives_asterisks():
    kwargs = {"end_phrase": "the end"}
    assert not ok("startend:end_checker", kwargs, "so it goes. **the end**")
    assert ok("startend:end_checker", kwargs, "so it goes. **the end**", loose=True)


def test_a_critique_says_what_was_asked_and_what_was_found():
    found = check(
        "length_constraints:number_words", {"num_words": 300, "relation": AT_LEAST}, "far too short"
    )
    assert found.critique == "required: at least 300 words; found: 3"


@pytest.mark.parametrize(
    ("id", "kwargs", "told"),
    [
        ("punctuation:no_coma", {}, "Did you mean 'punctuation:no_comma'"),
        ("punctuation:no_comma", {"n": 1}, "does not take 'n'"),
        ("length_constraints:number_words", {"num_words": "many", "relation": AT_LEAST}, "a count"),
        (
            "length_constraints:number_words",
            {"num_words": 3, "relation": "around"},
            "'less than' or 'at least'",
        ),
        ("keywords:existence", {"keywords": "cat"}, "a list of texts"),
        ("keywords:existence", {"keywords": ["C++"]}, "bounded time"),
    ],
)
def test_unfit_arguments_are_told(id, kwargs, told):
    with pytest.raises((UsageError, UnknownName), match=told):
        ok(id, kwargs, "some text")


def test_what_no_detector_can_tell_counts_as_met_but_is_marked():
    assert ok("language:response_language", {"language": "en"}, "123")
    assert not check("language:response_language", {"language": "en"}, "123").certain
    assert check("language:response_language", {"language": "ru"}, "plain English").certain


# ---------------------------------------------------------------- prose


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two? Three! Four", 4),
        ("Dr. Smith met J. R. Jones in the U.S. Senate.", 1),
        ('He said "Go." Then he left.', 2),
        ("Wait... what? Yes.", 2),
        ("Wait... What? Yes.", 3),
        ("It costs 3.50. Cheap, e.g. for me.", 2),
        ("What?! No way!!! Ok.", 3),
        ("Line one\nline two. Next", 2),
        ("(One.) (Two.)", 2),
    ],
)
def test_sentences(text, n):
    assert len(sentences(text)) == n
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("I don't.", ["I", "do", "n't", "."]),
        ("NASA's U.S. base", ["NASA", "'s", "U.S.", "base"]),
        ("well-known (a,b)", ["well-known", "(", "a", ",", "b", ")"]),
    ],
)
def test_tokens(text, parts):
    assert tokens(text) == parts


@pytest.mark.parametrize(
    ("text", "language", "known"),
    [
        ("Это предложение", "en", False),
        ("これは文です", "ja", None),
        ("This is English", "ja", False),
        ("", "en", None),
    ],
)
def test_scripts_rule_languages_out(text, language, known):
    found, how = in_language(text, language)
    assert how
    assert found is known or (known is None and found is True)  # langdetect may be installed


def test_long_texts_are_handled_quickly():
    for text in ("a" * 50_000, "." * 50_000, " \n" * 20_000, "a. " * 10_000, "* " * 10_000):
        for id, kwargs, _, _ in CASES:
            began = time.process_time()
            ok(id, kwargs, text)
            assert time.process_time() - began < 5, id  # quadratic work would take minutes
