"""Run folders: what a run was asked, what it was answered, what came of it.

<folder>/<run>/run.json       task, settings, seed: enough to run it again
               journal.db     every reply (journal.py)
               trace.jsonl    every event (trace.py)
               result.json    the result, once there is one
"""

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..serving.errors import UnknownName, UsageError
from ..strategies.base import Result
from .codec import dumps
from .journal import Journal


@dataclass(frozen=True, slots=True)
class Run:
    """One run's folder."""

    folder: Path

    @property
    def id(self) -> str:
        """The run's name, the last part of its folder."""
        return self.folder.name

    @property
    def trace(self) -> Path:
        """The file of events."""
        return self.folder / "trace.jsonl"

    @property
    def record(self) -> dict[str, Any]:
        """What the run was started with. Raises UsageError where the file is damaged."""
        return self._read("run.json")

    @property
    def result(self) -> dict[str, Any] | None:
        """What came of it; None while it is unfinished."""
        return self._read("result.json") if (self.folder / "result.json").exists() else None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Work on the run alone. Raises UsageError while another process does."""
        with (self.folder / "lock").open("w") as file:
            with suppress(ImportError):  # Windows
                import fcntl

                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UsageError(
                        f"Run {self.id} is going on in another process. Wait for its end, or stop it."
                    ) from None
                except OSError:  # a network folder that cannot lock
                    pass
            yield

    def journal(self) -> Journal:
        """Open the run's journal."""
        return Journal(self.folder / "journal.db")

    def finish(self, result: Result) -> None:
        """Write the result."""
        _write(self.folder / "result.json", asdict(result))

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / name).read_bytes())
        except (OSError, ValueError) as error:
            raise UsageError(f"Run {self.id} is damaged: {self.folder / name}: {error}.") from None
        if not isinstance(found, dict):
            raise UsageError(f"Run {self.id} is damaged: {self.folder / name} holds no JSON object.")
        return found


@dataclass(frozen=True, slots=True)
class Runs:
    """All runs under one folder."""

    folder: Path  # or its name, as text

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    def create(self, settings: Mapping[str, Any]) -> Run:
        """A new run; `settings` must be JSON."""
        seconds, ns = divmod(time.time_ns(), 10**9)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(seconds))
        name = f"{stamp}-{ns // 1000:05x}{secrets.token_hex(1)}"  # names sort by time: UTC
        run = Run(self.folder / name)
        try:
            run.folder.mkdir(parents=True)
        except OSError as error:
            raise UsageError(
                f"Cannot write runs to {self.folder}: {error.strerror}. Set ABDUCE_HOME to a folder you own."
            ) from error
        _write(run.folder / "run.json", {"run": name, "version": __version__, **settings})
        return run

    def open(self, name: str) -> Run:
        """A run by name, or by any beginning that only one run has; "last" is the newest."""
        names = self.names()
        if name == "last" and names:
            return Run(self.folder / names[-1])
        matches = [known for known in names if known.startswith(name)] if name else []
        if len(matches) == 1 or name in matches:
            return Run(self.folder / (name if name in matches else matches[0]))
        if matches:
            raise UsageError(
                f"{name!r} fits {len(matches)} runs: {', '.join(matches[:5])} … Write more of the name."
            )
        raise UnknownName("run", name, names[-8:] or ["none yet"])

    def names(self) -> list[str]:
        """All runs, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(entry.name for entry in self.folder.iterdir() if (entry / "run.json").exists())


def _write(file: Path, value: Any) -> None:
    """Whole or not at all."""
    draft = file.with_suffix(f".{os.getpid()}.tmp")
    draft.write_bytes(dumps(value))
    draft.replace(file)
