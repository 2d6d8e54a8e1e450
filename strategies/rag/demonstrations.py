"""Demonstrations: questions that were answered, with the documents and the lines that led there.

A file of them is JSON lines: `{"question": …, "answer": …, "steps": [[sub-query, answer], …], "documents":
[{"id": …, "title": …, "text": …}, …]}`, of which question and answer must be there. Documents stand best
first; without them a reader searches for the question.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from ...serving.errors import UnknownName, UsageError
from ...tools.retrieval import Index
from .lines import Line, canonical

SHAPE = '{"question": "…", "answer": "…", "steps": [["sub-query", "answer"]]}'


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One of them."""

    question: str
    answer: str
    steps: tuple[tuple[str, str], ...] = ()
    documents: tuple[Mapping[str, Any], ...] = ()

    def lines(self) -> list[str]:
        """Its steps and its answer in IterDRAG's grammar."""
        pairs = [(Line("follow_up", query), Line("intermediate", answer)) for query, answer in self.steps]
        return [str(line) for pair in pairs for line in pair] + [str(Line("final", self.answer))]

    def row(self) -> dict[str, Any]:
        """As a line of a file."""
        return {
            "question": self.question,
            "answer": self.answer,
            "steps": [list(step) for step in self.steps],
            "documents": [dict(each) for each in self.documents],
        }


def load(written: str | Sequence[Any]) -> tuple[Demonstration, ...]:
    """Demonstrations from a file, or from rows. Raises UsageError with the place of what is none."""
    if not isinstance(written, str):
        return tuple(_read(row, f"demos[{i}]") for i, row in enumerate(written))
    try:
        text = Path(written).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"Cannot read the demonstrations {written}: {why}.") from None
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{written}:{number}: not JSON: {error}.") from None
        rows.append(_read(row, f"{written}:{number}"))
    return tuple(rows)


_KEYS = ("question", "answer", "steps", "documents")


def _read(row: Any, where: str) -> Demonstration:
    texts = isinstance(row, Mapping) and all(isinstance(row.get(key), str) for key in ("question", "answer"))
    steps = row.get("steps", ()) if texts else ()
    pairs = isinstance(steps, (list, tuple)) and all(
        isinstance(step, (list, tuple)) and len(step) == 2 and all(isinstance(part, str) for part in step)
        for step in steps
    )
    documents = row.get("documents", ()) if texts else ()
    told = isinstance(documents, (list, tuple)) and all(
        isinstance(each, Mapping) and isinstance(each.get("text"), str) for each in documents
    )
    if not (texts and pairs and told):
        raise UsageError(f"{where}: a demonstration is {SHAPE}, got {row!r:.200}.")
    for key in row:
        if key not in _KEYS:
            raise UnknownName("key of a demonstration", str(key), _KEYS)
    return Demonstration(
        row["question"],
        row["answer"],
        tuple((query, answer) for query, answer in steps),
        tuple(documents),
    )


def chosen(of: Sequence[Demonstration], m: int, question: str, seed: int | None) -> list[Demonstration]:
    """`m` demonstrations, the same for every question by `seed`, or without one the nearest by words, the
    nearest last. Never one of the very question."""
    others = [each for each in of if canonical(each.question) != canonical(question)]
    if seed is not None:
        shuffled = list(of)
        Random(seed).shuffle(shuffled)
        return [each for each in shuffled if each in others][:m]
    nearest = Index([each.question for each in others]).nearest(question, len(others))
    order = [i for i, _ in nearest] + sorted(set(range(len(others))) - {i for i, _ in nearest})
    return [others[i] for i in reversed(order[:m])]
