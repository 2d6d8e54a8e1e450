"""The log of `abduce rag fit`: one reading a line, each kept as soon as it is made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ...serving import redact
from ...serving.errors import UsageError
from ..codec import dumps

Row: TypeAlias = dict[str, Any]


class Log:
    """Readings as JSON lines, after a header that says what read. Raises UsageError where it was another."""

    def __init__(self, file: Path, settings: Mapping[str, Any]) -> None:
        self.file = file
        self.settings = json.loads(dumps(settings))
        self.rows: list[Row] = []
        lines = self._lines()
        if lines:
            header = lines[0].get("readings")
            if header is None or any("task" not in row or "k" not in row for row in lines[1:]):
                raise UsageError(f"{file} is no log of `abduce rag fit`. Name another with --log.")
            if header != self.settings:
                different = [
                    key for key in {**header, **self.settings} if header.get(key) != self.settings.get(key)
                ]
                raise UsageError(
                    f"{file} was made with another {', '.join(different)}. Name another log with --log."
                )
            self.rows = lines[1:]
        else:
            self._write({"readings": self.settings})
        self.known = {(row["task"], row["id"], row["k"], row["m"], row["n"]) for row in self.rows}

    @property
    def kept(self) -> str:
        """What is there, in words."""
        return f"{len(self.rows)} readings are in {self.file}"

    def add(self, row: Row) -> None:
        """Keep a reading."""
        self.rows.append(row)
        self._write(row)

    def _write(self, row: Mapping[str, Any]) -> None:
        try:
            with self.file.open("a", encoding="utf-8") as out:
                out.write(redact.known(json.dumps(row, ensure_ascii=False)) + "\n")
        except OSError as error:
            raise UsageError(
                f"Cannot write {self.file}: {error.strerror}. Name another with --log."
            ) from None

    def _lines(self) -> list[Row]:
        if not self.file.exists():
            return []
        raw = self.file.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):  # cut off while it was written
            self.file.write_bytes(whole)
        try:
            rows = [json.loads(each) for each in whole.splitlines()]
        except ValueError:
            rows = [{}]
        return rows if all(isinstance(row, dict) for row in rows) else [{}]
