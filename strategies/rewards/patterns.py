r"""Regular expressions from data, matched in time linear in the text.

`re` backtracks: on a pattern such as `(a+)+b`, which a task file may hold, it can run for years, and nothing
can stop it. Here a pattern is compiled to an automaton whose states are followed all at once, so a match
costs at most (characters × states). What an automaton cannot do is refused: backreferences, look-around,
possessive and conditional groups. The syntax is otherwise that of `re`: literals, `.`, classes, escapes,
`^ $ \A \Z \b \B`, groups, `|`, `* + ? {m,n}` (greedy or lazy: whether there is a match is the same), `(?i)`.

>>> search(r"(a+)+b", "a" * 1000), search(r"^\d{3}$", "123"), search("colou?r", "Colors", ignore_case=True)
(False, True, True)

Source: K. Thompson, "Regular expression search algorithm", CACM 11(6), 1968.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from ...serving.errors import UsageError

MAX_STATES = 4000  # of an automaton; counted repeats are written out
MAX_TEXT = 100_000  # characters looked at


def search(pattern: str, text: str, *, ignore_case: bool = False) -> bool:
    """Whether the pattern matches anywhere in the text. Raises UsageError for a pattern it cannot do."""
    automaton, text = compiled(pattern, ignore_case), text[:MAX_TEXT]
    if _flat(pattern):
        return re.search(pattern, text, _flags(ignore_case)) is not None
    return automaton.find(text) is not None


def count(pattern: str, text: str, *, ignore_case: bool = False) -> int:
    """Number of matches that do not overlap, from left to right, each as long as it can be."""
    automaton, text = compiled(pattern, ignore_case), text[:MAX_TEXT]
    if _flat(pattern):
        return sum(1 for _ in re.finditer(pattern, text, _flags(ignore_case)))
    n = at = 0
    while at <= len(text):
        end = automaton.longest(text, at)
        n += end is not None
        at = end if end is not None and end > at else at + 1
    return n


@lru_cache(maxsize=256)
def compiled(pattern: str, ignore_case: bool = False) -> "Automaton":
    """The automaton of a pattern. Raises UsageError with what is wrong or cannot be done."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"The pattern {pattern!r} is not a regular expression: {error}.") from None
    return _Reader(pattern, _flags(ignore_case)).automaton()


def _flat(pattern: str) -> bool:
    """Whether a pattern has neither repeats nor alternatives, so that `re` cannot backtrack either."""
    return not re.search(r"[*+?{|]", pattern)


def _flags(ignore_case: bool) -> re.RegexFlag:
    return re.IGNORECASE if ignore_case else re.NOFLAG


Test = Callable[[str], bool]


@dataclass(eq=False)
class Automaton:
    """States 0 … n−1. `moves[s]` are (test of a character, next state); `jumps[s]` cost no character and hold
    a condition on the place, None for always."""

    moves: list[list[tuple[Test, int]]] = field(default_factory=list)
    jumps: list[list[tuple[Callable[[str, int], bool] | None, int]]] = field(default_factory=list)
    start: int = 0
    end: int = 0

    def state(self) -> int:
        """A new state."""
        if len(self.moves) >= MAX_STATES:
            raise UsageError(f"A pattern's repeats make more than {MAX_STATES} states. Write smaller counts.")
        self.moves.append([])
        self.jumps.append([])
        return len(self.moves) - 1

    def find(self, text: str) -> int | None:
        """Where the first match to end ends."""
        here: set[int] = set()
        for i in range(len(text) + 1):
            here = self._closure({*here, self.start}, text, i)
            if self.end in here:
                return i
            here = self._step(here, text, i)
        return None

    def longest(self, text: str, at: int) -> int | None:
        """Where the longest match that begins at `at` ends."""
        found, here = None, {self.start}
        for i in range(at, len(text) + 1):
            here = self._closure(here, text, i)
            if self.end in here:
                found = i
            here = self._step(here, text, i)
            if not here:
                break
        return found

    def _step(self, here: set[int], text: str, i: int) -> set[int]:
        if i == len(text):
            return set()
        return {after for state in here for test, after in self.moves[state] if test(text[i])}

    def _closure(self, here: set[int], text: str, i: int) -> set[int]:
        pending = list(here)
        while pending:
            for holds, after in self.jumps[pending.pop()]:
                if after not in here and (holds is None or holds(text, i)):
                    here.add(after)
                    pending.append(after)
        return here


_WORD = re.compile(r"\w")
_REPEAT = re.compile(r"\*|\+|\?|\{(\d*),?(\d*)\}")
_ATOM = re.compile(
    r"\[\^?\]?(?:\\.|[^\]\\])*\]|\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[0-7]{3}|\D)|[^\\]", re.DOTALL
)
_FLAGS = re.compile(r"\(\?([aimsu]+)\)")
_PLACES: dict[str, Callable[[str, int], bool]] = {
    "^": lambda text, i: i == 0,
    "\\A": lambda text, i: i == 0,
    "\\Z": lambda text, i: i == len(text),
    "$": lambda text, i: i == len(text) or (i == len(text) - 1 and text[i] == "\n"),
    "\\b": lambda text, i: _edge(text, i),
    "\\B": lambda text, i: not _edge(text, i),
}
_LINES: dict[str, Callable[[str, int], bool]] = {
    "^": lambda text, i: i == 0 or text[i - 1] == "\n",
    "$": lambda text, i: i == len(text) or text[i] == "\n",
}


def _edge(text: str, i: int) -> bool:
    before = i > 0 and _WORD.match(text[i - 1]) is not None
    after = i < len(text) and _WORD.match(text[i]) is not None
    return before != after


class _Reader:
    """Reads a pattern that `re` accepts. A part is built between two states."""

    def __init__(self, pattern: str, flags: re.RegexFlag) -> None:
        self._pattern = pattern
        self._at = 0
        self._made = Automaton()
        self._tests: dict[str, Test] = {}
        if found := _FLAGS.match(pattern):
            self._at = found.end()
            for letter in found[1]:
                flags |= re.RegexFlag[letter.upper()]
        self._flags = flags
        self._places = _PLACES | (_LINES if flags & re.MULTILINE else {})

    def automaton(self) -> Automaton:
        """All of it."""
        made = self._made
        made.start, made.end = self._alternatives()
        if self._at < len(self._pattern):
            raise self._cannot("this")
        return made

    def _alternatives(self) -> tuple[int, int]:
        start, end = self._made.state(), self._made.state()
        while True:
            first, last = self._sequence()
            self._jump(start, first)
            self._jump(last, end)
            if not self._take("|"):
                return start, end

    def _sequence(self) -> tuple[int, int]:
        first = last = self._made.state()
        while self._at < len(self._pattern) and self._pattern[self._at] not in "|)":
            begun = self._at
            part = self._part()
            repeat = _REPEAT.match(self._pattern, self._at)
            if repeat and repeat[0] not in ("{}", "{,}"):
                part = self._repeated(begun, part, repeat)
            self._jump(last, part[0])
            last = part[1]
        return first, last

    def _repeated(self, begun: int, part: tuple[int, int], repeat: re.Match[str]) -> tuple[int, int]:
        """The part `least` times, then up to `most` times; each time read anew from the pattern."""
        after = repeat.end()
        least, most = _bounds(repeat)
        if self._pattern[after : after + 1] == "+":
            raise self._cannot(
                "possessive repeats such as `a++`, or a `+` after a repeat (write `\\+` for a plus)"
            )
        after += self._pattern[after : after + 1] == "?"
        first = last = self._made.state()
        for k in range(max(least, 1 if most is None else most)):
            if k:
                self._at = begun
                part = self._part()
            self._jump(last, part[0])
            if k >= least:
                self._jump(last, part[1])
            last = part[1]
        if most is None:
            self._jump(part[1], part[0])
            if least == 0:
                self._jump(first, last)
        elif most == 0:
            last = first
        self._at = after
        return first, last

    def _part(self) -> tuple[int, int]:
        """One group, place or character."""
        if self._take("("):
            if self._take("?:") or not self._pattern.startswith("?", self._at):
                part = self._alternatives()
                assert self._take(")")
                return part
            raise self._cannot("look-around, named or special groups; plain ( ) and (?: ) are read")
        found = _ATOM.match(self._pattern, self._at)
        if found is None:
            raise self._cannot("backreferences")
        atom = found[0]
        self._at = found.end()
        start, end = self._made.state(), self._made.state()
        if atom in self._places:
            self._made.jumps[start].append((self._places[atom], end))
        else:
            self._made.moves[start].append((self._test(atom), end))
        return start, end

    def _test(self, atom: str) -> Test:
        if atom not in self._tests:
            one = re.compile(atom, self._flags & ~re.MULTILINE)
            self._tests[atom] = lru_cache(maxsize=512)(lambda c: one.fullmatch(c) is not None)
        return self._tests[atom]

    def _jump(self, before: int, after: int) -> None:
        self._made.jumps[before].append((None, after))

    def _take(self, mark: str) -> bool:
        found = self._pattern.startswith(mark, self._at)
        self._at += len(mark) * found
        return found

    def _cannot(self, what: str) -> UsageError:
        return UsageError(
            f"The pattern {self._pattern!r} has something that cannot be matched in bounded time, at "
            f"{self._pattern[self._at :][:20]!r}: {what}."
        )


def _bounds(repeat: re.Match[str]) -> tuple[int, int | None]:
    if repeat[0] in "*+?":
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[repeat[0]]
    least = int(repeat[1] or 0)
    if "," not in repeat[0]:
        return least, least
    return least, int(repeat[2]) if repeat[2] else None
