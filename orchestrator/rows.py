"""JSON lines, each kept as soon as it is made, below a header that says what they were made from: work that
was stopped goes on with them, if it is the same work."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..serving import redact
from ..serving.errors import UsageError


class Rows:
    """The file of one command; `rows` are those it held when it was opened.

    The header stands under `kind`. Raises UsageError where the file is there and not to be gone on with, is
    another command's, or was made from something else. A last line torn by a kill is cut off.
    """

    def __init__(
        self, file: Path, kind: str, header: Mapping[str, Any], *, resume: bool, command: str, option: str
    ) -> None:
        self.file = file
        self._command, self._option = command, option
        self.rows: list[dict[str, Any]] = []
        header = json.loads(json.dumps(header, default=str))
        if file.exists():
            if not resume:
                raise UsageError(
                    f"{file} exists. Add --resume to go on with it, or name another file with {option}."
                )
            self._load(kind, header)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._out = file.open("a", encoding="utf-8", errors="replace")  # lone surrogates
        except OSError as error:
            raise UsageError(f"Cannot write {file}: {error.strerror}. Name another with {option}.") from None
        if file.stat().st_size == 0:
            self.add({kind: header})

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row; it is on disk when this returns."""
        self._out.write(redact.known(json.dumps(row, ensure_ascii=False, default=str)) + "\n")
        self._out.flush()
        os.fsync(self._out.fileno())

    def close(self) -> None:
        """Close the file."""
        self._out.close()

    def foreign(self) -> UsageError:
        """What to say of a file with rows that the command cannot have made."""
        return UsageError(f"{self.file} is no file of `{self._command}`. Name another with {self._option}.")

    def _load(self, kind: str, header: Mapping[str, Any]) -> None:
        raw = self.file.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        try:
            told, *rows = [json.loads(line) for line in whole.splitlines()] or [{kind: header}]
            there = dict(told[kind])
            self.rows = [dict(row) for row in rows]
        except (ValueError, KeyError, TypeError):
            raise self.foreign() from None
        different = sorted(key for key in {*there, *header} if there.get(key) != header.get(key))
        if different:
            named = ["recipe" if key == "settings" else key for key in different]
            raise UsageError(
                f"{self.file} was made with another {', '.join(named)}. Resume with the same, or name "
                f"another file with {self._option}."
            )
        if len(whole) < len(raw):
            os.truncate(self.file, len(whole))
