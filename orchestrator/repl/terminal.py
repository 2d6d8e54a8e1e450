"""A sitting in a terminal: the run goes on above the prompt while the next command is typed.

    tree, gauges, figures       redrawn as events come
    B▸ fork k=4   Ctrl-C pauses editing, history, completion; what can be done now

What commands show scrolls away above. Ctrl-C pauses, a second one cuts calls in flight off, Ctrl-D leaves.
"""

import io
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path as File
from queue import Empty, SimpleQueue
from typing import Any, TypeGuard

from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import set_app
from prompt_toolkit.application.run_in_terminal import run_in_terminal
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from prompt_toolkit.styles import Style
from rich.console import Console, Group, RenderableType
from rich.text import Text

from ...serving import redact
from ...serving.errors import AbduceError
from ...serving.settings import home
from ..live import tree_lines
from . import pictures
from .branch import Branch
from .completion import completions
from .language import COMMANDS
from .plain import WELCOME, prompt
from .sitting import Sitting

_STYLE = Style.from_dict(
    {
        "rprompt": "fg:ansibrightblack",
        "completion-menu": "bg:#222222 fg:#cccccc",
        "completion-menu.completion.current": "bg:#005f87 fg:#ffffff",
        "completion-menu.meta.completion": "bg:#222222 fg:#888888",
        "completion-menu.meta.completion.current": "bg:#005f87 fg:#dddddd",
    }
)
_REDRAW_S = 0.125
_TALLEST = 26  # rows of the live picture: above it, what commands have shown is to be seen


class Terminal:
    """`sitting` must tell `told`."""

    def __init__(
        self, console: Console, *, keyboard: Input | None = None, screen: Output | None = None
    ) -> None:
        self.console = console
        self._news: SimpleQueue[RenderableType] = SimpleQueue()
        self._sitting: Sitting | None = None
        self._drawn: tuple[Any, str] = (None, "")
        self._session: PromptSession[str] = PromptSession(
            history=_history(),
            auto_suggest=AutoSuggestFromHistory(),
            completer=_Completer(self),
            complete_while_typing=False,
            key_bindings=self._keys(),
            rprompt=lambda: "" if _is_drawn(self.sitting.front.current) else self._hint(),
            refresh_interval=_REDRAW_S,
            reserve_space_for_menu=0,
            erase_when_done=True,
            style=_STYLE,
            input=keyboard,
            output=screen,
        )

    @property
    def sitting(self) -> Sitting:
        """Whose commands are typed here."""
        assert self._sitting is not None
        return self._sitting

    def told(self, shown: RenderableType) -> None:
        """Something happened in a run: it is shown at once, above the prompt. Called from any thread."""
        self._news.put(shown)
        app = self._session.app
        loop = app.loop
        if app.is_running and loop is not None:

            def show() -> None:
                with set_app(app):
                    run_in_terminal(self._drain)

            with suppress(RuntimeError):  # the prompt has just ended: then it is shown before the next
                loop.call_soon_threadsafe(show)

    def talk(self, sitting: Sitting) -> int:
        """Read commands and carry them out until whoever sits here leaves."""
        self._sitting = sitting
        self._show(Text(WELCOME, style="dim"))
        while True:
            self._drain()
            try:
                line = self._session.prompt(self._message).strip()
            except EOFError:
                return 0
            if not line:
                continue
            self._show(Text.assemble("\n", (prompt(sitting), "bold cyan"), line))
            if line in ("quit", "exit"):
                return 0
            self._do(line)

    def _do(self, line: str) -> None:
        try:
            for shown in self.sitting.do(line):
                self._show(shown)
        except AbduceError as error:
            self._show(Text(redact.text(str(error)), style="red"))
        except KeyboardInterrupt:  # while a command waits for calls in flight
            self._interrupt()

    def _interrupt(self) -> None:
        if (shown := self.sitting.interrupt()) is not None:
            self._show(shown)

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("c-c")
        def _(event: KeyPressEvent) -> None:
            branch = self.sitting.current
            if event.current_buffer.text and (branch is None or branch.stands):
                event.current_buffer.reset()
            else:
                run_in_terminal(self._interrupt)

        return keys

    # ------------------------------------------------------------ drawing

    def _drain(self) -> None:
        with suppress(Empty):
            while True:
                shown = self._news.get_nowait()
                branch = self.sitting.current
                if branch is not None and branch.state == "ended" and self.sitting.replay is None:
                    self._show(self._last_tree(branch))
                self._show(shown)

    def _last_tree(self, branch: Branch) -> RenderableType:
        with branch.lock:
            lines = tree_lines(branch.view, max_lines=max(8, self.console.height - 8), numbered=True)
        for line in lines:
            line.truncate(self.console.width - 1, overflow="ellipsis")
        return Group(*lines, pictures.figures_line(branch))

    def _show(self, shown: RenderableType) -> None:
        self.console.print(shown)

    def _message(self) -> ANSI:
        """The live picture, and below it the prompt."""
        desk = self.sitting.front
        branch = desk.current
        end = f"\x1b[1;36m{prompt(self.sitting)}\x1b[0m"
        if not _is_drawn(branch):
            return ANSI(end)
        size = self._session.app.output.get_size()
        key = (branch, branch.state, len(branch.lines), branch.steps, size)
        if self._drawn[0] != key:
            height = max(8, min(size.rows * 2 // 3, _TALLEST))
            budget, hint = desk.budget(branch), self._hint()
            shown = pictures.pane(branch, budget, height=height, width=size.columns, hint=hint)
            self._drawn = key, self._as_ansi(Group(*shown), size.columns)
        return ANSI(self._drawn[1] + end)

    def _as_ansi(self, shown: RenderableType, width: int) -> str:
        paper = Console(
            file=io.StringIO(), force_terminal=True, width=width, highlight=False, markup=False, emoji=False
        )
        paper.print(shown)
        return paper.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    def _hint(self) -> str:
        """What can be done now, at the right of the prompt."""
        if self.sitting.replay is not None:
            return "step · run · back · show N · close"
        branch = self.sitting.current
        return _HINTS.get("" if branch is None else branch.state, "")


_HINTS = {
    "": "type a problem · help",
    "running": "Ctrl-C pauses",
    "pausing": "calls in flight · Ctrl-C cuts them off",
    "paused": "step · run · back · fork · show N · tree · help",
    "asking": "type the answer",
    "ended": "back · fork · show N · compare · a problem",
    "stopped": "run goes on · back · a problem",
    "failed": "run tries again · set changes the recipe",
}


def _is_drawn(branch: Branch | None) -> TypeGuard[Branch]:
    """Whether a run is shown above the prompt: once it has ended, its tree is above anyway."""
    return branch is not None and branch.state not in ("ended", "failed", "stopped")


class _Completer(Completer):
    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        name, blank, rest = text.lstrip().partition(" ")
        if blank and name in ("save", "replay", "export"):
            yield from self._files.get_completions(Document(rest, len(rest)), complete_event)
            return
        begun = text.rpartition(" ")[2]
        for word, meaning in completions(self._terminal.sitting, text):
            takes_more = not blank and word in COMMANDS and COMMANDS[word].arguments
            told = f"{word} " if takes_more else word
            yield Completion(told, -len(begun), display=word, display_meta=meaning)


class _FileHistory(FileHistory):
    """What was typed, without secrets, in a file for its owner alone."""

    def store_string(self, string: str) -> None:
        super().store_string(redact.text(string))


def _history() -> History:
    file: File = home() / "repl_history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return _FileHistory(str(file))
