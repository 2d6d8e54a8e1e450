"""What a benchmark has measured, kept in a file: one that was cut short goes on from there."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Row = dict[str, Any]
Item = TypeVar("Item")


def json_lines(file: Path) -> list[Row]:
    """A file of JSON lines; empty ones are left out."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]


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

    def __init__(self, path: Path | str | None) -> None:
        self.path = None if path is None else Path(path)
        found = json_lines(self.path) if self.path and self.path.exists() else []
        self._known: dict[str, Row] = {json.dumps(row["run"]): row for row in found if "run" in row}

    def __call__(self, run: Sequence[Any], measure: Callable[[], Mapping[str, Any]]) -> Row:
        """What is known of a run, or else is measured now."""
        known = self.get(run)
        return self.add(run, measure()) if known is None else known

    async def each(
        self,
        items: Sequence[Item],
        run: Callable[[Item], Sequence[Any]],
        measure: Callable[[Item], Awaitable[Mapping[str, Any]]],
        *,
        at_once: int = 1,
    ) -> list[Row]:
        """The row of each item, whose run is `run(item)`. Those not known are measured, some at a time, and
        kept in the order in which they end."""
        gate = asyncio.Semaphore(at_once)

        async def one(item: Item) -> Row:
            async with gate:
                known = self.get(run(item))
                return self.add(run(item), await measure(item)) if known is None else known

        return await asyncio.gather(*map(one, items))

    def get(self, run: Sequence[Any]) -> Row | None:
        """What is known of a run."""
        return self._known.get(json.dumps(run))

    def add(self, run: Sequence[Any], result: Mapping[str, Any]) -> Row:
        """Keep a result. Returns its row, as it would be read."""
        line = json.dumps({"run": run, **result}, ensure_ascii=False)
        row: Row = json.loads(line)
        self._known[json.dumps(run)] = row
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as out:
                out.write(line + "\n")
        return row
