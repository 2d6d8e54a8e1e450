"""Words that show doubt, second thoughts, or plain argument, counted in how a solution thinks.

    rate of a class = 100 · (phrases of it) / (words),   kinds = distinct phrases used

Phrases are whole words, whatever their case, the longest first, outside code and formulas; they are counted
in the thinking part where a model marks one (`<think>…</think>`), else in the whole text.

Source: Think Deep, Think Fast, arXiv 2504.14047, and Lexical Hints of Accuracy, arXiv 2508.15842, for the
signal. Deviates: neither list could be read, so the lexicon (`markers.json`, by language) is our own.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from ..serving.errors import UsageError
from .languages import UNKNOWN

CLASSES = ("hedging", "thinking", "discourse")


class Marks(NamedTuple):
    """Phrases per 100 words by class, and how many distinct ones."""

    hedging: float
    thinking: float
    discourse: float
    kinds: int = 0


class Lexicon:
    """Phrases by class; each may be in one class only."""

    def __init__(self, phrases: Mapping[str, Sequence[str]]) -> None:
        if unknown := phrases.keys() - set(CLASSES):
            raise UsageError(
                f"Classes of markers are {', '.join(CLASSES)}, got {', '.join(sorted(unknown))}."
            )
        self._of: dict[str, str] = {}
        for name, said in phrases.items():
            for phrase in said:
                known = self._of.setdefault(" ".join(phrase.casefold().split()), name)
                if known != name:
                    raise UsageError(f"{phrase!r} is in two classes of markers, {known} and {name}.")
        longest = sorted(self._of, key=lambda phrase: -len(phrase))
        self._any = re.compile("|".join(map(_pattern, longest)), re.IGNORECASE) if longest else None

    def marks(self, text: str) -> Marks:
        """What a text has of each class."""
        plain = _QUIET.sub(" ", thinking_part(text).replace("’", "'"))
        found = self._any.findall(plain) if self._any else []
        said = Counter(" ".join(phrase.casefold().split()) for phrase in found)
        totals = Counter[str]()
        for phrase, n in said.items():
            totals[self._of[phrase]] += n
        words = len(_WORD.findall(plain)) or 1
        hedging, thinking, discourse = (100 * totals[name] / words for name in CLASSES)
        return Marks(hedging, thinking, discourse, len(said))


@cache
def lexicon(language: str = "en") -> Lexicon:
    """The lexicon of a language; English where the language is unknown, an empty one where it has none.

    >>> lexicon().marks("Wait, maybe it is 7. So the answer is 7. `maybe`")._replace(kinds=0)
    Marks(hedging=10.0, thinking=10.0, discourse=10.0, kinds=0)
    """
    known = json.loads((files(__package__) / "markers.json").read_text("utf-8"))
    return Lexicon(known["en"] if language == UNKNOWN else known.get(language, {}))


def thinking_part(text: str) -> str:
    """What a model thinks before it answers; the whole text where it marks none.

    >>> thinking_part("<think>\\n6 or 7?</think>It is 7."), thinking_part("It is 7.")
    ('\\n6 or 7?', 'It is 7.')
    """
    head, closed, _ = text.partition("</think>")
    before, opened, after = head.partition("<think>")
    return (after if opened else before) if closed or opened else text


def answer_part(text: str) -> str:
    """What a model says after it has thought; the whole text where it marks no thinking.

    >>> answer_part("<think>6 or 7?</think>\\nIt is 7."), answer_part("It is 7. ")
    ('It is 7.', 'It is 7.')
    """
    _, closed, after = text.rpartition("</think>")
    return (after if closed else text).strip()


_QUIET = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f"  # scripts without spaces: a character is a word
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:'[^\W{_UNSPACED}]+)?")


def _pattern(phrase: str) -> str:
    words = r"\s+".join(re.escape(word) for word in phrase.split())
    return words if re.search(f"[{_UNSPACED}]", phrase) else rf"(?<!\w){words}(?!\w)"
