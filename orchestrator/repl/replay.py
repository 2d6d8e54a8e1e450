"""A saved sitting shown again, step by step, with no engine: what was typed, what happened, what was seen.

A replay is a list of moves: something typed, the events of one step, a run that comes to stand still.
Commands that only look work at every point; those that would change something are refused.
"""

from collections.abc import Callable, Iterator
from pathlib import Path as File
from typing import NamedTuple

import orjson
from rich.console import RenderableType
from rich.text import Text

from ...serving.errors import UsageError
from ..search_view import event_of
from . import pictures
from .branch import Branch
from .desk import Desk
from .language import LOOKING, count, parse, words
from .saved import Entry, Kept, read


class Move(NamedTuple):
    """One step of a replay: an entry of the log, or the events of a run up to one of them, not included."""

    entry: Entry | None
    run: str = ""
    until: int = 0


class Replay(Desk):
    """`tell` is shown what the sitting had told."""

    def __init__(self, file: File, *, tell: Callable[[RenderableType], None]) -> None:
        super().__init__()
        self.file = file
        self._saved = read(file)
        self._kept = {kept.head["run"]: kept for kept in self._saved.runs}
        self._tell = tell
        self._quiet = False
        try:
            self.moves = list(self._in_order())
        except (KeyError, TypeError, AttributeError):
            raise UsageError(f"{file} is damaged: its log does not fit its runs.") from None
        self.done = 0  # so many moves have been made

    def welcome(self) -> RenderableType:
        """What there is to see."""
        n_steps = sum(len(kept.head["marks"]) for kept in self._saved.runs)
        told = f"{len(self._kept)} runs, {n_steps} steps. step and run go on, back goes back, close leaves."
        return Text(f"A replay of {self.file}: {told}", style="cyan")

    def do(self, line: str) -> list[RenderableType]:
        """Carry out a line and return what it shows. Raises UsageError for what a replay cannot do."""
        name, rest = parse(line)
        if name in LOOKING or (name == "budget" and not rest):
            return [self.look(name, rest)]
        if name == "step":
            self._go(self.done + count("step", rest))
        elif name == "run":
            words("run", rest, 0, 0)
            self._go(len(self.moves))
        elif name == "back":
            self._go(self.done - count("back", rest))
        elif name == "goto":
            return [self._goto(rest)]
        elif name == "save":
            [to] = words("save", rest, 1, 1)
            self._saved.write(File(to).expanduser())
            return [Text(f"{len(self._kept)} runs saved to {to}", style="dim")]
        elif name != "quit":
            raise UsageError(f"{name} changes something, and this is a replay. Write close to leave it.")
        return []

    # ------------------------------------------------------------ moving

    def _in_order(self) -> Iterator[Move]:
        """All moves: each entry, then what happened until the next, step by step."""
        log = self._saved.log
        last = {name: len(kept.events) for name, kept in self._kept.items()}
        ends = [*(entry.at for entry in log[1:]), last][: len(log)]
        for entry, end in zip(log, ends, strict=True):
            for name in filter(None, (entry.current, entry.text if entry.kind == "stood" else "")):
                self._kept[name]
            yield Move(entry)
            for name, until in end.items():
                begin = entry.at.get(name, 0)
                marks = [mark for mark in self._kept[name].head["marks"] if begin < mark < until]
                for stop in (*marks, *([until] if until > begin else [])):
                    yield Move(None, name, stop)

    def _go(self, to: int) -> None:
        if self.done == len(self.moves) <= to:
            raise UsageError("The replay is at its end. back goes back in it, close leaves it.")
        if to < self.done:  # from the start, without a word
            to = max(0, to)
            self.branches.clear()
            self.current, self.done, self._quiet = None, 0, True
        while self.done < min(to, len(self.moves)):
            self._make(self.moves[self.done])
            self.done += 1
        self._quiet = False

    def _make(self, move: Move) -> None:
        if move.entry is None:
            self._happen(self._kept[move.run], move.until)
        elif move.entry.kind == "typed":
            self._typed(move.entry)
        else:
            branch = self._on_desk(move.entry.text)
            branch.state, branch.why = move.entry.state, move.entry.why  # type: ignore[assignment]
            self._say(pictures.ending(branch))

    def _typed(self, entry: Entry) -> None:
        at = self.current.name if self.current else "abduce"
        self._say(Text.assemble((f"{at}▸ ", "bold cyan"), entry.text))
        word, _, rest = entry.text.partition(" ")
        if word in LOOKING and word != "export":
            self._say(self.look(word, rest.strip()))
        if entry.current:
            self.current = self._on_desk(entry.current)

    def _happen(self, kept: Kept, until: int) -> None:
        branch = self._on_desk(kept.head["run"])
        branch.state, branch.why = "running", ""
        try:
            for row in kept.events[len(branch.lines) : until]:
                branch.take(orjson.dumps(row), event_of(row))
        except (LookupError, TypeError, ValueError, AttributeError):
            raise UsageError(f"{self.file} is damaged: an event of run {branch.name} is none.") from None
        branch.marks[:] = [mark for mark in kept.head["marks"] if mark <= until]

    def _on_desk(self, name: str) -> Branch:
        if name not in self.branches:
            head = self._kept[name].head
            self.branches[name] = Branch(name, head["id"], head["record"], head["parent"])
        return self.branches[name]

    def _goto(self, text: str) -> RenderableType:
        [where] = words("goto", text, 1, 1)
        run, colon, number = where.rpartition(":")
        if not number.isdecimal():
            self.current = self.branch(where)
            return pictures.ending(self.current)
        name = self.branch(run).name if colon else self.here().name
        event = _found(self._kept[name], int(number))
        there = (i for i, move in enumerate(self.moves, 1) if move.run == name and move.until > event)
        self._go(next(there))
        self.current = self.branches[name]
        return pictures.ending(self.current)

    def _say(self, shown: RenderableType) -> None:
        if not self._quiet:
            self._tell(shown)


def _found(kept: Kept, number: int) -> int:
    """The place of the event that tells of a node. Raises UsageError if none does."""
    n_nodes = 0
    for i, row in enumerate(kept.events):
        if row["event"] == "noted" and row["note"] == "nodes":
            n_nodes += len(row["data"].get("nodes", ()))
            if n_nodes >= number > 0:
                return i
    raise UsageError(f"No node {number} in run {kept.head['run']}. In the end it has {n_nodes}.")
