"""Orderings of a few objects, and what uncertain clues say about them.

    p_k(π) = Σ_s w_ks (1 − ε if g_ks(π) else ε)      clue k, read in several ways g_ks
    post(π) ∝ Π_k p_k(π),   A_a = Σ_π post(π) a(π)    answer a, a statement like the clues

All n! arrangements are enumerated. A statement is written

    left_of(a, b)   adjacent(a, b)   pos(a) = 2   pos_from_end(a) = 1   not(…)   and(…, …)

where left is low on whatever is asked about: older, cheaper, finished earlier. No two objects share a place.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from string import ascii_uppercase
from typing import NamedTuple, TypeAlias

from ...serving.errors import UsageError
from .table import IMPOSSIBLE, log_sum_exp

EPSILON = 0.05  # how often a clue that is read rightly is wrong all the same
MAX_OBJECTS = 8  # 40,320 arrangements
UNCERTAIN = 0.95  # of ln n!: a posterior as flat as this says nothing

Arrangement: TypeAlias = Sequence[int]
"""The place of each object, from 0."""


@dataclass(frozen=True)
class Statement:
    """`kind` is one of the words above; `args` are objects by number, or statements; `at` is a place."""

    kind: str
    args: tuple["int | Statement", ...]
    at: int = 0

    def holds(self, places: Arrangement) -> bool:
        """Whether it is true of an arrangement."""
        if self.kind in ("not", "and"):
            parts = [part.holds(places) for part in self.args if isinstance(part, Statement)]
            return all(parts) if self.kind == "and" else not parts[0]
        at = [places[i] for i in self.args if isinstance(i, int)]
        if self.kind == "left_of":
            return at[0] < at[1]
        if self.kind == "adjacent":
            return abs(at[0] - at[1]) == 1
        return at[0] == (self.at - 1 if self.kind == "pos" else len(places) - self.at)

    def of(self, objects: Sequence[int]) -> "Statement":
        """The same of other objects: of `objects[i]` for the i-th."""
        args = tuple(objects[a] if isinstance(a, int) else a.of(objects) for a in self.args)
        return Statement(self.kind, args, self.at)

    @property
    def mark(self) -> str:
        """A simple statement of A, or of A and B, in short: `<` (A is left of B), `>`, `2`, `-1`."""
        if self.kind == "left_of":
            return "<" if self.args == (0, 1) else ">"
        return f"{'-' if self.kind == 'pos_from_end' else ''}{self.at}"

    def text(self, objects: Sequence[str]) -> str:
        """As it is written."""
        parts = [objects[a] if isinstance(a, int) else a.text(objects) for a in self.args]
        return f"{self.kind}({', '.join(parts)})" + (f" = {self.at}" if self.at else "")


_WORD = re.compile(r"\s*(not|and|left_of|adjacent|pos_from_end|pos)\s*\(")
_PLACE = re.compile(r"\s*\)\s*=\s*(\d{1,2})")
_MAX_DEPTH = 8


def parse(text: str, objects: Sequence[str]) -> Statement | None:
    """The statement that a text is, case aside; None where it is none, or speaks of other objects.

    >>> parse("left_of(Red book, blue book)", ["red book", "blue book"])
    Statement(kind='left_of', args=(0, 1), at=0)
    >>> parse("pos(green book) = 1", ["red book", "blue book"])
    """
    found = _parsed(text, 0, {name.casefold(): i for i, name in enumerate(objects)}, 0)
    if found is None or text[found[1] :].strip(" ."):
        return None
    return found[0]


def _parsed(text: str, at: int, known: Mapping[str, int], depth: int) -> tuple[Statement, int] | None:
    begins = _WORD.match(text, at)
    if begins is None or depth > _MAX_DEPTH:
        return None
    kind, at = begins[1], begins.end()
    if kind in ("not", "and"):
        parts: list[int | Statement] = []
        while (part := _parsed(text, at, known, depth + 1)) is not None:
            parts.append(part[0])
            at = part[1]
            if not (comma := re.compile(r"\s*,").match(text, at)):
                break
            at = comma.end()
        ends = re.compile(r"\s*\)").match(text, at)
        if ends is None or len(parts) != 1 + (kind == "and"):
            return None
        return Statement(kind, tuple(parts)), ends.end()
    close = text.find(")", at)
    names = [name.strip().casefold() for name in text[at:close].split(",")] if close >= 0 else []
    if not names or any(name not in known for name in names):
        return None
    args = tuple(known[name] for name in names)
    if kind in ("left_of", "adjacent"):
        return (Statement(kind, args), close + 1) if len(set(args)) == len(args) == 2 else None
    place = _PLACE.match(text, close)
    if place is None or len(args) != 1 or int(place[1]) < 1:
        return None
    return Statement(kind, args, int(place[1])), place.end()


def readings(named: int, n: int) -> list[Statement]:
    """The simple statements about `n` objects that a sentence may make: of two that it names, one is left of
    the other; one is in some place. None where it names more, or none."""
    if named == 2:
        return [Statement("left_of", (0, 1)), Statement("left_of", (1, 0))]
    if named != 1:
        return []
    ends = [Statement("pos_from_end", (0,), k) for k in range(1, n // 2 + 1)]
    return [Statement("pos", (0,), k) for k in range(1, n - n // 2 + 1)] + ends


def mentioned(text: str, objects: Sequence[str]) -> list[int]:
    """The objects that a sentence names, in the order in which it does."""
    found = ((_name(name).search(text), i) for i, name in enumerate(objects))
    return [i for _, i in sorted((match.start(), i) for match, i in found if match)]


def lettered(text: str, objects: Sequence[str]) -> str:
    """The sentence with A, B, … for the objects that it names, in that order.

    >>> lettered("The red book is to the left of the blue book.", ["blue book", "red book"])
    'The A is to the left of the B.'
    """
    for letter, i in zip(LETTERS, mentioned(text, objects), strict=False):
        text = _name(objects[i]).sub(letter, text)
    return text


LETTERS = ascii_uppercase


def _name(name: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(name)}(?:s|es)?\b", re.IGNORECASE)


# ---------------------------------------------------------------- inference


Reading: TypeAlias = Mapping[Statement, float]
"""The ways in which a sentence may be read, with weights that sum to 1."""


class Deduction(NamedTuple):
    """ln A_a of each answer; the share of clues that could be read; how flat the posterior is, in [0, 1]."""

    log_answers: list[float]
    confidence: float
    flatness: float

    @property
    def abstains(self) -> bool:
        """Whether the clues say too little."""
        return self.flatness > UNCERTAIN or not any(map(math.isfinite, self.log_answers))


def deduce(
    n: int, clues: Sequence[Reading], answers: Sequence[Reading], epsilon: float = EPSILON
) -> Deduction:
    """What the clues say about the answers. A clue without a reading is left out and lowers the confidence;
    an answer without one is impossible. Raises UsageError for more than eight objects."""
    read = [clue for clue in clues if clue]
    log_post = posterior(n, read, epsilon)
    known = dict(zip(_all(n), log_post, strict=True))
    log_answers = []
    for answer in answers:
        parts = (
            w * math.exp(log)
            for statement, w in answer.items()
            for places, log in known.items()
            if statement.holds(places)
        )
        total = math.fsum(parts)
        log_answers.append(math.log(total) if total > 0 else IMPOSSIBLE)
    flatness = -math.fsum(math.exp(log) * log for log in log_post) / max(1e-9, math.lgamma(n + 1))
    return Deduction(log_answers, len(read) / max(1, len(clues)), flatness)


def posterior(n: int, clues: Iterable[Reading], epsilon: float = EPSILON) -> list[float]:
    """ln post(π) of every arrangement, in the order of `itertools.permutations`."""
    logs = [0.0] * math.factorial(n) if 1 <= n <= MAX_OBJECTS else []
    if not logs:
        raise UsageError(f"Arrangements of {n} objects cannot be enumerated. Give 1 to {MAX_OBJECTS}.")
    for clue in clues:
        truth = [(w, [statement.holds(places) for places in _all(n)]) for statement, w in clue.items()]
        for at in range(len(logs)):
            logs[at] += math.log(math.fsum(w * (1 - epsilon if holds[at] else epsilon) for w, holds in truth))
    total = log_sum_exp(logs)
    return [log - total for log in logs]


@lru_cache(maxsize=MAX_OBJECTS)
def _all(n: int) -> tuple[tuple[int, ...], ...]:
    return tuple(permutations(range(n)))
