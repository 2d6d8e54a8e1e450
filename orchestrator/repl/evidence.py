"""Where a node of the tree comes from: the call that drew it, and those that scored it.

The trace tells of calls and of nodes. What connects them is the text: a node was drawn by the last call
before it whose prompt goes on from its parent and whose completion is its step.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..search_view import Seen

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Origin:
    """What a trace tells of one node. `event` is the place of the event that named it."""

    event: int
    call: Row | None  # a `Generate`
    completion: Row | None  # of its samples, the one that became the node
    scored_by: tuple[Row, ...]  # calls that looked at the node's text before it had a score


def origin(rows: Sequence[Row], node: Seen) -> Origin | None:
    """Where a node comes from, by its number in order of appearance; None if the trace does not hold it."""
    seen = 0
    for event, row in enumerate(rows):
        if row["event"] != "noted" or row["note"] != "nodes":
            continue
        named = row["data"].get("nodes", ())
        if seen + len(named) > node.number:
            twins = _twins_before(node, seen)
            call, completion = _drawn(rows[:event], row["path"], node, twins)
            return Origin(event, call, completion, tuple(_scoring(rows[event + 1 :], row["path"], node)))
        seen += len(named)
    return None


def _twins_before(node: Seen, first: int) -> int:
    """Siblings of the same text told of in the same event before this one: each is a sample of its own."""
    siblings = node.parent.children if node.parent is not None else ()
    return sum(first <= twin.number < node.number and twin.text == node.text for twin in siblings)


def text_of(node: Seen) -> str:
    """The whole partial solution."""
    return "".join(each.text for each in node.path())


def _drawn(
    before: Sequence[Row], path: Sequence[int], node: Seen, twins: int
) -> tuple[Row | None, Row | None]:
    whole = text_of(node)
    for row in reversed(before):
        if row["event"] != "called" or row["call"] != "Generate" or not isinstance(row["reply"], list):
            continue
        if row["path"][: len(path) - 2] != list(path[:-2]):
            continue  # of another branch
        prefix = row["request"]["prompt"]["prefix"]
        fits = [done for done in row["reply"] if _ends(prefix + done["text"], whole, node.text, done["stop"])]
        if fits:
            return row, fits[min(twins, len(fits) - 1)]
    return None, None


def _ends(written: str, whole: str, step: str, stop: str) -> bool:
    """Whether a text ends with a solution; a stop mark behind it is not part of the solution."""
    if stop and not step.endswith(stop):
        written = written.removesuffix(stop)
    return written.endswith(whole)


def _scoring(after: Sequence[Row], path: Sequence[int], node: Seen) -> Iterator[Row]:
    """Calls between the event that named the node and the one that gave its score."""
    whole = text_of(node)
    for row in after:
        if list(row["path"][: len(path) - 2]) != list(path[:-2]):
            continue
        if row["event"] == "noted" and row["note"] == "scores" and str(node.id) in row["data"]["scores"]:
            return
        if row["event"] == "called" and row["call"] != "Generate" and _mentions(row["request"], whole):
            yield row


def _mentions(request: Mapping[str, Any], text: str) -> bool:
    """Whether a request is about the text: in what the model goes on from, its last message, or arguments."""
    said: Any = request.get("arguments", "")
    if "prompt" in request:
        prompt = request["prompt"]
        said = prompt["prefix"] or (prompt["messages"][-1]["content"] if prompt["messages"] else "")
    return bool(text.strip()) and text.strip() in str(said)
