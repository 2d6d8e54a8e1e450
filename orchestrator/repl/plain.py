"""A sitting in lines: for scripts, pipes, and terminals that cannot redraw.

Each command waits until its run stands still. Ctrl-C meanwhile pauses the run; a second one cuts it off.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue

from rich.console import Console, RenderableType
from rich.text import Text

from ...serving import redact
from ...serving.errors import AbduceError, UsageError
from . import pictures
from .sitting import Sitting

_WIDTH = 100  # of what goes to a file or pipe
_FIRST_S, _EVERY_S = 0.2, 2.0  # until the first sign of life, and between two


class Plain:
    """`sitting` must tell `told`."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False, emoji=False)
        if not self.console.is_terminal:
            self.console.width = _WIDTH
        self._news: SimpleQueue[RenderableType] = SimpleQueue()

    def told(self, shown: RenderableType) -> None:
        """Something happened in a run; it is shown before the next command."""
        self._news.put(shown)

    def script(self, sitting: Sitting, lines: Iterator[str], name: str) -> int:
        """Carry out a file's lines, as if they were typed; the first mistake ends it. Raises UsageError."""
        for number, text in enumerate(lines, 1):
            line = text.strip()
            if not line or line.startswith("#"):
                continue
            self.show(Text.assemble((prompt(sitting), "bold cyan"), line))
            try:
                if not self._carried_out(sitting, line):
                    break
            except UsageError as error:
                raise UsageError(f"{name}:{number}: {error}") from None
        failed = any(branch.state == "failed" for branch in sitting.branches.values())
        return 1 if failed else 0

    def talk(self, sitting: Sitting, read: Callable[[str], str] = input) -> int:
        """Read commands and carry them out until the end of input."""
        self.show(Text(WELCOME, style="dim"))
        while True:
            try:
                line = read(pictures.ascii_only(prompt(sitting))).strip()
                if line and not self._carried_out(sitting, line):
                    return 0
            except AbduceError as error:
                self.show(Text(redact.text(str(error)), style="red"))
            except KeyboardInterrupt:
                self._interrupted(sitting)
            except EOFError:
                return 0

    def show(self, shown: RenderableType) -> None:
        """Print, as far as the terminal has the characters."""
        with self.console.capture() as captured:
            self.console.print(shown)
        text = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
        if not self.console.encoding.lower().startswith("utf"):
            text = pictures.ascii_only(text)
        self.console.file.write(text)
        self.console.file.flush()

    def _carried_out(self, sitting: Sitting, line: str) -> bool:
        """Do one line; False if it says to leave."""
        try:
            for shown in sitting.do(line):
                self.show(shown)
        except UsageError:
            self._drain()
            raise
        self._wait(sitting)
        self._drain()
        if sitting.replay is not None and (branch := sitting.replay.current) is not None:
            self.show(pictures.figures_line(branch))
        return line not in ("quit", "exit")

    def _interrupted(self, sitting: Sitting) -> None:
        """Ctrl-C: pause, or with a second one cut off, and wait for that."""
        while True:
            try:
                if (shown := sitting.interrupt()) is not None:
                    self.show(shown)
                self._wait(sitting)
                self._drain()
            except KeyboardInterrupt:
                continue
            else:
                return

    def _wait(self, sitting: Sitting) -> None:
        """Until the run stands still; a terminal is given signs of life."""
        seen, patience_s = -1, _FIRST_S
        while not sitting.wait(patience_s):
            branch, patience_s = sitting.current, _EVERY_S
            if self.console.is_terminal and branch is not None and len(branch.lines) != seen:
                seen = len(branch.lines)
                self.show(pictures.figures_line(branch))

    def _drain(self) -> None:
        with suppress(Empty):
            while True:
                self.show(self._news.get_nowait())


WELCOME = "Type a problem, e.g. 24 x 3. help tells all commands, quit leaves."


def prompt(sitting: Sitting) -> str:
    """What stands before a command: the run looked at, and how far a replay has come."""
    at = sitting.front.current.name if sitting.front.current is not None else "abduce"
    if sitting.replay is not None:
        return f"replay {sitting.replay.done}/{len(sitting.replay.moves)} {at}▸ "
    asking = sitting.current is not None and sitting.current.state == "asking"
    return f"{at}{'?' if asking else ''}▸ "


def farewell(sitting: Sitting) -> list[str]:
    """How to go on with what is unfinished."""
    return [
        f"{each.name} is unfinished. Go on with: abduce resume {each.run}" for each in sitting.unfinished()
    ]


def is_dumb(console: Console) -> bool:
    """Whether lines are all that can be shown."""
    return console.is_dumb_terminal or not (sys.stdin.isatty() and sys.stdout.isatty())
