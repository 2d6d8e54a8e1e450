"""Which language a text is in: by its script, and among languages of the Latin script by its trigrams.

    P(language | text) ∝ Π_t p(t | language),   t the letter trigrams of the text's words, " w o r d " padded

The profile p of a language comes from its most frequent words (`languages.json`, rank r weighs 1/(r + 5)),
smoothed. Hiragana decides between Japanese and Chinese, letters of their own between Arabic and Persian and
between Ukrainian and Russian. Enough to tell an answer in the wrong language; no linguist.

Source: N-Gram-Based Text Categorization, Cavnar and Trenkle, SDAIR 1994, for trigram profiles; When Life
Gives You Samples, arXiv 2506.20544, for the use. Deviates: profiles are of frequent words, not of a corpus.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from math import exp, log
from typing import NamedTuple

UNKNOWN = "und"
"""The code of a language that is not known."""


class Detected(NamedTuple):
    """A language by its ISO 639-1 code, or "und", and the posterior probability of it."""

    language: str
    confidence: float


def detect(text: str) -> Detected:
    """The language of a text; formulas, digits and code fences do not count. Fewer than four letters, or a
    script that is not known, have none.

    >>> detect("How many apples are left in the end?").language, detect("7 x 8 = 56").language
    ('en', 'und')
    >>> detect("¿Cuántas manzanas quedan al final?").language, detect("リンゴはいくつありますか。").language
    ('es', 'ja')
    """
    text = unicodedata.normalize("NFC", _CODE.sub(" ", text))
    letters = [c for c in text if c.isalpha()]
    scripts = Counter(_script(c) for c in letters)
    if len(letters) < _FEWEST or not scripts:
        return Detected(UNKNOWN, 0.0)
    japanese = scripts["kana"] > 0.1 * (scripts["kana"] + scripts["zh"])  # which writes Han, too
    if japanese:
        scripts["ja"] = scripts.pop("kana") + scripts.pop("zh", 0)
    script, count = max(scripts.items(), key=lambda row: row[1])
    share = count / scripts.total()
    if script == "latin":
        found = _by_trigrams(text)
        return Detected(found.language, found.confidence * share)
    if script == "":
        return Detected(UNKNOWN, 0.0)
    for inside, marks, narrower in _NARROWED:
        if script == inside and any(c in marks for c in text):
            script = narrower
    return Detected(script, share)


def name_of(language: str) -> str:
    """The English name of a language; the code itself where there is none.

    >>> name_of("sw"), name_of("xx")
    ('Swahili', 'xx')
    """
    return NAMES.get(language, language)


NAMES: Mapping[str, str] = {
    "ar": "Arabic",
    "bn": "Bengali",
    "cs": "Czech",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "sw": "Swahili",
    "te": "Telugu",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}
"""The languages that are told apart."""

_FEWEST = 4  # letters
_CODE = re.compile(r"```.*?(?:```|\Z)|\$[^$\n]*\$|\\[a-zA-Z]+", re.DOTALL)
_RANGES = (  # first and last code point, script or the one language of it
    (0x0041, 0x024F, "latin"),
    (0x0370, 0x03FF, "el"),
    (0x0400, 0x052F, "ru"),
    (0x0590, 0x05FF, "he"),
    (0x0600, 0x06FF, "ar"),
    (0x0900, 0x097F, "hi"),
    (0x0980, 0x09FF, "bn"),
    (0x0C00, 0x0C7F, "te"),
    (0x0E00, 0x0E7F, "th"),
    (0x1E00, 0x1EFF, "latin"),
    (0x3040, 0x30FF, "kana"),
    (0x3400, 0x9FFF, "zh"),
    (0xAC00, 0xD7AF, "ko"),
)
_NARROWED = (("ar", "پچژگکی", "fa"), ("ru", "іїєґ", "uk"))


def _script(c: str) -> str:
    return next((name for first, last, name in _RANGES if first <= ord(c) <= last), "")


def _by_trigrams(text: str) -> Detected:
    said = Counter(_trigrams(text))
    if not said:
        return Detected(UNKNOWN, 0.0)
    profiles = _profiles()
    scores = {
        language: sum(n * log(profile.get(t, _UNSEEN)) for t, n in said.items())
        for language, profile in profiles.items()
    }
    best = max(scores, key=scores.__getitem__)
    total = sum(exp(score - scores[best]) for score in scores.values())
    return Detected(best, 1 / total)


_UNSEEN = 2e-4  # probability of a trigram that a profile lacks


def _trigrams(text: str) -> list[str]:
    words = re.findall(r"[^\W\d_]+", text.casefold())
    return [f" {word} "[i : i + 3] for word in words for i in range(len(word))]


@cache
def _profiles() -> dict[str, dict[str, float]]:
    """p(trigram | language), for each language of the Latin script."""
    words: Mapping[str, str] = json.loads((files(__package__) / "languages.json").read_text("utf-8"))
    profiles = {}
    for language, frequent in words.items():
        counts: dict[str, float] = {}
        for rank, word in enumerate(frequent.split()):
            for trigram in _trigrams(word):
                counts[trigram] = counts.get(trigram, 0.0) + 1 / (rank + 5)
        total = sum(counts.values())
        profiles[language] = {trigram: count / total + _UNSEEN for trigram, count in counts.items()}
    return profiles
