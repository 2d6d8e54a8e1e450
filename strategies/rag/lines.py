"""The grammar of IterDRAG: one line a call, begun by one of three prefixes.

Follow up: <sub-query>   Intermediate answer: <short answer>   So the final answer is: <answer>

START ──┬─► Follow up ──► Intermediate answer ──┐        after the last iteration only the
        │◄──────────────────────────────────────┘        final answer is left
        └─► So the final answer is   (the end)
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ...serving.constraints import Regex

Kind: TypeAlias = Literal["follow_up", "intermediate", "final"]

PREFIXES: dict[Kind, str] = {
    "follow_up": "Follow up:",
    "intermediate": "Intermediate answer:",
    "final": "So the final answer is:",
}

_READ: dict[Kind, re.Pattern[str]] = {
    "follow_up": re.compile(r"\W{0,4}follow[- ]?up(?: question)?\W{0,3}:(?P<rest>.*)", re.IGNORECASE),
    "intermediate": re.compile(r"\W{0,4}intermediate answer\W{0,3}:(?P<rest>.*)", re.IGNORECASE),
    "final": re.compile(r"\W{0,4}(?:so,? )?the final answer is\W{0,3}?:?(?P<rest>[\s*].*|$)", re.IGNORECASE),
}
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")


@dataclass(frozen=True, slots=True)
class Line:
    """A step of the reader."""

    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{PREFIXES[self.kind]} {self.text}".rstrip()


def read(text: str) -> Line | None:
    """The line that a text begins with; None where it begins with no prefix.

    >>> read("Follow up: Who wrote it?\\nIntermediate answer: Ibsen")
    Line(kind='follow_up', text='Who wrote it?')
    >>> read("It was Ibsen.") is None
    True
    """
    first = text.strip().partition("\n")[0]
    for kind, pattern in _READ.items():
        if found := pattern.match(first):
            return Line(kind, said(found["rest"]))
    return None


def said(text: str) -> str:
    """What stands behind a prefix, on one line, without stars.

    >>> said(" **Oslo**\\n")
    'Oslo'
    """
    return " ".join(text.strip().partition("\n")[0].split()).strip("*").strip()


def bare(kind: Kind, text: str) -> str:
    """What was said behind a prefix that stood in the prompt, and that the model may have repeated."""
    line = read(text)
    return line.text if line is not None and line.kind == kind else said(text)


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((said(line) for line in reversed(text.splitlines()) if line.strip()), "")


def rule(kinds: Collection[Kind], before: str) -> Regex:
    """Turns that go on from `before` by exactly one line of these kinds."""
    ways = "|".join(PREFIXES[kind] for kind in PREFIXES if kind in kinds)
    return Regex(rf"{_SPECIAL.sub(lambda found: chr(92) + found[0], before)}({ways}) [^\n]+\n?")


def canonical(query: str) -> str:
    """Equal for sub-queries that ask the same.

    >>> canonical("Who  wrote it?") == canonical("who wrote it")
    True
    """
    return " ".join(re.findall(r"\w+", query.casefold()))
