"""Follows the file of events that a run writes, from its beginning.

While a run goes on its file grows; when it is closed, a file sorted by path takes its place; when the run is
resumed, the file begins anew. The last two are told from growth by the file's identity and size.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

_AT_ONCE = 1 << 22


class Tail:
    """The rows of one file as they come."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._place = 0
        self._rest = b""  # of a line that is not whole yet
        self._inode = 0

    def begun_anew(self) -> bool:
        """Whether what was read so far is no longer the beginning of the file; reading then starts over."""
        try:
            facts = self.file.stat()
        except OSError:
            return False
        anew = self._place > 0 and (facts.st_ino != self._inode or facts.st_size < self._place)
        if anew:
            self._place, self._rest = 0, b""
        self._inode = facts.st_ino
        return anew

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """What has been written since; a line that is no event is passed over."""
        try:
            with self.file.open("rb") as file:
                self._inode = os.fstat(file.fileno()).st_ino
                file.seek(self._place)
                fresh = file.read(_AT_ONCE)
        except OSError:
            return
        self._place += len(fresh)
        *lines, self._rest = (self._rest + fresh).split(b"\n")
        for line in lines:
            try:
                row = orjson.loads(line)
            except ValueError:
                continue
            if (
                isinstance(row, dict)
                and isinstance(row.get("event"), str)
                and isinstance(row.get("path"), list)
            ):
                yield row
