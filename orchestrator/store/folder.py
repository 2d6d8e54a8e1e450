"""Runs in a folder of their own each.

<folder>/<run>/run.json         task, settings, seed: enough to run it again
               journal.db       every reply (journal.py)
               trace.jsonl      every event (trace.py)
               result.json      the result, once there is one
               lock             locked while a process works on it
"""

import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ...serving.errors import JournalError, UsageError
from ..journal import Row, SqliteRows

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

PATIENCE_S = 0.25
"""How long a run that is held is waited for: whoever asks whether it is held holds it for an instant."""


@dataclass(frozen=True, slots=True)
class FolderStore:
    """All runs under one folder."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def names(self) -> list[str]:
        """All runs, oldest first."""
        if not self.folder.is_dir():
            return []
        entries = (entry for entry in self.folder.iterdir() if not entry.name.startswith("."))
        return sorted(entry.name for entry in entries if (entry / "run.json").exists())

    def create(self, name: str, record: bytes, inherited: Sequence[Row] = ()) -> None:
        """Make a run; it is there once its record is."""
        place = self.folder / name
        try:
            place.mkdir(mode=0o700, parents=True)  # replies are kept to the letter, whatever is in them
            if inherited:
                rows = SqliteRows(place / "journal.db")
                rows.inherit(inherited)
                rows.close()
            _write(place / "run.json", record)
        except OSError as error:
            raise UsageError(
                f"Cannot write runs to {self.folder}: {error.strerror}. Set ABDUCE_HOME to a folder you own."
            ) from error

    def record(self, name: str) -> bytes:
        """The text of run.json."""
        return self._read(name, "run.json")

    def result(self, name: str) -> bytes | None:
        """The text of result.json."""
        place = self.folder / name
        if not (place / "result.json").exists() and (place / "run.json").exists():
            return None
        return self._read(name, "result.json")

    def finish(self, name: str, result: bytes) -> None:
        """Write result.json."""
        _write(self.folder / name / "result.json", result)

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Lock the run."""
        try:
            file = (self.folder / name / "lock").open("w")
        except FileNotFoundError:
            raise gone(name) from None
        with file:
            if not _locked(file):
                raise UsageError(
                    f"Run {name} is going on in another process. Wait for its end, or stop it."
                ) from None
            if not (self.folder / name / "run.json").exists():  # deleted before we had the lock
                raise gone(name)
            yield

    def is_held(self, name: str) -> bool:
        """Whether the lock cannot be had."""
        try:
            with (self.folder / name / "lock").open() as file:
                return not _locked(file, patience_s=0)
        except OSError:  # nobody has ever worked on it, or it is gone
            return False

    def rows(self, name: str) -> SqliteRows:
        """The journal's file."""
        return SqliteRows(self.folder / name / "journal.db")

    def replies(self, name: str) -> tuple[Sequence[Row], Sequence[Row]]:
        """What the journal's file holds."""
        if not (self.folder / name / "journal.db").exists():
            self.record(name)  # complains if the run is gone
            return (), ()
        try:
            with closing(self.rows(name)) as rows:
                return rows.read()
        except JournalError:
            if not (self.folder / name).exists():  # deleted meanwhile
                raise gone(name) from None
            raise

    @asynccontextmanager
    async def checkpointer(self) -> "AsyncIterator[BaseCheckpointSaver[Any]]":
        """LangGraph's own tables in a file beside the runs."""
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with AsyncSqliteSaver.from_conn_string(str(self.folder / "checkpoints.db")) as saver:
            await saver.setup()
            yield saver

    def n_bytes(self, name: str) -> int:
        """The size of all its files."""
        size = 0
        for file in (self.folder / name).rglob("*"):
            with suppress(OSError):  # deleted meanwhile
                size += file.stat().st_size
        return size

    def delete(self, name: str) -> None:
        """Out of sight at once, then out of the way, with what a killed process left: nobody ever finds half
        a run."""
        try:
            (self.folder / name).replace(self.folder / f".{name}{_GOING}")
        except OSError as error:
            raise UsageError(f"Run {name} cannot be deleted: {error.strerror}: {error.filename}.") from error
        for going in self.folder.glob(f".*{_GOING}"):
            shutil.rmtree(going, ignore_errors=True)  # another process may be at it, too

    def _read(self, name: str, file: str) -> bytes:
        place = self.folder / name / file
        try:
            return place.read_bytes()
        except FileNotFoundError:
            raise gone(name) from None
        except OSError as error:
            raise UsageError(f"Run {name} is damaged: {place}: {error.strerror}.") from None


_GOING = ".deleted"


def _locked(file: IO[str], *, patience_s: float = PATIENCE_S) -> bool:
    """Whether the file could be locked, until it is closed; always where files cannot be locked."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        except OSError:  # a network folder that cannot lock
            return True
        else:
            return True


def gone(name: str) -> UsageError:
    """What to say of a run that is not there any more."""
    return UsageError(f"There is no run {name} any more: it was deleted. See: abduce runs list")


def _write(file: Path, text: bytes) -> None:
    """Whole or not at all."""
    draft = file.with_suffix(f".{os.getpid()}.tmp")
    draft.write_bytes(text)
    draft.replace(file)
