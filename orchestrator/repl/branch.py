"""One run of a sitting: what it was asked and what has happened in it, event by event.

An observer that remembers. Events are kept as the lines a trace file holds, in order of arrival; the view
is what they add up to. Whoever reads or feeds it holds `lock`: events come from the run's thread.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import orjson

from ...serving import redact
from ..codec import dumps
from ..search_view import SearchView, event_of
from ..trace import Called, Event, NodeEnded, NodeStarted, RunStarted, row

State: TypeAlias = Literal["running", "pausing", "paused", "asking", "ended", "failed", "stopped"]
"""`pausing`: no new step begins, but some are still going on. `asking`: it waits for an answer. `stopped`: it
was cut off; the replies that had come are kept."""


@dataclass(eq=False)
class Branch:
    """`marks` holds the number of events after each step; `parent` the run this one was forked from."""

    name: str  # "A"
    run: str  # its name in the store
    record: Mapping[str, Any]  # its run.json
    parent: str = ""
    lines: list[bytes] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    view: SearchView = field(default_factory=SearchView)
    state: State = "running"
    why: str = ""  # what stopped it last
    tool: Mapping[str, Any] | None = None  # the last call of a tool
    visits: list[tuple[str, bool]] = field(default_factory=list)  # nodes of the graph, and whether left again
    lock: threading.RLock = field(default_factory=threading.RLock)
    _before: list[bytes] = field(default_factory=list)  # what was known before it began again

    def __call__(self, event: Event) -> None:
        """Take an event in, without secrets."""
        if isinstance(event, RunStarted):
            event = replace(event, settings=redact.settings(event.settings))
        self.take(redact.line(dumps(row(event))), event)

    def take(self, line: bytes, event: Event | None) -> None:
        """Take an event in as a line and as what it says, if that is known."""
        with self.lock:
            if isinstance(event, NodeStarted) and self._before:
                self._recall(event.path[0])
            self.lines.append(line)
            if event is None:
                return
            self.view(event)
            if isinstance(event, Called) and event.usage.tool_calls:
                self.tool = orjson.loads(line)
            elif isinstance(event, NodeStarted):
                self.visits.append((event.node, False))
            elif isinstance(event, NodeEnded):
                self.visits = [(node, over or node == event.node) for node, over in self.visits]

    def mark(self) -> None:
        """A step has ended."""
        with self.lock:
            self.marks.append(len(self.lines))

    def begin_again(self) -> None:
        """Forget what happened: it is about to happen again, all of it or from some visit of a node on."""
        with self.lock:
            self._before = list(self.lines)
            self._forget()

    def _recall(self, visit: int) -> None:
        """Take in again what is known of the visits before this one, which do not happen again."""
        before, self._before = self._before, []
        past = [(line, each) for line in before if (each := orjson.loads(line))["path"][:1] < [visit]]
        if visit:
            self._forget()
            for line, each in past:
                self.take(line, event_of(each))
                if each["event"] == "called":
                    self.mark()

    def _forget(self) -> None:
        self.lines.clear()
        self.marks.clear()
        self.visits.clear()
        self.view, self.tool = SearchView(), None

    @property
    def steps(self) -> int:
        """Steps so far."""
        return len(self.marks)

    @property
    def stands(self) -> bool:
        """Whether nothing happens in it for now."""
        return self.state not in ("running", "pausing")

    def rows(self, end: int | None = None) -> list[dict[str, Any]]:
        """The first `end` events by field."""
        with self.lock:
            lines = self.lines[:end]
        return [orjson.loads(line) for line in lines]

    def arrived_s(self, steps: int) -> float:
        """When the last reply of the first `steps` steps arrived, in seconds since the run began."""
        end = self.marks[steps - 1] if steps else 0
        calls = (event for event in self.rows(end) if event["event"] == "called")
        return max((call["t"] + call["seconds"] for call in calls), default=-1.0)

    def steps_at(self, event: int) -> int:
        """How many steps had ended when an event, by its place, had happened."""
        return sum(mark <= event for mark in self.marks)


def letters() -> Iterator[str]:
    """Names for runs: A … Z, A1 … Z1, A2 …"""
    n = 0
    while True:
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ":
            yield f"{letter}{n or ''}"
        n += 1


def strategy_of(record: Mapping[str, Any]) -> str:
    """What solves in a run, in a few words."""
    recipe = record.get("recipe", record)
    named = recipe.get("strategy")
    if isinstance(named, Mapping):
        return str(named.get("name", ""))
    if named is None:
        return f"{recipe.get('name', '')} ({len(recipe.get('nodes', ()))} nodes)"
    return str(named)
