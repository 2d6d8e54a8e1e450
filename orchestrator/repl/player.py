"""A run behind a gate: it goes on for as many steps as it is told, and stands still in between.

A flow comes to the gate before each of its batches. Batches that call nothing (notes, forks) pass; so do
those the journal answers, until what is known is used up. Every other batch is a step, and passes when
the run is going or a step is owed to it. A step has ended when its flow comes to the gate again, or ends.

    flow ──batch──► gate ──► known? calls nothing? ──► driver
                      └─ parked until run() or step()

Flows run in the background loop; whoever commands them is another thread.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_all
from contextlib import suppress
from math import inf
from typing import Any, TypeAlias

from ...serving import redact
from ...serving.errors import AbduceError
from ...serving.flow import Fork, Note, Request
from ...strategies.base import Result
from ..background import start
from ..driver import Gate
from ..journal import Journal
from ..services import Human
from ..trace import Called, Event, Observer, Path
from .branch import Branch
from .breakpoints import Breakpoint

Work: TypeAlias = Callable[[Gate, Observer, Human], Awaitable[Result]]
"""What is played: a search that comes to this gate, tells this observer and asks this human."""

_QUIET_TURNS = 8  # of the loop, until a run counts as standing still: a race's losers go in the meantime
_PATIENCE_S = 10.0  # with a loop that an engine holds up


class Player:
    """Plays one run, from its beginning."""

    def __init__(
        self,
        branch: Branch,
        work: Work,
        *,
        known: Journal | None = None,
        breakpoints: Sequence[Breakpoint] = (),
        told: Callable[[Branch], None] = lambda _: None,
    ) -> None:
        self.branch = branch
        self._work = work
        self._known = known
        self._paths = frozenset(known or ())
        self._breakpoints = breakpoints
        self._holds: set[Breakpoint] = set()  # those that last and hold already
        self._told = told  # called whenever the run comes to stand still
        self._owed: float = 0  # steps it may begin
        self._parked: deque[asyncio.Future[None]] = deque()
        self._active: set[asyncio.Task[Any]] = set()  # tasks whose flows are between two gates, in a step
        self._last: Event | None = None
        self._fresh = False  # past what the journal knows
        self._still = threading.Event()
        self._task: Future[Result | None] | None = None
        self._me: asyncio.Task[Any] | None = None
        self._asking = asyncio.Lock()
        self._question: asyncio.Future[str] | None = None
        self.choices: tuple[str, ...] = ()  # those of the question that is asked, if it has any

    # ------------------------------------------------------------ commands, from another thread

    def play(self, steps: float = inf) -> None:
        """Go on for so many steps, to the end without a number. The first time, what the journal knows is
        replayed before: with 0 steps, nothing else happens."""
        if self._task is None:
            self._owed = steps
            self._set("running", "")
            self._task = start(self._played())
        else:
            self._call(self._go, steps)

    def pause(self, why: str = "") -> None:
        """Begin no further step."""
        self._call(self._hold, why)

    def answer(self, text: str) -> None:
        """What the run asked for."""
        self._call(self._answer, text)

    def stop(self) -> None:
        """Cut it off: calls in flight are lost, replies that have come are kept."""
        if self._task is not None and not self._task.done():
            self._call(self._cancel)
            wait_for_all([self._task], _PATIENCE_S)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until it stands still; False if it does not within the time."""
        return self._still.wait(timeout_s)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call in the loop, where alone the state changes, and wait until that is done."""

        async def call() -> None:
            function(*arguments)

        with suppress(TimeoutError):
            start(call()).result(_PATIENCE_S)

    # ------------------------------------------------------------ in the loop

    async def _played(self) -> Result | None:
        self._me = asyncio.current_task()
        try:
            result = await self._work(self._gate, self._observe, self._ask)
        except asyncio.CancelledError:
            self._ended("stopped", "cut off")
            return None
        except Exception as error:
            told = str(error) if isinstance(error, AbduceError) else f"{type(error).__name__}: {error}"
            self._ended("failed", redact.text(told))
            return None
        else:
            self._settle(None)
            self._ended("ended", "")
            return result
        finally:
            if self._known is not None:
                self._known.close()
                self._known = None

    def _ended(self, state: Any, why: str) -> None:
        self._active.clear()
        self._parked.clear()
        self._set(state, why)
        self._told(self.branch)

    def _go(self, steps: float) -> None:
        if self.branch.state in ("paused", "pausing", "running"):
            self._owed = steps
            self._set("running", "")
            self._let_pass()

    def _hold(self, why: str) -> None:
        if self.branch.state in ("running", "pausing"):
            self._owed = 0
            self._set("pausing", why)
            self._look_whether_still()

    def _cancel(self) -> None:
        if self._me is not None:
            self._me.cancel()

    async def _gate(self, path: Path, batch: Sequence[Request]) -> None:
        calls = [(i, request) for i, request in enumerate(batch) if type(request) is not Note]
        direct = [(i, request) for i, request in calls if type(request) is not Fork]
        if not calls:
            return
        task = asyncio.current_task()
        assert task is not None
        self._settle(task)
        if not direct:  # its branches come to the gate themselves
            return
        if not self._answered(path, direct):
            self._fresh = True
            await self._pass()
        if len(direct) == len(calls):  # else it waits for branches, which may be parked
            self._active.add(task)
            task.add_done_callback(self._settle)
        else:
            self.branch.mark()

    def _answered(self, path: Path, direct: Sequence[tuple[int, Request]]) -> bool:
        """Whether the journal holds all replies to a batch."""
        known = self._known
        if known is None:
            return False
        return all(
            ".".join(map(str, (*path, i))) in self._paths and known.get((*path, i), request) is not None
            for i, request in direct
        )

    async def _pass(self) -> None:
        """Wait for a step that is owed; first come, first served."""
        if self._owed > 0 and not self._parked:
            self._owed -= 1
            return
        ticket = asyncio.get_running_loop().create_future()
        self._parked.append(ticket)
        self._look_whether_still()
        try:
            self._let_pass()
            await ticket
        finally:
            with suppress(ValueError):
                self._parked.remove(ticket)

    def _let_pass(self) -> None:
        while self._parked and self._owed > 0:
            ticket = self._parked.popleft()
            if not ticket.done():
                self._owed -= 1
                ticket.set_result(None)

    def _settle(self, task: asyncio.Task[Any] | None) -> None:
        """A task's flow is back at the gate, or has ended: its step, if it was in one, has too."""
        ended = [task] if task is not None else list(self._active)
        for each in ended:
            if each in self._active:
                self._active.discard(each)
                each.remove_done_callback(self._settle)
                self.branch.mark()
                self._look_for_breaks(True)
                self._let_pass()
                self._look_whether_still()

    def _look_whether_still(self, turns: int = _QUIET_TURNS) -> None:
        if self._active or not self._parked or self._owed > 0 or self.branch.stands:
            return
        if turns:
            asyncio.get_running_loop().call_soon(self._look_whether_still, turns - 1)
            return
        self._set("paused", self.branch.why)
        self._told(self.branch)

    async def _ask(self, question: str, choices: Sequence[str]) -> str:
        """One question at a time; the run goes on with the answer."""
        async with self._asking:
            self._question = asyncio.get_running_loop().create_future()
            self.choices = tuple(choices)
            told = f"{question} ({' or '.join(choices)})" if choices else question
            self._set("asking", told)
            self._told(self.branch)
            return await self._question

    def _answer(self, text: str) -> None:
        if self._question is not None and not self._question.done():
            self._set("running", "")
            self._question.set_result(text)

    def _observe(self, event: Event) -> None:
        self.branch(event)
        if isinstance(event, Called) and event.replayed:
            return
        self._last = event
        self._look_for_breaks(False)

    def _look_for_breaks(self, lasting: bool) -> None:
        """Of all breakpoints, or of those on amounts alone, which hit now."""
        if self._fresh and self._last is not None:
            for each in tuple(self._breakpoints):
                if each.lasts or not lasting:
                    self._hit(each, self._last)

    def _hit(self, each: Breakpoint, event: Event) -> None:
        holds = each.holds(event, self.branch.view, self.branch.steps)
        if holds and each not in self._holds:
            self._owed = 0
            if self.branch.state == "running":
                self._set("pausing", f"break on {each.text}")
        if each.lasts and holds:
            self._holds.add(each)
        else:
            self._holds.discard(each)

    def _set(self, state: Any, why: str) -> None:
        self.branch.state, self.branch.why = state, why
        if self.branch.stands:
            self._still.set()
        else:
            self._still.clear()
