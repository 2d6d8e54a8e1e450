"""The human at the terminal, for steps that ask."""

import asyncio
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from rich.console import Console
from rich.text import Text

from ..live import Screen
from ..search_view import printable
from ..services import AnswerNeeded, Human, meant
from ..trace import Observer


def at_terminal(watching: Sequence[Observer]) -> Human:
    """Whoever types: the live tree steps aside while they are asked. Where the input has ended, nobody is
    there, and the run waits."""

    async def answer(question: str, choices: Sequence[str]) -> str:
        screens = [observer for observer in watching if isinstance(observer, Screen)]
        return await _in_a_thread(lambda: _ask(question, choices, screens))

    return answer


async def _in_a_thread(read: Callable[[], str]) -> str:
    """As `asyncio.to_thread`, but in a thread that the program does not wait for at its end: after Ctrl-C
    nobody should have to press Enter too."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str] = loop.create_future()

    def settle(said: str | AnswerNeeded) -> None:
        if not done.done():
            done.set_result(said) if isinstance(said, str) else done.set_exception(said)

    def work() -> None:
        try:
            said: str | AnswerNeeded = read()
        except AnswerNeeded as need:
            said = need
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, said)

    threading.Thread(target=work, name="human", daemon=True).start()
    return await done


def _ask(question: str, choices: Sequence[str], screens: Sequence[Screen]) -> str:
    console = Console(stderr=True, highlight=False)
    aside: AbstractContextManager[None] = screens[0].aside() if screens else nullcontext()
    with aside:
        console.print(Text(printable(question), style="bold"))
        hint = f"[{' / '.join(map(printable, choices))}] " if choices else ""
        while True:
            console.print(Text(f"{hint}> "), end="")
            line = sys.stdin.readline()
            if not line:
                console.print()
                raise AnswerNeeded(question, choices)
            said = line.strip()
            if said and (not choices or (said := meant(said, choices))):
                return said
            console.print(
                Text("Type one of the choices." if choices else "Type an answer, or Ctrl-D to leave it.")
            )
