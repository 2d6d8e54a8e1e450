"""The router's file: every attempt a line, a snapshot of the sums beside it, one writer at a time.

    router.jsonl            {"format": 1, "signature": …, "d": …, "learning": {…}}, then an attempt a line
    router.jsonl.snapshot   the sums after so many bytes of it; written anew and renamed

State is the snapshot and the lines after it. A crash between the two loses nothing; a torn last line is cut
off by the next writer.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...serving.errors import UsageError
from .bandit import Regression
from .router import Attempt, Learning, Router

FORMAT = 1


class Log:
    """One router's file."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.snapshot = self.path.with_name(self.path.name + ".snapshot")

    def exists(self) -> bool:
        """Whether anything has been learnt."""
        return self.path.exists()

    def rows(self) -> list[Attempt]:
        """All attempts, in order. Raises UsageError for a file that is no router's."""
        return [row for row, _ in self._read(0)]

    def router(self, version: int | None = None) -> Router:
        """The newest state, or as it was after `version` rows. Raises UsageError if there are not so many."""
        if version is None:
            at = self.path.stat()
            return _newest(str(self.path), at.st_mtime_ns, at.st_size)
        rows = self.rows()
        if version > len(rows):
            raise UsageError(f"{self.path} has {len(rows)} rows, not {version}. Leave version out for all.")
        return self._empty().fold(rows[:version])

    def append(self, rows: Iterable[Attempt], *, learning: Learning | None = None) -> Router:
        """Learn from rows and keep them; `learning` is of a new file only. Returns the new state."""
        rows = list(rows)
        with self._writing():
            if not self.exists() or not self.path.stat().st_size:
                if not rows:
                    raise UsageError(f"There is nothing to begin {self.path} with: no row was given.")
                head = {"format": FORMAT, "signature": rows[0].signature, "d": len(rows[0].phi)}
                self._write([head | {"learning": asdict(learning or Learning())}])
            self._mend()
            router, lines = self._state()[0], []
            for row in rows:
                judged = router.judged(row)
                router = router.learned(judged)
                lines.append(asdict(judged))
            self._write(lines)
            self._keep(router)
        return router

    def reset(self) -> None:
        """Forget everything: the file is kept under another name."""
        with self._writing(), suppress(FileNotFoundError):
            self.snapshot.unlink(missing_ok=True)
            self.path.replace(self.path.with_name(self.path.name + ".old"))

    # ------------------------------------------------------------ parts

    def _head(self) -> dict[str, Any]:
        try:
            with self.path.open("rb") as file:
                head = json.loads(file.readline())
            if head["format"] == FORMAT:
                return dict(head)
        except FileNotFoundError:
            raise UsageError(f"There is no router {self.path}. Make one: abduce smart train.") from None
        except (ValueError, KeyError, TypeError):
            pass
        raise UsageError(f"{self.path} is no router's file of format {FORMAT}. Name another file.")

    def _empty(self) -> Router:
        head = self._head()
        return Router(head["signature"], head["d"], Learning(**head["learning"]))

    def _read(self, offset: int) -> Iterator[tuple[Attempt, int]]:
        """The attempts from a byte on, each with the byte after it. A line without its end is left out."""
        self._head()
        with self.path.open("rb") as file:
            if not offset:
                offset = len(file.readline())
            file.seek(offset)
            for n, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    yield Attempt.of(json.loads(line)), offset
                except (ValueError, TypeError) as error:
                    raise UsageError(f"{self.path}: row {n} cannot be read: {error}. Take it out.") from None

    def _state(self) -> tuple[Router, int]:
        """The newest state, and the byte it has come to."""
        router, offset = self._kept() or (self._empty(), 0)
        for row, after in self._read(offset):
            router, offset = router.learned(row), after
        return router, offset

    def _kept(self) -> tuple[Router, int] | None:
        """The snapshot, if it is one of this file."""
        try:
            data = json.loads(self.snapshot.read_bytes())
            head = self._head()
            if data["head"] != head or data["offset"] > self.path.stat().st_size:
                return None
            sums = {arm: _regression(each, head["learning"]["lam"]) for arm, each in data["sums"].items()}
            tokens = {arm: tuple(each) for arm, each in data["tokens"].items()}
            router = replace(self._empty(), sums=sums, pulls=data["pulls"], tokens=tokens)
            return replace(router, model=data["model"], version=data["version"]), data["offset"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _keep(self, router: Router) -> None:
        sums = {arm: {"S": each.S, "b": each.b} for arm, each in router.sums.items()}
        data = {"head": self._head(), "offset": self.path.stat().st_size, "sums": sums}
        data |= {"pulls": router.pulls, "tokens": router.tokens, "model": router.model}
        data["version"] = router.version
        fresh = self.snapshot.with_name(self.snapshot.name + ".new")
        fresh.write_text(json.dumps(data))
        fresh.replace(self.snapshot)

    def _write(self, lines: Sequence[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        with self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def _mend(self) -> None:
        """Cut off what a crash has left of a line."""
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() == b"\n":
                return
        os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        import fcntl  # there is none on Windows, where a router can be read but not taught

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(self.path.name + ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@lru_cache(maxsize=8)
def _newest(path: str, mtime_ns: int, size: int) -> Router:
    """The state of a file that has not changed since; read once for all runs of a process."""
    return Log(path)._state()[0]


def _regression(data: dict[str, Any], lam: float) -> Regression:
    return Regression(lam, tuple(tuple(row) for row in data["S"]), tuple(data["b"]))
