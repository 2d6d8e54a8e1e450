"""What a trace says of a run, told as changes: a page that is open takes in one after another, a page in a
file holds the single change from nothing to the end.

Fate of a node, the first that holds:

| fate          | when                                                                                     |
|---------------|------------------------------------------------------------------------------------------|
| `BEST`        | on the path to the chosen solution, or to the best so far                                |
| `PRUNED`      | the strategy gave it up: a `prune` note, no offspring at a resampling, or below such one |
| `SPECULATIVE` | drawn for nothing: unfinished, nothing drawn from it, and the search is over             |
| `OPEN`        | any other                                                                                |

A call is speculative if it drew samples as others did that became nodes, and none of its own did: its branch
lost a race or was cancelled, or its samples were thrown away.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path as File
from typing import Any

import orjson

from ...serving.errors import UsageError
from ...serving.flow import Usage
from ..ledger import Budget
from ..search_view import SearchView, Seen
from ..trace import Noted, RunEnded, no_event, numbered
from .calls import Calls
from .evidence import Populations, point

OPEN, BEST, PRUNED, SPECULATIVE = range(4)


@dataclass(slots=True)
class Drawn:
    """A node, with what the page needs besides the tree."""

    seen: Seen
    parent: int
    visit: int
    t: float
    logp: float | None
    call: int
    sample: int
    text: str  # from the root to here
    scored: float | None = None  # when


class Picture:
    """One run, row by row. Rows come in the order in which things happened."""

    def __init__(self) -> None:
        self.views: dict[int, SearchView] = {}
        self.nodes: list[Drawn] = []
        self.calls = Calls()
        self.resamplings: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []  # of other kinds
        self.stops: list[dict[str, Any]] = []
        self.visits: list[dict[str, Any]] = []
        self.run: dict[str, Any] = {}
        self.end: dict[str, Any] | None = None
        self.t = 0.0
        self._number: dict[Seen, int] = {}
        self._by_text: dict[int, dict[str, int]] = {}
        self._populations: dict[int, Populations] = {}
        self._nested = False  # paths begin with the number of a visit
        self._told = dict.fromkeys(("nodes", "calls", "texts", "resamplings", "notes", "stops"), 0)
        self._told_marks: list[tuple[Any, ...]] = []
        self._told_links: list[tuple[bool, ...]] = []
        self._told_rest: dict[str, bytes] = {}

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Take in a row of a trace. Raises what a row that is no event leads to."""
        kind, t = row["event"], float(row.get("t", 0.0))
        self.t = max(self.t, t + float(row.get("seconds", 0.0)))
        path = tuple(row["path"])
        visit = path[0] if self._nested and path else 0
        inner = path[1:] if self._nested else path
        if kind == "called":
            self.calls.add(row, visit, inner, self._texts(visit))
        elif kind == "noted":
            self._noted(Noted(inner, row["note"], row["data"], t), visit)
        elif kind == "run_started":
            self._started(row)
        elif kind == "run_ended":
            self._ended(row, t)
        elif kind == "exhausted":
            self.stops.append({"t": t, "reason": str(row["reason"]), "visit": visit})
        elif kind in ("node_started", "node_ended"):
            self._visited(row, kind, t)

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return self.end is not None

    def fates(self) -> list[int]:
        """The fate of each node: see the table above."""
        best = {node for view in self.views.values() if view.best for node in view.best.path()}
        over = self._over()
        fates: list[int] = []
        for node in self.nodes:
            seen = node.seen
            if seen in best:
                fate = BEST
            elif seen.pruned or (node.parent >= 0 and fates[node.parent] == PRUNED):
                fate = PRUNED
            elif node.visit in over and not (seen.terminal or seen.children):
                fate = SPECULATIVE
            else:
                fate = OPEN
            fates.append(fate)
        return fates

    def changes(self) -> dict[str, Any]:
        """What has changed since this was last asked for; empty if nothing has."""
        told: dict[str, Any] = {}
        rows: dict[str, list[Any]] = {
            "nodes": self.nodes,
            "calls": self.calls.rows,
            "texts": self.calls.texts,
        }
        rows |= {"resamplings": self.resamplings, "notes": self.notes, "stops": self.stops}
        for name, kept in rows.items():
            fresh = kept[self._told[name] :]
            self._told[name] = len(kept)
            if fresh:
                told[name] = [_line(node) for node in fresh] if name == "nodes" else fresh
        if marks := self._marks():
            told["marks"] = marks
        if links := self._links():
            told["links"] = links
        for name, value in (("run", self.run), ("visits", self.visits), ("end", self.end)):
            if value and self._told_rest.get(name) != (text := orjson.dumps(value, default=str)):
                self._told_rest[name] = text
                told[name] = value
        return {**told, "t": self.t} if told else {}

    # ------------------------------------------------------------ events

    def _noted(self, event: Noted, visit: int) -> None:
        flow, view = event.path[:-2], self.views.setdefault(visit, SearchView())
        known = len(view.nodes)
        view(event)
        if event.note == "nodes":
            for seen, row in zip(view.nodes[known:], event.data["nodes"], strict=True):
                self._drawn(seen, visit, event.t, row.get("logp"))
            self.calls.noted(visit, flow)
        elif event.note == "scores":
            found = [view.find(flow, int(name)) for name in event.data.get("scores", {})]
            numbers = [self._number[seen] for seen in found if seen is not None]
            for number in numbers:
                self.nodes[number].scored = event.t
            told = [(i, self.nodes[i].text, self.nodes[i].seen.terminal) for i in numbers]
            self.calls.scored(visit, flow, told)
        elif event.note == "resample":
            particles = [view.find(flow, name) for name in event.data["nodes"]]
            populations = self._populations.setdefault(visit, Populations())
            number = populations.number(particles, event.data["ancestors"])
            self.resamplings.append(point(event.data, event.t, visit, number))
        elif event.note != "prune":
            self.notes.append({"t": event.t, "kind": event.note, "visit": visit, "data": event.data})

    def _drawn(self, seen: Seen, visit: int, t: float, logp: float | None) -> None:
        number = len(self.nodes)
        parent = -1 if seen.parent is None else self._number[seen.parent]
        before = "" if parent < 0 else self.nodes[parent].text
        call, sample = self.calls.drew(visit, before, seen.text)
        text = before + seen.text
        self._number[seen] = self._texts(visit)[text] = number
        scored = None if seen.score is None else t
        self.nodes.append(Drawn(seen, parent, visit, t, logp, call, sample, text, scored))

    def _texts(self, visit: int) -> dict[str, int]:
        return self._by_text.setdefault(visit, {"": -1})

    def _started(self, row: Mapping[str, Any]) -> None:
        settings = row.get("settings") or {}
        self.run = {
            "name": row["run"],
            "question": row["question"],
            "seed": row["seed"],
            "settings": settings,
        }
        self.run["limits"] = _limits(settings.get("budget") or settings.get("recipe", {}).get("budget"))

    def _ended(self, row: Mapping[str, Any], t: float) -> None:
        self.end = {key: row[key] for key in ("answer", "complete", "usage", "diagnostics")} | {"t": t}
        if not self._nested:
            self._chosen(0, row["diagnostics"], t)

    def _chosen(self, visit: int, diagnostics: Mapping[str, Any], t: float) -> None:
        """The search of a visit has ended, and says which solution it chose."""
        if visit in self.views:
            self.views[visit](RunEnded(None, True, Usage(), t, diagnostics))

    def _visited(self, row: Mapping[str, Any], kind: str, t: float) -> None:
        self._nested = True
        number = row["path"][0]
        if kind == "node_started":
            self.visits.append({"visit": number, "node": row["node"], "step": row["step"], "t": t})
            return
        update = row.get("update") or {}
        self._chosen(number, update.get("diagnostics") or {}, t)
        for visit in self.visits:
            if visit["visit"] == number:
                visit |= {"end": t, "update": update}

    # ------------------------------------------------------------ changes

    def _over(self) -> set[int]:
        """The visits whose search is over."""
        if self.finished:
            return set(self.views)
        return {visit["visit"] for visit in self.visits if "end" in visit}

    def _marks(self) -> list[tuple[Any, ...]]:
        marks = []
        self._told_marks += [()] * (len(self.nodes) - len(self._told_marks))
        for i, (node, fate) in enumerate(zip(self.nodes, self.fates(), strict=True)):
            mark = (i, node.seen.score, fate, node.scored)
            if mark != self._told_marks[i]:
                self._told_marks[i] = mark
                marks.append(mark)
        return marks

    def _links(self) -> list[tuple[Any, ...]]:
        """Calls whose standing has changed: samples that became nodes, nodes scored, wasted or not."""
        links = []
        wasted = self._wasted()
        calls = self.calls.rows
        self._told_links += [()] * (len(calls) - len(self._told_links))
        for i, call in enumerate(calls):
            used = [bool(sample.get("used")) for sample in call.get("samples", ())]
            link = (*used, len(call["scores"]) > 0, i in wasted)
            if link != self._told_links[i]:
                self._told_links[i] = link
                links.append((i, used, call["scores"], i in wasted))
        return links

    def _wasted(self) -> set[int]:
        """The speculative calls, of searches that are over."""
        over = self._over()
        drew: dict[tuple[int, str], list[tuple[int, bool]]] = {}
        for i, call in enumerate(self.calls.rows):
            if "samples" in call and call["visit"] in over:
                used = any(sample.get("used") for sample in call["samples"])
                drew.setdefault((call["visit"], call["role"]), []).append((i, used))
        wasted = {
            i for calls in drew.values() if any(used for _, used in calls) for i, used in calls if not used
        }
        cancelled = {
            i for i, call in enumerate(self.calls.rows) if call.get("failed", {}).get("kind") == "cancelled"
        }
        return wasted | cancelled


def load(file: File) -> Picture:
    """The picture of a trace file. Raises UsageError with file and line for what is no event."""
    picture = Picture()
    rows = []
    number = 0
    try:
        for number, row in numbered(file):
            rows.append((_when(row), number, row))
        for _, line, row in sorted(rows, key=itemgetter(0)):
            number = line
            picture(row)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise no_event(file, number) from None
    return picture


def _when(row: Mapping[str, Any]) -> tuple[int, float]:
    """Where a row belongs among those of its file, which is sorted by path once the run has ended."""
    first_or_last = {"run_started": -1, "run_ended": 1}.get(row["event"], 0)
    return first_or_last, float(row.get("t", 0.0)) + float(row.get("seconds", 0.0))


def _line(node: Drawn) -> list[Any]:
    seen = node.seen
    return [
        node.parent,
        seen.depth,
        seen.text,
        node.logp,
        seen.terminal,
        node.t,
        node.call,
        node.sample,
        node.visit,
    ]


def _limits(budget: Any) -> dict[str, float]:
    """The limits that a run's settings tell of."""
    try:
        if isinstance(budget, str):
            return Budget.parse(budget).limits()
        known = Budget().__dataclass_fields__
        return Budget(**{key: value for key, value in (budget or {}).items() if key in known}).limits()
    except (UsageError, TypeError, AttributeError):
        return {}
