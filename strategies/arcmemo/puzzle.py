"""Grid puzzles: a rule shown by pairs of grids, to be written as a program and run on other inputs.

A `Puzzle` has training pairs and test inputs. It has no place for the test outputs, so no prompt, no feedback
and no memory can hold them: whoever reads a file gets them apart (`read`), for scoring.

    Puzzle.parse('{"train": [{"input": [[0, 1]], "output": [[1, 0]]}], "test": [{"input": [[2, 0]]}]}')
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ...serving.errors import UsageError
from ...serving.flow import CallTool, Failure, ToolResult
from ...serving.seeds import derive
from ..base import Task

Grid: TypeAlias = tuple[tuple[int, ...], ...]
Labels: TypeAlias = tuple[Grid, ...]
"""The right output of each test input, in order."""


@dataclass(frozen=True)
class Puzzle:
    """At least one training pair and one test input."""

    train: tuple[tuple[Grid, Grid], ...]
    test: tuple[Grid, ...]

    @classmethod
    def parse(cls, text: str) -> "Puzzle | None":
        """The puzzle that a text is, in ARC's JSON; None for other text. Test outputs are not read."""
        if not text.lstrip().startswith("{") or '"train"' not in text:
            return None
        try:
            return cls.of(json.loads(text))
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Puzzle":
        """From parsed JSON. Raises KeyError, TypeError or ValueError for what is no puzzle."""
        train = tuple((grid(pair["input"]), grid(pair["output"])) for pair in data["train"])
        test = tuple(grid(pair["input"]) for pair in data["test"])
        if not train or not test:
            raise ValueError("a puzzle has training pairs and test inputs")
        return cls(train, test)

    @property
    def text(self) -> str:
        """As a model reads it."""
        parts = []
        for number, (given, wanted) in enumerate(self.train, 1):
            parts.append(
                f"Example {number}, input {shown(given)}\n\nExample {number}, output {shown(wanted)}"
            )
        parts += [f"Test {number}, input {shown(given)}" for number, given in enumerate(self.test, 1)]
        return "\n\n".join(parts)

    def task(self, name: str = "") -> Task:
        """The task to solve it; `name` identifies it in a memory."""
        pairs = [{"input": given, "output": wanted} for given, wanted in self.train]
        question = json.dumps({"train": pairs, "test": [{"input": given} for given in self.test]})
        return Task(question, metadata={"id": name} if name else {})


def grid(said: object) -> Grid:
    """A grid of rows of equal length. Raises TypeError or ValueError for anything else."""
    if not isinstance(said, list | tuple) or not said:
        raise ValueError("a grid is a list of rows")
    rows = []
    for row in said:
        if not isinstance(row, list | tuple) or not all(type(cell) is int for cell in row):
            raise TypeError("a row is a list of integers")
        rows.append(tuple(row))
    if not rows[0] or len({len(row) for row in rows}) != 1:
        raise ValueError("the rows of a grid have one length")
    return tuple(rows)


def shown(cells: Grid) -> str:
    """Its size, and below that its rows."""
    rows = "\n".join(" ".join(map(str, row)) for row in cells)
    return f"({len(cells)} x {len(cells[0])}):\n{rows}"


def read(file: Path) -> tuple[dict[str, Puzzle], dict[str, Labels]]:
    """The puzzles of a file, by id in its order, and apart from them the test outputs that it gives.

    The file is one puzzle in ARC's JSON, or a mapping of ids to puzzles. Raises UsageError.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {error.strerror}.") from None
    except ValueError as error:
        raise UsageError(f"{file} is not JSON: {error}.") from None
    rows = {file.stem: data} if isinstance(data, dict) and "train" in data else data
    puzzles: dict[str, Puzzle] = {}
    labels: dict[str, Labels] = {}
    if not isinstance(rows, dict) or not rows:
        raise UsageError(f"{file} holds no puzzles. Write {_SHAPE}, or a mapping of ids to such puzzles.")
    for name, row in rows.items():
        try:
            puzzles[name] = Puzzle.of(row)
            if all("output" in pair for pair in row["test"]):
                labels[name] = tuple(grid(pair["output"]) for pair in row["test"])
        except (KeyError, TypeError, ValueError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else error
            raise UsageError(f"{file}: {name!r} is no puzzle: {why}. Write {_SHAPE}.") from None
    return puzzles, labels


_SHAPE = '{"train": [{"input": [[0, 1]], "output": [[1, 0]]}], "test": [{"input": [[2, 0]]}]}'

# ---------------------------------------------------------------- programs


def program(text: str) -> str:
    """The last fenced block that defines `transform`; empty if there is none."""
    blocks = [block for block in _FENCED.findall(text) if _DEFINES.search(block)]
    return str(blocks[-1]).strip("\n") if blocks else ""


_FENCED = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_DEFINES = re.compile(r"^def transform\(", re.MULTILINE)


@dataclass(frozen=True)
class Ran:
    """What a program made of one input: a grid, or what was wrong, with as much as it returned."""

    grid: Grid | None
    said: str = ""


def call(code: str, given: Grid) -> CallTool:
    """Run a program on one input, in a process of its own."""
    rows = json.dumps(given)
    harness = _HARNESS.replace("{mark}", _mark(code, given)).replace("{grid}", rows)
    return CallTool("python", {"code": f"{code}\n\n{harness}"})


def ran(code: str, given: Grid, reply: ToolResult | Failure) -> Ran:
    """What came of a call. Raises UsageError where no program can be run at all."""
    from ...tools.python import ENDED

    if isinstance(reply, Failure):
        return Ran(None, f"It could not be run: {reply.message}")
    last = reply.text.rstrip().rpartition("\n")[2]
    if not reply.ok:
        if not last.startswith(ENDED):
            raise UsageError(f"Programs could not be run. Write tools: [python]. What was said: {reply.text}")
        return Ran(None, _clipped(reply.text))
    mark = _mark(code, given)
    if not last.startswith(mark):
        return Ran(None, "It ended before it had returned anything, or printed too much.")
    try:
        told = json.loads(last[len(mark) :])
        return Ran(grid(told["value"]))
    except (ValueError, TypeError, KeyError):
        pass
    kind, words = (str(told.get(key, "")) for key in ("type", "repr")) if isinstance(told, dict) else ("", "")
    return Ran(None, f"It returned no grid of integers, but this {kind}: {_clipped(words)}")


def wrong(number: int, wanted: Grid, found: Ran) -> str:
    """Feedback on one training pair; empty if it is right."""
    if found.grid == wanted:
        return ""
    if found.grid is None:
        return f"Example {number}: {found.said}"
    return f"Example {number}: the output is wrong. Your program returned {shown(found.grid)}"


def outputs(grids: Sequence[Grid | None]) -> str:
    """Test outputs as a text, null for those that there are not."""
    return json.dumps(grids)


def _mark(code: str, given: Grid) -> str:
    """A word that no other line begins with."""
    return f"transformed {derive(0, code, json.dumps(given)):x} "


def _clipped(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[:_MOST]} …"


_MOST = 1200  # characters of an error or a wrong value that are told
_HARNESS = """\
import json as _json
_found = transform({grid})
_found = _found.tolist() if hasattr(_found, "tolist") else _found
try:
    _value = _json.dumps(_found, default=lambda cell: cell.item())
except (TypeError, ValueError, AttributeError):
    _value = "null"
_value = _json.loads(_value) if len(_value) < 7000 else None
_told = {"value": _value, "type": type(_found).__name__, "repr": repr(_found)[:1200]}
print()
print("{mark}" + _json.dumps(_told))
"""
