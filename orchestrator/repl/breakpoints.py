"""Breakpoints: what an event must be for a run to stop after it.

score >= 0.8    depth > 3    tokens > 2000    calls >= 20    steps >= 10    seconds > 30
finished        failure      tool             resample       verify (a node of the recipe's graph)
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ...serving.errors import UsageError
from ...serving.flow import Failure
from ..search_view import SearchView
from ..trace import Called, Event, Noted

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
QUANTITIES = ("score", "depth", "tokens", "calls", "steps", "seconds")
_CALLS = {
    "generate": "Generate",
    "logprob": "LogProb",
    "hidden": "Hidden",
    "rate": "Rate",
    "tool": "CallTool",
    "recall": "Recall",
    "remember": "Remember",
    "ask": "Ask",
}
_NOTES = ("commit", "feedback", "nodes", "outcomes", "prune", "resample", "route", "scores", "swap", "vote")
_OTHERS = ("exhausted", "failure", "finished", "node")
EVENTS = (*_OTHERS, *_CALLS, *_NOTES)
"""Kinds of events one can stop at; a name of a node of the recipe's graph is one more."""


@dataclass(frozen=True)
class Breakpoint:
    """A condition as it was typed, and as a test. One that `lasts` stays true once it is: it stops a run
    only where it becomes so."""

    text: str
    holds: Callable[[Event, SearchView, int], bool]
    lasts: bool = False


def breakpoint_on(text: str, nodes: tuple[str, ...] = ()) -> Breakpoint:
    """Read a condition; `nodes` are the names of the recipe's graph. Raises UsageError if it is none."""
    found = re.fullmatch(r"([a-z]+)\s*(>=|<=|==|>|<|=)\s*(\S+)", text.strip())
    if found is None:
        return _on_event(text.strip(), nodes)
    quantity, sign, number = found[1], found[2].replace("==", "="), found[3]
    if quantity not in QUANTITIES:
        raise _unknown(quantity, QUANTITIES)
    try:
        limit = float(number)
    except ValueError:
        raise UsageError(f"break on {text}: {number!r} is no number. Write e.g. score >= 0.8.") from None
    compare = _COMPARE[sign]
    told = f"{quantity} {sign} {number}"
    if quantity in ("score", "depth"):
        return Breakpoint(told, lambda event, view, _: _of_nodes(event, view, quantity, compare, limit))
    return Breakpoint(told, lambda _, view, steps: compare(_amount(quantity, view, steps), limit), True)


def _on_event(kind: str, nodes: tuple[str, ...]) -> Breakpoint:
    if kind in nodes:
        return Breakpoint(kind, lambda event, _view, _: _starts(event, kind))
    if kind == "finished":
        return Breakpoint(kind, lambda event, _view, _: _any(event, "nodes", lambda row: row["terminal"]))
    if kind == "failure":
        return Breakpoint(kind, lambda event, _view, _: _failed(event))
    if kind == "exhausted":
        return Breakpoint(kind, lambda event, _view, _: event.kind == "exhausted")
    if kind == "node":
        return Breakpoint(kind, lambda event, _view, _: event.kind == "node_started")
    if kind in _CALLS:
        return Breakpoint(kind, lambda event, _view, _: _call(event) == _CALLS[kind])
    if kind in _NOTES:
        return Breakpoint(kind, lambda event, _view, _: isinstance(event, Noted) and event.note == kind)
    raise _unknown(kind, (*QUANTITIES, *EVENTS, *nodes))


def _unknown(name: str, known: tuple[str, ...]) -> UsageError:
    near = get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UsageError(
        f"Nothing to stop at is named {name!r}.{hint} Write a comparison such as score >= 0.8, or one of: "
        f"{', '.join(known)}."
    )


def _of_nodes(
    event: Event, view: SearchView, quantity: str, compare: Callable[[float, float], bool], limit: float
) -> bool:
    """Whether one of the nodes an event is about compares so."""
    if quantity == "depth":
        return _any(event, "nodes", lambda row: compare(row["depth"], limit))
    if not isinstance(event, Noted) or event.note != "scores":
        return False
    scores = event.data.get("scores", {}).values()
    return any(score is not None and compare(score, limit) for score in scores)


def _amount(quantity: str, view: SearchView, steps: int) -> float:
    if quantity == "tokens":
        return view.usage.tokens
    return {"calls": view.usage.calls, "steps": steps, "seconds": view.t}[quantity]


def _any(event: Event, note: str, test: Callable[[Mapping[str, Any]], bool]) -> bool:
    return isinstance(event, Noted) and event.note == note and any(map(test, event.data.get(note, ())))


def _failed(event: Event) -> bool:
    return isinstance(event, Called) and isinstance(event.reply, Failure)


def _call(event: Event) -> str:
    return type(event.request).__name__ if isinstance(event, Called) else ""


def _starts(event: Event, node: str) -> bool:
    return event.kind == "node_started" and getattr(event, "node", "") == node
