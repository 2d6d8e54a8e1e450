"""Runs: what each was asked, what it was answered, what came of it; found again by name.

Runs("folder")  or  Runs("postgresql://…")      store/ says what lies where
  ├─ create(settings) ─► Run ── record, journal(), trace, finish(result)
  ├─ open("last")     ─► Run
  └─ fork(run, keep=40, changes=["strategy.k=3"]) ─► Run that begins with the same 40 replies
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from .. import __version__
from ..serving import redact
from ..serving.errors import UnknownName, UsageError
from ..serving.flow import Usage
from ..serving.settings import register_references, register_secrets
from ..strategies.base import Result
from .codec import dumps
from .journal import Journal, Row
from .store import Store, store
from .trace import Path as Place

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver


class Reply(NamedTuple):
    """A stored reply, as plain data: to which request, when it began and ended in seconds of the run, what it
    consumed, whether it is `inherited` from the run this one was forked from."""

    path: Place
    t: float
    arrived: float
    usage: Usage
    reply: Any
    inherited: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One run in a store."""

    store: Store
    id: str

    @property
    def folder(self) -> Path:
        """Its folder on this machine."""
        return self.store.folder / self.id

    @property
    def trace(self) -> Path:
        """The file of events. It may not exist: a run of another machine leaves its trace there."""
        return self.folder / "trace.jsonl"

    @property
    def record(self) -> dict[str, Any]:
        """What the run was started with. Raises UsageError where it is damaged or gone."""
        return {"run": self.id, **self._parsed("run.json", self.store.record(self.id))}

    @property
    def result(self) -> dict[str, Any] | None:
        """What came of it; None while it is unfinished."""
        text = self.store.result(self.id)
        return None if text is None else self._parsed("result.json", text)

    @property
    def is_held(self) -> bool:
        """Whether somebody works on it now, this process included."""
        return self.store.is_held(self.id)

    def held(self) -> AbstractContextManager[None]:
        """Work on the run alone. Raises UsageError while another process does."""
        return self.store.held(self.id)

    def journal(self) -> Journal:
        """Open the run's journal."""
        return Journal(self.store.rows(self.id))

    def replies(self) -> list[Reply]:
        """The replies it has, in the order in which they arrived; a fork is made after one of them."""
        register_references(self.store.record(self.id).decode(errors="replace"))  # they are to be shown
        return [
            Reply(_place(path), t, t + seconds, Usage(*orjson.loads(usage)), _plain(reply), inherited)
            for (path, _, reply, usage, t, seconds), inherited in self._rows()
        ]

    def finish(self, result: Result) -> None:
        """Keep the result."""
        self.store.finish(self.id, redact.line(dumps(asdict(result))))

    def _rows(self) -> list[tuple[Row, bool]]:
        """Of each path the last row, in the order of arrival, and whether it is inherited."""
        inherited, own = self.store.replies(self.id)
        last = {row[0]: (row, True) for row in inherited} | {row[0]: (row, False) for row in own}
        return sorted(last.values(), key=lambda kept: kept[0][4] + kept[0][5])

    def _parsed(self, file: str, text: bytes) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UsageError(f"Run {self.id} is damaged: {self.folder / file}: {error}.") from None
        if not isinstance(found, dict):
            raise UsageError(f"Run {self.id} is damaged: {self.folder / file} holds no JSON object.")
        return found


@dataclass(frozen=True, slots=True, init=False)
class Runs:
    """All runs of a store: a folder, or a PostgreSQL server by URL."""

    store: Store

    def __init__(self, where: Path | str) -> None:
        object.__setattr__(self, "store", store(where))

    def __str__(self) -> str:
        return str(self.store)

    @property
    def folder(self) -> Path:
        """The folder on this machine with a folder for each run."""
        return self.store.folder

    def create(self, settings: Mapping[str, Any]) -> Run:
        """A new run; `settings` must be JSON."""
        return self._made(settings, ())

    def fork(self, run: Run, *, keep: int, changes: Sequence[str] | Mapping[str, Any] = ()) -> Run:
        """A new run that begins with the first `keep` replies of another, in the order of their arrival, and
        goes on from there, with settings changed as in `["strategy.k=3", "seed=5"]`.

        A reply whose request is another one in the fork is not used: that request is asked anew. The other
        run may be going on. Raises UsageError for a change that does not fit the run's recipe."""
        from .again import changed

        rows = [row for row, _ in run._rows()]
        if not 0 <= keep <= len(rows):
            raise UsageError(
                f"Run {run.id} has {len(rows)} replies: a fork keeps 0 to {len(rows)} of them, got {keep}."
            )
        record = changed(run.record, changes)
        return self._made(record | {"forked_from": run.id, "keep": keep}, rows[:keep])

    def open(self, name: str) -> Run:
        """A run by name, or by any beginning that only one run has; "last" is the newest."""
        names = self.names()
        if name == "last" and names:
            return Run(self.store, names[-1])
        matches = [known for known in names if known.startswith(name)] if name else []
        if len(matches) == 1 or name in matches:
            return Run(self.store, name if name in matches else matches[0])
        if matches:
            raise UsageError(
                f"{name!r} fits {len(matches)} runs: {', '.join(matches[:5])} … Write more of the name."
            )
        raise UnknownName("run", name, names[-8:] or ["none yet"])

    def names(self) -> list[str]:
        """All runs, oldest first."""
        return self.store.names()

    def checkpointer(self) -> "AbstractAsyncContextManager[BaseCheckpointSaver[Any]]":
        """Open a LangGraph checkpointer beside the runs, for a graph compiled with this store: SQLite in a
        folder, PostgreSQL's in a server. Our own runs need none: their journal is finer."""
        return self.store.checkpointer()

    def delete(self, run: Run) -> None:
        """Remove a run for good. Raises UsageError while a process works on it."""
        with run.held():
            run.store.delete(run.id)

    def _made(self, record: Mapping[str, Any], inherited: Sequence[Row]) -> Run:
        seconds, ns = divmod(time.time_ns(), 10**9)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(seconds))
        name = f"{stamp}-{ns // 1000:05x}{secrets.token_hex(1)}"  # names sort by time: UTC
        register_secrets()
        told = redact.settings({**record, "run": name, "version": __version__})
        self.store.create(name, redact.line(dumps(told)), inherited)
        return Run(self.store, name)


def _plain(reply: bytes) -> Any:
    """What `dump_reply` wrote, without the mark that says what it is."""
    [value] = json.loads(reply).values()
    return value


def _place(path: str) -> Place:
    return tuple(map(int, path.split("."))) if path else ()
