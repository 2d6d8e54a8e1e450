"""The 25 verifiable instructions of IFEval: pure functions of the text.

    ok("punctuation:no_comma", {}, "no comma here")                      # True
    check("length_constraints:number_words", {"num_words": 300, "relation": "at least"}, text)
        # Finding(ok=False, required="at least 300 words", observed="212 words")

Source: IFEval, arXiv 2311.07911, as ported in lm-evaluation-harness 0.4.13. Deviates: a missing argument is
an error (there, one is drawn at random); patterns are matched in bounded time (`patterns`); sentences and
tokens are parted by fixed rules and languages by script unless `langdetect` is installed (`prose`).
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ...serving.errors import UnknownName, UsageError
from . import patterns
from .prose import in_language, sentences, tokens, words


@dataclass(frozen=True, slots=True)
class Finding:
    """What was asked for and what was found. `certain` is false where the check could not be carried out
    and counts as met, as in IFEval (no language detector)."""

    ok: bool
    required: str
    observed: str
    certain: bool = True

    @property
    def critique(self) -> str:
        """One line for whoever is to mend the text."""
        return f"required: {self.required}; found: {self.observed}"


def ok(id: str, kwargs: Mapping[str, Any], text: str, *, loose: bool = False) -> bool:
    """Whether the text does what the instruction asks; see `check`."""
    return check(id, kwargs, text, loose=loose).ok


def check(id: str, kwargs: Mapping[str, Any], text: str, *, loose: bool = False) -> Finding:
    """The finding on a text. An empty text fails every check.

    `loose`: met if any of eight variants meets it, the text without its first line, its last, both or
    neither, each with and without asterisks. Raises UnknownName for an unknown id, UsageError for missing,
    unknown or unfit arguments.
    """
    instruction, given = instructed(id, kwargs)
    strict = _found(instruction, given, text)
    if strict.ok or not loose:
        return strict
    tried = (_found(instruction, given, variant) for variant in _variants(text)[1:] if variant.strip())
    return next((finding for finding in tried if finding.ok), strict)


def instructed(id: str, kwargs: Mapping[str, Any]) -> "tuple[Instruction, dict[str, Any]]":
    """The instruction of an id with its checked arguments; those that are None count as not given."""
    if id not in INSTRUCTIONS:
        raise UnknownName("check", id, INSTRUCTIONS)
    instruction = INSTRUCTIONS[id]
    given = {name: value for name, value in kwargs.items() if value is not None}
    for name in instruction.wants:
        if name not in given:
            raise UsageError(f"The check {id!r} lacks {name!r}. It takes: {', '.join(instruction.wants)}.")
    for name, value in given.items():
        if name not in instruction.wants:
            wants = ", ".join(instruction.wants) or "nothing"
            raise UsageError(f"The check {id!r} does not take {name!r}. It takes: {wants}.")
        _demand_fit(id, name, value)
    return instruction, given


def _found(instruction: "Instruction", given: Mapping[str, Any], text: str) -> Finding:
    finding = instruction.run(text, **given)
    return finding if text.strip() else Finding(False, finding.required, "nothing", finding.certain)


def _variants(text: str) -> list[str]:
    lines = text.split("\n")
    cut = [lines, lines[1:], lines[:-1], lines[1:-1]]
    kept = [text, *("\n".join(rest).strip() for rest in cut[1:])]
    return kept + [variant.replace("*", "") for variant in kept]


def _demand_fit(id: str, name: str, value: Any) -> None:
    if name in _LISTS:
        fit, shape = (
            isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value),
            "a list of texts",
        )
    elif name.endswith("relation"):
        fit, shape = value in _RELATIONS, " or ".join(map(repr, _RELATIONS))
    elif name in _TEXTS:
        fit, shape = isinstance(value, str) and bool(value.strip()), "a text"
    else:
        fit, shape = (
            isinstance(value, int) and not isinstance(value, bool) and value >= 0,
            "a count such as 3",
        )
    if not fit:
        raise UsageError(f"{name!r} of the check {id!r} must be {shape}, got {value!r}.")


_RELATIONS = ("less than", "at least")
_LISTS = ("keywords", "forbidden_words")
_TEXTS = (
    "keyword", "letter", "language", "first_word", "postscript_marker", "section_spliter", "prompt_to_repeat",
    "end_phrase",
)  # fmt: skip


def _related(n: int, relation: str, k: int, what: str) -> Finding:
    return Finding(n < k if relation == "less than" else n >= k, f"{relation} {k} {what}", f"{n}")


def _exactly(n: int | None, k: int, what: str) -> Finding:
    return Finding(n == k, f"exactly {k} {what}", "an empty one" if n is None else f"{n}")


# ---------------------------------------------------------------- words


def _keywords(text: str, keywords: list[str]) -> Finding:
    missing = [word for word in keywords if not _contains(word, text)]
    return Finding(
        not missing, f"the words {', '.join(keywords)}", f"no {', '.join(missing)}" if missing else "all"
    )


def _keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> Finding:
    plain = not re.search(r"[.^$*+?{}\[\]\\|()]", keyword)
    n = text.lower().count(keyword.lower()) if plain else patterns.count(keyword, text, ignore_case=True)
    return _related(n, relation, frequency, f"times {keyword!r}")


def _forbidden_words(text: str, forbidden_words: list[str]) -> Finding:
    found = [word for word in forbidden_words if _contains(rf"\b{word}\b", text)]
    return Finding(not found, f"none of the words {', '.join(forbidden_words)}", ", ".join(found) or "none")


def _contains(pattern: str, text: str) -> bool:
    return patterns.search(pattern, text, ignore_case=True)


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> Finding:
    n = text.lower().count(letter.lower())
    return _related(n, let_relation, let_frequency, f"times the letter {letter!r}")


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> Finding:
    n = sum(token.isupper() for token in tokens(text))
    return _related(n, capital_relation, capital_frequency, "words in capitals")


def _language(text: str, language: str) -> Finding:
    spoken, how = in_language(text, language)
    return Finding(spoken is not False, f"the language {language!r}", how, certain=spoken is not None)


def _english(text: str, is_case: bool, case: str) -> Finding:
    required = f"all of it in English and in {case} letters"
    if not is_case:
        return Finding(False, required, f"other than {case} letters")
    spoken, how = in_language(text, "en")
    return Finding(spoken is not False, required, how, certain=spoken is not None)


# ---------------------------------------------------------------- lengths


def _number_sentences(text: str, num_sentences: int, relation: str) -> Finding:
    return _related(len(sentences(text)), relation, num_sentences, "sentences")


def _number_words(text: str, num_words: int, relation: str) -> Finding:
    return _related(len(words(text)), relation, num_words, "words")


def _number_paragraphs(text: str, num_paragraphs: int) -> Finding:
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner_empty = any(not part.strip() for part in parts[1:-1])
    n = None if inner_empty else sum(bool(part.strip()) for part in parts)
    return _exactly(n, num_paragraphs, "paragraphs parted by ***")


def _nth_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> Finding:
    parts = text.split("\n\n")
    n = sum(bool(part.strip()) for part in parts)
    required = f"{num_paragraphs} paragraphs, number {nth_paragraph} beginning with {first_word!r}"
    if not 1 <= nth_paragraph <= n or not (chosen := parts[nth_paragraph - 1].split()):
        return Finding(False, required, f"{n} paragraphs")
    word = re.split(r"[.,?!'\"]", chosen[0].lstrip("'").lstrip('"'))[0].lower()
    met = n == num_paragraphs and word == first_word.lower()
    return Finding(met, required, f"{n} paragraphs, number {nth_paragraph} beginning with {word!r}")


# ---------------------------------------------------------------- contents and forms


def _placeholders(text: str, num_placeholders: int) -> Finding:
    return _related(len(re.findall(r"\[.*?\]", text)), "at least", num_placeholders, "[placeholders]")


def _postscript(text: str, postscript_marker: str) -> Finding:
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    pattern = known.get(postscript_marker, postscript_marker.lower())
    met = patterns.search(pattern, text.lower())
    return Finding(met, f"a postscript after {postscript_marker!r}", "one" if met else "none")


def _bullets(text: str, num_bullets: int) -> Finding:
    n = len(re.findall(r"^[^\S\n]*\*[^\*].*$", text, re.MULTILINE)) + len(
        re.findall(r"^[^\S\n]*-.*$", text, re.MULTILINE)
    )
    return _exactly(n, num_bullets, "bullets")


_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _constrained(text: str) -> Finding:
    met = any(sentence in text for sentence in _CONSTRAINED)
    return Finding(met, f"one of the sentences {' '.join(_CONSTRAINED)}", "one" if met else "none")


def _highlights(text: str, num_highlights: int) -> Finding:
    single = re.findall(r"\*[^\n\*]*\*", text)
    double = re.findall(r"\*\*[^\n\*]*\*\*", text)
    n = sum(bool(s.strip("*").strip()) for s in single)
    n += sum(bool(s.removeprefix("**").removesuffix("**").strip()) for s in double)
    return _related(n, "at least", num_highlights, "*highlighted parts*")


def _sections(text: str, section_spliter: str, num_sections: int) -> Finding:
    n = patterns.count(rf"(?:{section_spliter})\s?\d+", text)
    return _related(n, "at least", num_sections, f"sections headed {section_spliter!r} and a number")


def _json(text: str) -> Finding:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError) as error:
        return Finding(False, "nothing but JSON", str(error))
    return Finding(True, "nothing but JSON", "JSON")


def _title(text: str) -> Finding:
    titles = re.findall(r"<<[^\n]+>>", text)
    met = any(title.lstrip("<").rstrip(">").strip() for title in titles)
    return Finding(met, "a title in <<double angular brackets>>", "one" if met else "none")


def _two_responses(text: str) -> Finding:
    required = "two different responses parted by ******"
    parts = text.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return Finding(False, required, "an empty one")
    said = [part.strip() for part in parts if part.strip()]
    met = len(said) == 2 and said[0] != said[1]
    return Finding(met, required, f"{len(said)}" + (" alike" if len(said) == 2 and not met else ""))


def _repeat_prompt(text: str, prompt_to_repeat: str) -> Finding:
    met = text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    return Finding(
        met, f"first the words {prompt_to_repeat.strip()!r}", "them" if met else repr(text.strip()[:40])
    )


def _end(text: str, end_phrase: str) -> Finding:
    said = text.strip().strip('"').lower()
    met = said.endswith(end_phrase.strip().lower())
    return Finding(met, f"the very last words {end_phrase.strip()!r}", repr(said[-40:]))


def _quotation(text: str) -> Finding:
    text = text.strip()
    met = len(text) > 1 and text[0] == text[-1] == '"'
    return Finding(met, "double quotes around all of it", "them" if met else repr(text[:1] + "…" + text[-1:]))


def _no_comma(text: str) -> Finding:
    n = text.count(",")
    return Finding(n == 0, "no comma", f"{n}")


# ---------------------------------------------------------------- by id


@dataclass(frozen=True, slots=True)
class Instruction:
    """A check and the names of its arguments, all of which it needs."""

    run: Callable[..., Finding]
    wants: tuple[str, ...] = ()


_I: TypeAlias = Instruction
INSTRUCTIONS: dict[str, Instruction] = {
    "change_case:capital_word_frequency": _I(_capital_words, ("capital_frequency", "capital_relation")),
    "change_case:english_capital": _I(lambda text: _english(text, text.isupper(), "capital")),
    "change_case:english_lowercase": _I(lambda text: _english(text, text.islower(), "lower-case")),
    "combination:repeat_prompt": _I(_repeat_prompt, ("prompt_to_repeat",)),
    "combination:two_responses": _I(_two_responses),
    "detectable_content:number_placeholders": _I(_placeholders, ("num_placeholders",)),
    "detectable_content:postscript": _I(_postscript, ("postscript_marker",)),
    "detectable_format:constrained_response": _I(_constrained),
    "detectable_format:json_format": _I(_json),
    "detectable_format:multiple_sections": _I(_sections, ("section_spliter", "num_sections")),
    "detectable_format:number_bullet_lists": _I(_bullets, ("num_bullets",)),
    "detectable_format:number_highlighted_sections": _I(_highlights, ("num_highlights",)),
    "detectable_format:title": _I(_title),
    "keywords:existence": _I(_keywords, ("keywords",)),
    "keywords:forbidden_words": _I(_forbidden_words, ("forbidden_words",)),
    "keywords:frequency": _I(_keyword_frequency, ("keyword", "frequency", "relation")),
    "keywords:letter_frequency": _I(_letter_frequency, ("letter", "let_frequency", "let_relation")),
    "language:response_language": _I(_language, ("language",)),
    "length_constraints:nth_paragraph_first_word": _I(
        _nth_paragraph, ("num_paragraphs", "nth_paragraph", "first_word")
    ),
    "length_constraints:number_paragraphs": _I(_number_paragraphs, ("num_paragraphs",)),
    "length_constraints:number_sentences": _I(_number_sentences, ("num_sentences", "relation")),
    "length_constraints:number_words": _I(_number_words, ("num_words", "relation")),
    "punctuation:no_comma": _I(_no_comma),
    "startend:end_checker": _I(_end, ("end_phrase",)),
    "startend:quotation": _I(_quotation),
}
"""The 25 ids of IFEval."""
