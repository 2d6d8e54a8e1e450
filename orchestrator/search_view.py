"""What a trace says about a search: the tree of partial solutions, its scores, and what was spent.

An observer that only remembers; `live.py` draws it while a run goes on, `trace show` afterwards.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

from ..serving import redact
from ..serving.flow import Failure, Usage
from .trace import (
    Called,
    Event,
    Exhausted,
    NodeEnded,
    NodeStarted,
    Noted,
    Path,
    RunEnded,
    RunStarted,
    no_event,
    numbered,
)

if TYPE_CHECKING:
    import networkx


@dataclass(slots=True, eq=False)
class Seen:
    """A partial solution as the trace tells of it."""

    id: int
    parent: "Seen | None"
    text: str  # of its last step
    depth: int
    terminal: bool
    number: int  # in order of appearance
    score: float | None = None
    pruned: bool = False
    children: "list[Seen]" = field(default_factory=list)

    def path(self) -> "list[Seen]":
        """From the first step to this one."""
        found: list[Seen] = []
        node: Seen | None = self
        while node is not None:
            found.append(node)
            node = node.parent
        return found[::-1]


class SearchView:
    """The state of a run, kept up to date event by event."""

    def __init__(self) -> None:
        self.started: RunStarted | None = None
        self.ended: RunEnded | None = None
        self.roots: list[Seen] = []
        self.nodes: list[Seen] = []  # in order of appearance
        self.usage = Usage()
        self.stopped = ""
        self.failures = 0
        self.t = 0.0
        self._flows: dict[Path, dict[int, Seen]] = {}
        self._top: Seen | None = None  # best by score
        self._chosen: Seen | None = None

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        self.t = max(self.t, event.t)
        if isinstance(event, Called):
            self.usage += event.usage
            self.t = max(self.t, event.t + event.seconds)
            self.failures += isinstance(event.reply, Failure)
        elif isinstance(event, Noted):
            self._note(event)
        elif isinstance(event, Exhausted):
            self.stopped = event.reason
        elif isinstance(event, RunStarted):
            self.started = event
        elif isinstance(event, RunEnded):
            self.ended = event
            self.usage = event.usage
            if path := event.diagnostics.get("path"):
                self._chosen = self.find((), path[-1])

    @property
    def finished(self) -> list[Seen]:
        """The finished solutions."""
        return [node for node in self.nodes if node.terminal]

    @property
    def best(self) -> Seen | None:
        """The chosen solution once the run has ended; until then the best so far, finished ones first."""
        return self._chosen or self._top

    # ------------------------------------------------------------ notes

    def _note(self, event: Noted) -> None:
        flow, data = event.path[:-2], event.data
        if event.note == "nodes":
            for row in data.get("nodes", ()):
                self._insert(flow, row)
        elif event.note == "scores":
            for name, score in data.get("scores", {}).items():
                node = self.find(flow, int(name))
                if node is not None:
                    self._score(node, score)
        elif event.note == "prune":
            self._prune(flow, data.get("nodes", ()))
        elif event.note == "resample":
            kept = {data["nodes"][ancestor] for ancestor in data["ancestors"]}
            self._prune(flow, set(data["nodes"]) - kept)

    def _score(self, node: Seen, score: float | None) -> None:
        """Keeps the best up to date; looks at all nodes only if the best one has become worse."""
        before, node.score = _rank(node), None if score is None else float(score)
        if node is self._top and (node.score is None or _rank(node) < before):
            self._top = max((n for n in self.nodes if n.score is not None), key=_rank, default=None)
        elif node.score is not None and (self._top is None or _rank(node) > _rank(self._top)):
            self._top = node

    def _prune(self, flow: Path, names: Iterable[int]) -> None:
        for name in names:
            node = self.find(flow, name)
            if node is not None:
                node.pruned = True

    def _insert(self, flow: Path, row: Mapping[str, Any]) -> None:
        parent = None if row.get("parent") is None else self.find(flow, row["parent"])
        depth, number = int(row["depth"]), len(self.nodes)
        node = Seen(row["id"], parent, str(row["text"]), depth, bool(row["terminal"]), number)
        self._flows.setdefault(flow, {})[node.id] = node
        (self.roots if parent is None else parent.children).append(node)
        self.nodes.append(node)
        self._score(node, row.get("score"))

    def find(self, flow: Path, name: int) -> Seen | None:
        """A node by its number: of this flow, else of those that forked it, else of any other branch.

        Branches of a fork may share one node store; searches of their own number their nodes anew."""
        for end in range(len(flow), -1, -1):
            if name in (known := self._flows.get(flow[:end], {})):
                return known[name]
        return next((known[name] for known in self._flows.values() if name in known), None)


def _rank(node: Seen) -> tuple[bool, float, int, int]:
    """Finished ones first, then by score, depth, and who came first."""
    return node.terminal, node.score or 0.0, node.depth, -node.number


def to_networkx(view: SearchView) -> "networkx.DiGraph[int]":
    """The tree as a directed graph with edges parent → child; nodes are numbered as they appeared."""
    import networkx

    graph: networkx.DiGraph[int] = networkx.DiGraph()
    best = set(view.best.path()) if view.best else set()
    for node in view.nodes:
        facts = {
            "text": redact.known(node.text),
            "depth": node.depth,
            "terminal": node.terminal,
            "pruned": node.pruned,
        }
        graph.add_node(node.number, **facts, score=node.score, best=node in best)
        if node.parent is not None:
            graph.add_edge(node.parent.number, node.number)
    return graph


def replay(rows: Iterable[Mapping[str, Any]]) -> SearchView:
    """The view a trace file leads to (`trace.read`)."""
    view = SearchView()
    for row in rows:
        event = event_of(row)
        if event is not None:
            view(event)
    return view


def load(file: File) -> SearchView:
    """The view a trace file leads to. Raises UsageError with file and line for what is no event."""
    view = SearchView()
    for number, row in numbered(file):
        try:
            if (event := event_of(row)) is not None:
                view(event)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise no_event(file, number) from None
    return view


_KINDS = {
    kind.kind: kind for kind in (RunStarted, NodeStarted, Called, Noted, Exhausted, NodeEnded, RunEnded)
}


def event_of(row: Mapping[str, Any]) -> Event | None:
    """A line of a trace as an event, requests and replies as plain data; None for a kind of a later version.
    Raises LookupError, TypeError or ValueError for what is no event."""
    kind = _KINDS.get(row["event"])
    if kind is None:
        return None  # of a later version
    values = {f.name: row[f.name] for f in fields(kind) if f.name in row}
    values["path"] = tuple(row["path"])
    for key, form in _FORMS.items():
        if key in values and not isinstance(values[key], form):
            raise TypeError(key)
    if "usage" in values:
        spent = {key: n for key, n in values["usage"].items() if key != "_"}
        sum(spent.values())  # are they numbers?
        values["usage"] = Usage(**spent)
    if kind is Called and isinstance(reply := values["reply"], dict) and reply.keys() == {"kind", "message"}:
        values["reply"] = Failure(**reply)
    event: Event = kind(**values)
    return event


_FORMS: Mapping[str, type | tuple[type, ...]] = {  # of what is shown
    **dict.fromkeys(("run", "question", "note", "reason"), str),
    **dict.fromkeys(("data", "usage", "diagnostics", "settings"), dict),
    **dict.fromkeys(("t", "seconds"), (int, float)),
}


def clean(text: str) -> str:
    """Model text on one line: no line breaks, no control or formatting characters, no secrets."""
    kept = (c if unicodedata.category(c)[0] != "C" else " " for c in redact.known(text))
    return " ".join("".join(kept).split())


def printable(text: str) -> str:
    """Model text as it is, line breaks and indentation included, without other control characters and
    secrets."""
    kept = (c if c in "\n\t" or unicodedata.category(c)[0] != "C" else " " for c in redact.known(text))
    return "".join(kept)
