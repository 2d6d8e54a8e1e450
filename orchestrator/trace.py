"""What happened in a run: typed events, and the file they are kept in.

An event names the path of its request in the flow: `(2, 0)` is the first request of the third batch,
`(2, 0, 5, 1, 0)` the first request of the second batch of branch 5 of a fork made there. Events arrive
as things happen; sorted by path they are the same for the same seed, whatever was concurrent.

Observers are functions of an event, and must not change it. The screen (`live.py`) and the file (`JsonLines`)
only render. Events are made for every request: plain dataclasses take a third of the time of frozen ones.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path as File
from typing import Any, ClassVar, TypeAlias

import orjson

from ..serving import redact
from ..serving.errors import UsageError
from ..serving.flow import Usage
from .codec import dumps

Path: TypeAlias = tuple[int, ...]

LAST = 1 << 62
"""The end of a path that comes after all others."""


@dataclass
class RunStarted:
    """First event of a run."""

    kind: ClassVar[str] = "run_started"
    run: str
    question: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    path: Path = ()
    t: float = 0.0


@dataclass
class Called:
    """A request was answered; `replayed` from the journal, or by its service after `attempts` tries.
    `t` is when it began and `seconds` how long it took."""

    kind: ClassVar[str] = "called"
    path: Path
    request: Any
    reply: Any
    usage: Usage
    t: float
    seconds: float
    attempts: int = 1
    replayed: bool = False


@dataclass
class Noted:
    """A strategy's own event: "nodes", "scores", "resample", "select" …"""

    kind: ClassVar[str] = "noted"
    path: Path
    note: str
    data: Mapping[str, Any]
    t: float


@dataclass
class Exhausted:
    """A limit was reached at this point of the flow."""

    kind: ClassVar[str] = "exhausted"
    path: Path
    reason: str
    t: float


@dataclass
class NodeStarted:
    """A node of the graph is visited; its path begins those of all that happens there."""

    kind: ClassVar[str] = "node_started"
    path: Path
    node: str
    step: str  # its kind: "solve", "verify" …
    t: float


@dataclass
class NodeEnded:
    """The visit is over, and changed the state by `update`."""

    kind: ClassVar[str] = "node_ended"
    path: Path
    node: str
    step: str
    update: Mapping[str, Any]
    t: float


@dataclass
class RunEnded:
    """Last event of a run."""

    kind: ClassVar[str] = "run_ended"
    answer: Any
    complete: bool
    usage: Usage
    t: float
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    path: Path = (LAST,)


Event: TypeAlias = RunStarted | NodeStarted | Called | Noted | Exhausted | NodeEnded | RunEnded
Observer: TypeAlias = Callable[[Event], None]

_SOON_S = 0.1  # one flush for all that happens meanwhile: viewers wait, runs don't
_TIMES = ("t", "seconds")
_UNREPEATABLE = (*_TIMES, "replayed", "attempts", "run", "settings")  # settings: concurrency is among them


def row(event: Event) -> dict[str, Any]:
    """An event by field; a `Called` also names the type of its request, as `call`."""
    if type(event) is Called:
        return {"event": event.kind, "call": type(event.request).__name__, **vars(event)}
    return {"event": event.kind, **vars(event)}


def _line(event: Event) -> bytes:
    """`row(event)` as JSON, which takes a third less time than to build it first."""
    kind = type(event.request) if type(event) is Called else type(event)
    head = _heads.get(kind)
    if head is None:
        told = {key: value for key, value in row(event).items() if key in ("event", "call")}
        head = _heads[kind] = dumps(told)[:-1] + b","
    return head + dumps(event)[1:]


_heads: dict[type, bytes] = {}  # how a line begins, by the type of the event, of a `Called` by its request's


class JsonLines:
    """An observer that writes one JSON object a line as events arrive, without secrets (`serving/redact.py`).

    Inside an event loop others can read an event soon after. `close` sorts the file by path: equal runs leave
    equal files, times aside. Of what the file held before, `keep` says by path what stays.
    """

    def __init__(self, file: File, keep: Callable[[Path], bool] | None = None) -> None:
        self._file = file
        kept: list[dict[str, Any]] = []
        if keep is not None and file.exists():
            kept = [event for event in read(file) if keep(tuple(event["path"]))]
        self._out = file.open("wb", buffering=1 << 16)
        self._paths: list[Path] = [tuple(event["path"]) for event in kept]  # of the lines
        self._out.writelines(dumps(event) + b"\n" for event in kept)
        self._flushes = False  # soon

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if type(event) is RunStarted:
            event = replace(event, settings=redact.settings(event.settings))
        self._out.write(redact.line(_line(event)) + b"\n")
        self._paths.append(event.path)
        if not self._flushes:
            with suppress(RuntimeError):  # outside a loop there is no "soon"
                asyncio.get_running_loop().call_later(_SOON_S, self._flush_now)
                self._flushes = True

    def flush(self) -> None:
        """Make everything so far readable by others."""
        self._out.flush()

    def _flush_now(self) -> None:
        self._flushes = False
        if not self._out.closed:
            self.flush()

    def close(self) -> None:
        """Sort the file by path; the old one stays until the new one is whole."""
        if self._out.closed:
            return
        self._out.close()
        if self._paths == sorted(self._paths):
            return
        sorted_file = self._file.with_suffix(".sorted")
        with self._file.open("rb") as arrived, sorted_file.open("wb") as out:
            rows = zip(self._paths, arrived, strict=True)
            out.writelines(line for _, line in sorted(rows, key=itemgetter(0)))
        sorted_file.replace(self._file)


def read(file: File) -> list[dict[str, Any]]:
    """The events in a file, in file order. A torn last line, left by a kill, is passed over.

    Raises UsageError where the file is no trace, or there is none.
    """
    return [event for _, event in numbered(file)]


def numbered(file: File) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read`, each event with the number of its line."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UsageError(f"No trace to read: {file}: {error.strerror}. Give one that a run wrote.") from error
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            event = orjson.loads(line)
            if not isinstance(event["event"], str) or not isinstance(event["path"], list):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break
            raise no_event(file, number) from None
        yield number, event


def no_event(file: File, number: int) -> UsageError:
    """What to say of a line that is none."""
    return UsageError(f"{file}:{number} is not a trace event. Give a trace.jsonl that a run wrote.")


def canonical(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events in the order of their paths."""
    return sorted(events, key=lambda event: event["path"])


def comparable(events: Iterable[Mapping[str, Any]]) -> str:
    """The canonical trace without times and settings: byte-identical for runs in which the same happened."""
    kept = [{k: v for k, v in event.items() if k not in _UNREPEATABLE} for event in canonical(events)]
    return "\n".join(orjson.dumps(event, option=orjson.OPT_SORT_KEYS).decode() for event in kept)
