"""What a model's answer holds: a YAML list, wherever it stands in the text, and the names it means."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from .concept import line
from .exchange import parse


def listed(text: str) -> list[Any] | None:
    """The last fenced list that can be read, else the whole text if it is one; None if there is none."""
    if len(text) > _LONGEST:
        return None
    for block in (*reversed(_FENCED.findall(text)), text):
        try:
            found = parse(block)
        except ValueError:
            continue
        if isinstance(found, list):
            return found
    return None


def block(text: str, tag: str) -> str:
    """What stands between `<tag>` and `</tag>`; empty unless there is exactly one such block.

    >>> block("<summary>keep the red</summary>", "summary"), block("<a>1</a><a>2</a>", "a")
    ('keep the red', '')
    """
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return str(found[0]).strip() if len(found) == 1 else ""


@dataclass(frozen=True)
class Named:
    """The names that an answer means, in its order, those that it nearly spelled, and those that are none."""

    names: tuple[str, ...]
    near: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def named(items: Iterable[object], known: Collection[str]) -> Named:
    """The known names in a list: exact, else in another case, else the closest with similarity of at least
    0.9. A name with a colon in it, which YAML reads as a mapping, is put together again in its order."""
    names: dict[str, None] = {}
    near, unknown = [], []
    for item in items:
        spellings = _spellings(item)
        found = next((spelling for spelling in spellings if spelling in known), None)
        if found is None and spellings:
            found = _closest(spellings[0], known)
            if found is None:
                unknown.append(spellings[0][:120])
            else:
                near.append(spellings[0])
        if found is not None:
            names[found] = None
    return Named(tuple(names), tuple(near), tuple(unknown))


def _spellings(item: object) -> list[str]:
    """What a list's item may mean, best first."""
    if not isinstance(item, dict):
        return [text] if (text := line(item)) else []
    if own := line(item.get("concept") or item.get("name")):
        return [own]
    if len(item) != 1:
        return []
    [(key, value)] = item.items()
    head, tail = line(key), line(value)
    return [f"{head}: {tail}", head] if tail else [head, f"{head}:"]


def _closest(text: str, known: Iterable[str]) -> str | None:
    best, name = _NEAR, None
    for candidate in sorted(known):
        match = SequenceMatcher(None, text.casefold(), candidate.casefold())
        if min(match.real_quick_ratio(), match.quick_ratio()) < best:
            continue  # cheap upper bounds of the ratio
        if (ratio := match.ratio()) >= best and (name is None or ratio > best):
            best, name = ratio, candidate
    return name


_NEAR = 0.9
_LONGEST = 200_000
_FENCED = re.compile(r"```[ \t]*(?:ya?ml)?[ \t]*\n(.*?)(?:\n```|```|\Z)", re.DOTALL | re.IGNORECASE)
