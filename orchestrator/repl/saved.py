"""A sitting in one file: what was typed, and of each run its record, journal and events in order of arrival.

JSON, a line each, so that other tools can read it:

    {"sitting": 1, "version": …}
    {"run": "A", "id": …, "parent": …, "state": …, "why": …, "marks": […], "record": {…}}
    {"of": "A", "reply": [path, fingerprint, reply, usage, t, seconds, inherited]}
    {"of": "A", "event": {…}}                     as in trace.jsonl
    {"typed": "back 3", "at": {"A": 57}, "current": "B"}
    {"stood": "B", "state": "paused", …}          a run came to stand still

Reading and writing it again gives the same bytes. Secrets are left out, as they are of every trace.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path as File
from typing import Any

import orjson

from ... import __version__
from ...serving import redact
from ...serving.errors import UsageError
from .branch import Branch

_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """Something that was typed (`text`), or a run that came to stand still (`text` names it), and how many
    events each run had by then. `current` is the run looked at afterwards."""

    kind: str  # "typed" or "stood"
    text: str
    at: Mapping[str, int]
    current: str
    state: str = ""
    why: str = ""


@dataclass(frozen=True)
class Kept:
    """One run in a file."""

    head: Mapping[str, Any]  # run, id, parent, state, why, marks, record
    replies: Sequence[Any]
    events: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Saved:
    """A whole sitting."""

    version: str
    runs: Sequence[Kept]
    log: Sequence[Entry]

    def write(self, file: File) -> None:
        """Write it. Raises UsageError where that cannot be done."""
        try:
            with file.open("wb") as out:
                out.writelines(line + b"\n" for line in self._lines())
        except OSError as error:
            raise UsageError(f"Cannot write {file}: {error.strerror}.") from error

    def _lines(self) -> Iterator[bytes]:
        yield orjson.dumps({"sitting": _FORMAT, "version": self.version})
        for run in self.runs:
            name = run.head["run"]
            yield orjson.dumps(run.head)
            for reply in run.replies:
                yield orjson.dumps({"of": name, "reply": reply})
            for event in run.events:
                yield orjson.dumps({"of": name, "event": event})
        for entry in self.log:
            told = asdict(entry)
            yield orjson.dumps({told.pop("kind"): told.pop("text"), **told})


def saved(branches: Iterable[tuple[Branch, Sequence[Any]]], log: Sequence[Entry]) -> Saved:
    """A sitting as it stands: its runs, each with the rows of its journal, and what was typed."""
    runs = [_kept(branch, rows) for branch, rows in branches]
    return Saved(__version__, runs, [_clean(entry) for entry in log])


def read(file: File) -> Saved:
    """A sitting from its file. Raises UsageError where it is none."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"No sitting to read: {file}: {error.strerror}.") from error
    number, runs, log = 0, {}, []
    try:
        head = orjson.loads(lines[0])
        if head["sitting"] != _FORMAT:
            raise UsageError(f"{file} was saved by abduce {head['version']}, which this one cannot read.")
        for number, line in enumerate(lines[1:], 1):  # noqa: B007
            row = orjson.loads(line)
            if "run" in row:
                runs[row["run"]] = Kept(row, [], [])
            elif "reply" in row:
                runs[row["of"]].replies.append(row["reply"])  # type: ignore[attr-defined]
            elif "event" in row:
                runs[row["of"]].events.append(row["event"])  # type: ignore[attr-defined]
            else:
                log.append(_entry(row))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        place = f"{file}:{number + 1}"
        raise UsageError(f"{place} is not part of a sitting. Give a file that save wrote.") from None
    return Saved(head["version"], list(runs.values()), log)


def _kept(branch: Branch, rows: Sequence[Any]) -> Kept:
    with branch.lock:
        lines, marks = list(branch.lines), list(branch.marks)
    head: dict[str, Any] = {"run": branch.name, "id": branch.run, "parent": branch.parent}
    head |= {"state": branch.state, "why": branch.why, "marks": marks, "record": branch.record}
    replies = [_reply(row, inherited) for row, inherited in rows]
    return Kept(head, replies, [orjson.loads(line) for line in lines])


def _reply(row: Sequence[Any], inherited: bool) -> list[Any]:
    """A row of a journal, its bytes as text: they hold escapes that only the journal's own reader knows."""
    path, fingerprint, reply, usage, t, seconds = row
    return [path, fingerprint, redact.known(reply.decode()), usage.decode(), t, seconds, inherited]


def _clean(entry: Entry) -> Entry:
    return replace(entry, text=redact.text(entry.text))


def _entry(row: dict[str, Any]) -> Entry:
    kind = "typed" if "typed" in row else "stood"
    return Entry(kind, row.pop(kind), **row)
