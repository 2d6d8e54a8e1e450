"""How entries are ranked for a query: by words, by vectors, or by both. Shared by all stores.

Words: BM25 over the words of an entry's name and text, plurals cut (the "S" stemmer),

    score(q, d) = Σ_{w in q} ln(1 + (N - n_w + ½) / (n_w + ½)) · f_w (k1 + 1) / (f_w + k1 (1 - b + b |d|/avg))

with N active entries, n_w of them holding w, f_w times in d. Vectors: cosine, as far as it is positive.
Both: reciprocal rank fusion of the first `depth` of each, Σ 1 / (60 + rank).

Sources: Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009), k1 = 1.2, b = 0.75; Harman,
"How effective is suffixing?" (1991); Cormack et al., "Reciprocal rank fusion" (2009), 60.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log

from ..serving.entries import Entry

Ranked = Sequence[tuple[str, float]]
"""Names with scores, best first, ties by name."""

K1, B = 1.2, 0.75
MAX_WORDS = 64
"""So many different words of a query count; the rest of a longer one is not looked at."""


def depth(k: int) -> int:
    """How many of each ranking are fused."""
    return max(64, k)


def words(text: str) -> list[str]:
    """The words of a text as they are compared; each Han or Kana character is one.

    >>> words("Two glasses, three boxes: 東京")
    ['two', 'glass', 'three', 'boxe', '東', '京']
    """
    found = (_WORD if text.isascii() else _ANY_WORD).findall(text.casefold())
    return [_stem(word) if word[-1] == "s" else word for word in found]


_WORD = re.compile(r"\w+")
_ALONE = "\u3041-\u30ff\u3400-\u9fff"  # scripts that are written without spaces
_ANY_WORD = re.compile(rf"[{_ALONE}]|(?:(?![{_ALONE}])\w)+")


def _stem(word: str) -> str:
    if len(word) < 4 or word.endswith(("us", "ss")):
        return word
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return f"{word[:-3]}y"
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1]


def asked(query: str) -> tuple[str, ...]:
    """The different words of a query, in order."""
    return tuple(dict.fromkeys(words(query)))[:MAX_WORDS]


def searched(entry: Entry) -> str:
    """What is searched of an entry."""
    return f"{entry.name} {entry.text}"


@dataclass(frozen=True)
class Corpus:
    """What BM25 has to know of all active entries."""

    n: int
    n_words: int
    holding: Mapping[str, int] = field(default_factory=dict)  # how many hold a word

    def rarity(self, query: Sequence[str]) -> dict[str, float]:
        """What it counts that an entry holds a word, for the words of a query."""
        held = ((word, self.holding.get(word, 0)) for word in query)
        return {word: log(1 + (self.n - n_w + 0.5) / (n_w + 0.5)) for word, n_w in held}

    def bm25(self, rarity: Mapping[str, float], text: Sequence[str]) -> float:
        """The score of a text for the query of which `rarity` was asked."""
        length = K1 * (1 - B + B * len(text) * self.n / max(self.n_words, 1))
        counts: dict[str, int] = {}
        for word in text:
            if word in rarity:
                counts[word] = counts.get(word, 0) + 1
        return sum(rarity[word] * f * (K1 + 1) / (f + length) for word, f in sorted(counts.items()))


@dataclass
class Tally:
    """How a write changes the `Corpus`."""

    n: int = 0
    n_words: int = 0
    holding: Counter[str] = field(default_factory=Counter)

    def count(self, text: Sequence[str], sign: int) -> None:
        """An active entry comes or goes."""
        self.n += sign
        self.n_words += sign * len(text)
        for word in set(text):
            self.holding[word] += sign


def best(scores: Mapping[str, float], n: int) -> Ranked:
    """The `n` best of those above 0."""
    above = [(name, score) for name, score in scores.items() if score > 0]
    return sorted(above, key=lambda pair: (-pair[1], pair[0]))[:n]


def fused(by_words: Ranked, by_vectors: Ranked, k: int) -> Ranked:
    """The `k` best by both."""
    scores: dict[str, float] = {}
    for ranked in (by_words, by_vectors):
        for rank, (name, _) in enumerate(ranked, 1):
            scores[name] = scores.get(name, 0.0) + 1 / (60 + rank)
    return best(scores, k)


def why(rarity: Mapping[str, float], text: Sequence[str], near: str) -> str:
    """Why an entry was found: the words it shares, those that count most first, and `near`, what its vector
    says."""
    shared = sorted(rarity.keys() & set(text), key=lambda word: (-rarity[word], word))
    told = ", ".join(shared[:5]) + (f" and {len(shared) - 5} more" if len(shared) > 5 else "")
    return "; ".join(filter(None, [f"shares {told}" if told else "shares no word", near]))
