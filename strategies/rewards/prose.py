"""Counting in prose without trained models: sentences, words, tokens, and the language of a text.

Sentences follow the rules of Punkt (Kiss and Strunk, 2006) with a fixed list of abbreviations in place of
learned ones: a sentence ends at `.`, `!` or `?`, with any closing quotes or brackets, before white space;
but not after an abbreviation or an initial, nor after an ellipsis that goes on in lower case.
"""

import re
import unicodedata
from collections import Counter
from functools import cache

_ABBREVIATIONS = frozenset({
    "a.m", "adm", "al", "approx", "apr", "aug", "ave", "bros", "capt", "cf", "cmdr", "co", "col",
    "corp", "dec", "dept", "dist", "dr", "e.g", "ed", "eds", "eg", "esp", "est", "etc", "feb", "fig",
    "ft", "gen", "gov", "hon", "hr", "i.e", "ie", "inc", "jan", "jr", "jul", "jun", "lb", "lt", "ltd",
    "maj", "mar", "messrs", "min", "mr", "mrs", "ms", "mt", "nov", "oct", "oz", "p.m", "ph.d", "pp",
    "prof", "rep", "rev", "rs", "sec", "sen", "sep", "sept", "sgt", "sr", "st", "tel", "u.k", "u.n",
    "u.s", "u.s.a", "viz", "vol", "vs",
})  # fmt: skip
_BREAK = re.compile(
    r"""(?<![.!?…])(?P<mark>[.!?…]++)["'”’»)\]*_]*+\s++(?=["'“‘«(\[]*(?P<next>[^\s"'“‘«(\[]))"""
)
_TOKEN = re.compile(
    r"""[^\W\d_](?:\.[^\W\d_])+\.?           # U.S.
    |\w+(?:[-/.]\w+)*(?=n['’]t\b)            # is + n't
    |n['’]t\b|['’](?:s|m|d|ll|re|ve)\b       # clitics are tokens of their own
    |\w+(?:[-/.’'](?!(?:s|m|d|ll|re|ve|t)\b)\w+)*
    |\S""",
    re.VERBOSE | re.IGNORECASE,
)


def sentences(text: str) -> list[str]:
    """The sentences of a text.

    >>> sentences("Dr. Who met J. Smith. Did he? Yes... he did!")
    ['Dr. Who met J. Smith.', 'Did he?', 'Yes... he did!']
    """
    found, begun = [], 0
    for place in _BREAK.finditer(text):
        before = text[max(0, place.start() - 40) : place.start()]
        word = before.split()[-1] if before and not before[-1].isspace() else ""
        if _ends_sentence(word, place["mark"], place["next"]):
            found.append(text[begun : place.end()].strip())
            begun = place.end()
    rest = text[begun:].strip()
    return [*found, rest] if rest else found


def _ends_sentence(word: str, mark: str, after: str) -> bool:
    if "!" in mark or "?" in mark:
        return True
    if len(mark) > 1 or mark == "…":
        return not after.islower()
    bare = word.lstrip("\"'“‘«([*_").casefold()
    initial = len(bare) == 1 and bare.isalpha() and bare != "i"
    return not initial and bare not in _ABBREVIATIONS


def words(text: str) -> list[str]:
    r"""Runs of `\w`: an apostrophe parts a word."""
    return re.findall(r"\w+", text)


def tokens(text: str) -> list[str]:
    """Words, clitics and punctuation, much as the Penn treebank parts them."""
    return _TOKEN.findall(text)


# ---------------------------------------------------------------- language

_SCRIPTS: dict[str, tuple[str, ...]] = {
    "ar": ("ARABIC",),
    "bg": ("CYRILLIC",),
    "bn": ("BENGALI",),
    "el": ("GREEK",),
    "fa": ("ARABIC",),
    "gu": ("GUJARATI",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK"),
    "kn": ("KANNADA",),
    "ko": ("HANGUL",),
    "mk": ("CYRILLIC",),
    "ml": ("MALAYALAM",),
    "mr": ("DEVANAGARI",),
    "ne": ("DEVANAGARI",),
    "pa": ("GURMUKHI",),
    "ru": ("CYRILLIC",),
    "ta": ("TAMIL",),
    "te": ("TELUGU",),
    "th": ("THAI",),
    "uk": ("CYRILLIC",),
    "ur": ("ARABIC",),
    "zh": ("CJK",),
}
_LATIN = ("LATIN",)


def in_language(text: str, language: str) -> tuple[bool | None, str]:
    """Whether a text is in a language (ISO 639-1, "zh-cn" too), and how that is known.

    A text mostly in another script is not. Beyond that the package `langdetect` is asked where it is
    installed; where it is not, or cannot tell, the answer is None.
    """
    main = language.lower().partition("-")[0]
    script = _script(text)
    if script is None:
        return None, "no letters to tell the language by"
    if script not in _SCRIPTS.get(main, _LATIN):
        return False, f"written in {script.title()} letters"
    detect = _detector()
    if detect is None:
        return None, "language not told: pip install langdetect"
    found = detect(text)
    if found is None:
        return None, "the detector could not tell the language"
    return found == language.lower() or (
        found.partition("-")[0] == main and "-" not in language
    ), f"in {found!r}"


def _script(text: str) -> str | None:
    """The script of most letters."""
    names = Counter(unicodedata.name(c, "?").split()[0] for c in text[:5000] if c.isalpha())
    return names.most_common(1)[0][0] if names else None


@cache
def _detector():  # type: ignore[no-untyped-def]
    """A function from text to language code or None; None where there is no detector."""
    try:
        import langdetect  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    langdetect.DetectorFactory.seed = 0  # it draws at random otherwise

    def detect(text: str) -> str | None:
        try:
            return str(langdetect.detect(text))
        except langdetect.LangDetectException:
            return None

    return detect
