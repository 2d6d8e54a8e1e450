"""What a benchmark has measured, kept in a file: one that was cut short goes on from there."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class Rows:
    """Results by "run", a list of all that decides a result and may change from one call to the next.

    With a file each is added there at once, as a line of JSON, and what is there is not measured again. The
    file is never rewritten, and its lines of other runs are no matter.

    >>> rows = Rows(None)
    >>> rows(["a", 1], lambda: {"loss": 0.5})
    {'run': ['a', 1], 'loss': 0.5}
    >>> rows(["a", 1], lambda: {"loss": 0.7})["loss"]
    0.5
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
        known = (row for row in map(json.loads, lines) if "run" in row)
        self._known: dict[str, dict[str, Any]] = {json.dumps(row["run"]): row for row in known}

    def __call__(self, run: Sequence[Any], measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What is known of a run, or else is measured now."""
        known = self.get(run)
        return self.add(run, measure()) if known is None else known

    def get(self, run: Sequence[Any]) -> dict[str, Any] | None:
        """What is known of a run."""
        return self._known.get(json.dumps(run))

    def add(self, run: Sequence[Any], result: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a result. Returns its row."""
        row = {"run": list(run), **result}
        self._known[json.dumps(run)] = row
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
        return row
