"""When two entries say the same, and when they contradict each other: judged by their words.

    same         nearly the same words in the same order; neither denies or replaces what the other says
    contradicts  the same words but for a negation or a number; or other answers to one question
    similar      nearly the same words, but each has some that the other lacks: perhaps variants
    other        anything else

It errs towards `similar`: what is merged wrongly is lost to the reader, what is kept twice only takes room.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from math import ceil
from typing import Literal, NamedTuple, TypeAlias

from ..serving.entries import Entry

Relation: TypeAlias = Literal["same", "contradicts", "similar", "other"]

LEAST = 0.8  # overlap of words (Jaccard) from which two texts are near
CONCEPTS = frozenset(("structure", "routine"))
_CLAIM_NOTHING = CONCEPTS | {"solution"}  # and contradict nothing: `rotate by 90` beside `rotate by 180`


class Claim(NamedTuple):
    """What an entry is about, and what it says of it; the latter alone where there is no such division."""

    about: str
    says: str


def claim(entry: Entry) -> Claim:
    """A lesson's situation and suggestion, an answer's question and answer, a solution's problem and
    solution; else the text."""
    for about, says in (("situation", "suggestion"), ("question", "answer"), ("problem", "solution")):
        if isinstance(entry.data.get(about), str) and says in entry.data:
            return Claim(entry.data[about], str(entry.data[says]))
    if entry.kind == "answer" and " Answer: " in entry.text:
        about, _, says = entry.text.rpartition(" Answer: ")
        return Claim(about, says)
    return Claim("", entry.text)


def relation(one: Entry, other: Entry) -> Relation:
    """How two entries of one domain stand to each other."""
    if one.kind != other.kind or one.domain != other.domain:
        return "other"
    a, b = claim(one), claim(other)
    if bool(a.about) != bool(b.about):
        return "other"
    if a.about:
        if compared(a.about, b.about) != "same":
            return "other"
        if one.kind == "answer":
            return "same" if _plain(a.says) == _plain(b.says) else "contradicts"
    found = compared(a.says, b.says)
    return "similar" if found == "contradicts" and one.kind in _CLAIM_NOTHING else found


def compared(one: str, other: str) -> Relation:
    """How two texts stand to each other.

    >>> compared("Sort the rows by length.", "sort rows by length")
    'same'
    >>> compared("the angles sum to 180", "the angles sum to 190")
    'contradicts'
    >>> long = "paint each cell of the frame around the largest object of the grid in {}"
    >>> compared(long.format("red"), long.format("blue"))
    'similar'
    """
    a, b = _read(one), _read(other)
    if a.words == b.words:
        return "same"
    if not a.core or not b.core or not _near(a, b):
        return "other"
    if a.held - b.held and b.held - a.held:
        return "similar"
    return "contradicts" if a.turn != b.turn else "same"


def same_words(one: str, other: str) -> bool:
    """Whether the texts differ only in case, punctuation, articles and plurals."""
    return _read(one).words == _read(other).words


def near_pairs(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Entry]]:
    """Pairs of active entries that may be near each other: all that share enough words, and few more.

    Of texts with at least `LEAST` of their words in common, one of the rarest words is in both; only entries
    that share one of these are looked at (prefix filtering: Chaudhuri et al., ICDE 2006).
    """
    active = [entry for entry in entries if entry.status == "active"]
    keys = [_read(found.about).held or _read(found.says).held for found in map(claim, active)]
    seen: Counter[str] = Counter(word for key in keys for word in key)
    index: defaultdict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        rarest = sorted(key, key=lambda word: (seen[word], word))
        prefix = rarest[: len(key) - ceil(LEAST * len(key)) + 1]
        met = dict.fromkeys(j for word in prefix for j in index[word][-_MOST:])
        for j in met:
            if len(key & keys[j]) >= LEAST * len(key | keys[j]):
                yield active[j], active[i]
        for word in prefix:
            index[word].append(i)


_LONGEST = 400  # words whose order is compared
_MOST = 200  # of entries that share a word, each is compared with the last so many


class _Read(NamedTuple):
    """A text's words; those of them that are no negations or numbers, in order and as a set; and these."""

    words: tuple[str, ...]
    core: tuple[str, ...]
    held: frozenset[str]
    turn: tuple[bool, tuple[str, ...]]  # whether it is denied, and the numbers


@lru_cache(maxsize=16384)
def _read(text: str) -> _Read:
    text = unicodedata.normalize("NFKC", text).casefold().replace("n't", " not").replace("’t", " not")
    found = re.findall(r"-?\d+(?:\.\d+)?(?![^\W_])|[^\W_]+|[^\w\s.,;:!?'\"()-]", text)
    words = tuple(_stem(word) for word in found if word not in _EMPTY)
    numbers = tuple(word for word in words if word.lstrip("-").replace(".", "", 1).isdecimal())
    core = tuple(word for word in words if word not in _NEGATIONS and word not in numbers)
    denied = sum(word in _NEGATIONS for word in words) % 2 == 1
    return _Read(words, core, frozenset(core), (denied, numbers))


def _near(a: _Read, b: _Read) -> bool:
    shared = len(a.held & b.held)
    if shared < LEAST * (len(a.held) + len(b.held) - shared):
        return False
    return SequenceMatcher(None, a.core[:_LONGEST], b.core[:_LONGEST], autojunk=False).ratio() >= LEAST


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".")


_EMPTY = frozenset(("the", "an", "a"))
_NEGATIONS = frozenset(("not", "no", "never", "cannot", "without", "avoid", "nor", "neither"))
