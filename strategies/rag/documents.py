"""Documents as a reader sees them: one line each, cut on the right, the best next to the question.

A document has no line of its own making, and no mark of a call or a turn: what it says cannot pass for a step
of the reader.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...serving.flow import Failure, ToolResult
from ...serving.tool_calls import inert


@dataclass(frozen=True, slots=True)
class Document:
    """What a search found. `rank` is 1 for the best of its search."""

    id: str
    title: str
    text: str
    rank: int = 1

    def line(self) -> str:
        """The document on one line."""
        return f"[{self.title}] {self.text}" if self.title else self.text


def cut(text: str, most: int) -> str:
    """The first `most` words of a text, on one line.

    >>> cut("Oslo is\\nthe capital", 3)
    'Oslo is the'
    """
    return " ".join(text.split()[:most])


def found(result: ToolResult | Failure, k: int, most: int) -> list[Document] | None:
    """The documents of a search, best first, at most `k` of at most `most` words; None if it failed.

    A row of a search's value is a mapping with `text`, and `id` and `title` or `source` where known.
    """
    if isinstance(result, Failure) or not result.ok:
        return None
    rows = result.value if isinstance(result.value, list) else [result.text] if result.text else []
    return documents(rows, k, most)


def documents(rows: Iterable[Any], k: int, most: int) -> list[Document]:
    """Documents from rows of data, those that are none left out."""
    made: list[Document] = []
    for row in rows:
        if isinstance(row, str):
            row = {"text": row}
        if len(made) == k or not isinstance(row, dict) or not isinstance(row.get("text"), str):
            continue
        title = inert(cut(str(row.get("title") or row.get("source") or ""), 64))
        text = inert(cut(row["text"], most))
        id = row.get("id")
        known = f"{title}\n{text}" if id is None or id == "" else str(id)
        made.append(Document(known, title, text, len(made) + 1))
    return made


def merged(groups: Sequence[Sequence[Document]]) -> list[list[Document]]:
    """Each group without what an earlier one has."""
    seen: set[str] = set()
    new: list[list[Document]] = []
    for group in groups:
        fresh = [each for each in group if each.id not in seen]
        seen |= {each.id for each in fresh}
        new.append(fresh)
    return new


def ordered(group: Sequence[Document], *, reverse: bool) -> list[Document]:
    """Reverse rank order puts the best last, next to what follows."""
    return sorted(group, key=lambda each: each.rank, reverse=reverse)
