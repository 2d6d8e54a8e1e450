"""What becomes of one request: the only place where a service is asked.

    request ─► journal? ─► deadline, ledger ─► service ─► settle ─► commit ─► trace ─► reply
                                                 └──◄──┘ again after a transient fault

A request that fails is answered with a `Failure`; one that was not affordable, or came too late, with the
`BudgetExhausted` that says so.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from math import inf
from time import perf_counter
from typing import Any

from ..serving import redact
from ..serving.errors import BudgetExhausted, EngineError, TransientError, UsageError
from ..serving.flow import (
    Ask,
    CallTool,
    Failure,
    Generate,
    LogProb,
    Prompt,
    Recall,
    Remember,
    Request,
    Usage,
)
from ..serving.seeds import derive
from .clock import Clock
from .journal import Entry, Journal
from .ledger import Ledger, Need
from .services import Halt, Services, Switchboard
from .trace import Called, Event, Observer, Path

log = redact.guard(logging.getLogger(__name__))


class Unanswered(Exception):
    """A branch that lost its race before a resume got no further than this."""


class Dispatcher:
    """Answers the requests of one run, or of one visit of a node in a run of several."""

    def __init__(
        self,
        services: Services,
        switchboard: Switchboard,
        *,
        clock: Clock,
        ledger: Ledger,
        journal: Journal | None,
        observers: Iterable[Observer],
        seconds: float | None,
        retries: int,
        backoff_s: float,
    ) -> None:
        self._services = services
        self._switchboard = switchboard
        self._clock = clock
        self._ledger = ledger
        self._limited = ledger.limited
        self._journal = journal
        self.observers = tuple(observers)
        self._seconds = seconds
        self._deadline = inf if seconds is None else seconds  # since the run began
        self._expired = False
        self._calls: set[asyncio.Task[Any]] = set()  # calls a deadline would cancel
        self._retries = retries
        self._backoff_s = backoff_s

    def answer(self, request: Request, path: Path, replay_only: bool) -> Coroutine[Any, Any, Any]:
        """The reply, or the BudgetExhausted that refused it. With `replay_only` it must be in the journal, or
        Unanswered is raised."""
        if type(request) is Generate and request.n > 1 and self._limited:
            return self._samples(request, path, replay_only)
        return self._reply(request, path, replay_only)

    def expire(self) -> None:
        """The deadline is reached: whoever waits for a service waits no longer."""
        self._expired = True
        for task in self._calls:
            task.cancel()

    def emit(self, event: Event) -> None:
        """Tell those who watch; one that fails is told no more."""
        for observer in self.observers:
            try:
                observer(event)
            except Exception:
                log.exception("An observer failed and is told no more: %r", observer)
                self.observers = tuple(other for other in self.observers if other is not observer)

    async def _samples(self, request: Generate, path: Path, replay_only: bool) -> Any:
        """Many samples, in as many calls as the budget makes of them: those it had no room for at first are
        asked for once it is known what the first have used."""
        reply = await self._reply(request, path, replay_only)
        while isinstance(reply, tuple) and 0 < len(reply) < request.n:
            drawn = len(reply)
            seed = None if request.seed is None else derive(request.seed, "rest", drawn)
            more = await self._reply(
                replace(request, n=request.n - drawn, seed=seed), (*path, drawn), replay_only
            )
            if not isinstance(more, tuple) or not more:
                break
            reply += more
        return reply

    def _reply(self, request: Request, path: Path, replay_only: bool) -> Coroutine[Any, Any, Any]:
        if self._journal is None:
            return self._call(request, path)
        return self._replay(self._journal, request, path, replay_only)

    async def _replay(self, journal: Journal, request: Request, path: Path, replay_only: bool) -> Any:
        entry = journal.get(path, request)
        if entry is None:
            if replay_only:
                raise Unanswered
            return await self._call(request, path)
        self._ledger.charge(entry.usage)
        if self.observers and type(entry.reply) is not BudgetExhausted:
            self.emit(Called(path, request, *entry, replayed=True))
        return entry.reply

    async def _call(self, request: Any, path: Path) -> Any:
        began = perf_counter() - self._clock.zero
        spent, attempts = _NOTHING, 1
        need, asked, fault = None, request, None
        try:
            if self._expired or began >= self._deadline:
                raise self._out_of_time()
            if self._limited:
                try:
                    wanted = self._need(request)
                except Exception as error:  # what it needs cannot be told: it fails, for the price of a call
                    wanted, fault = Need.of(), error
                need = self._ledger.reserve_at_once(wanted) or await self._wait_for(wanted)
                if need is not wanted:
                    asked = replace(request, n=need.samples)
            try:
                if type(request) is CallTool and self._journal is not None:
                    await self._begin(self._journal, request, path, began)
                if type(request) is Ask:
                    with self._clock.held():
                        reply, spent, attempts = await self._try(asked, path, fault)
                else:
                    reply, spent, attempts = await self._try(asked, path, fault)
            finally:
                if need is not None:
                    self._ledger.settle(need, spent)
                else:
                    self._ledger.charge(spent)
        except BudgetExhausted as end:
            reply = end
        took = perf_counter() - self._clock.zero - began
        try:
            if self._journal is not None:
                await self._journal.append(path, request, Entry(reply, spent, began, took))
        finally:  # cancelled meanwhile, it is stored and spent all the same
            if self.observers and type(reply) is not BudgetExhausted:
                self.emit(Called(path, request, reply, spent, began, took, attempts))
        return reply

    async def _begin(self, journal: Journal, request: CallTool, path: Path, t: float) -> None:
        """Store what holds of a tool that must not be called twice if the run is cut off before its reply."""
        if self._switchboard.once(request):
            unfinished = Failure("tool", UNFINISHED.format(request.name))
            await journal.append(path, request, Entry(unfinished, _price(request), t, 0.0))

    async def _wait_for(self, wanted: Need) -> Need:
        """Wait until the budget has room for a call. Raises BudgetExhausted if it must not start."""
        need = await self._ledger.reserve(wanted)
        if self._expired or self._clock.elapsed_s >= self._deadline:
            self._ledger.settle(need, _NOTHING)
            raise self._out_of_time()
        return need

    async def _try(self, request: Any, path: Path, fault: Exception | None) -> tuple[Any, Usage, int]:
        """Carry a request out, again after a transient fault. Returns reply, usage and attempts.

        The deadline, and only it, turns the call's cancellation into a BudgetExhausted, as the reply."""
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        spent, attempt, failed = _NOTHING, 1, 0
        try:
            while True:
                try:
                    if fault is not None:
                        raise fault
                    served = await self._switchboard.serve(request, path)
                except TransientError as error:
                    once, tried = _price(request), f"{error} (tried {attempt} times"
                    if attempt > self._retries:
                        return Failure("engine", f"{tried})"), spent + once, attempt
                    if not self._ledger.promise_again(once):
                        return Failure("engine", f"{tried}; another is over budget)"), spent + once, attempt
                    spent, failed = spent + once, attempt
                    await asyncio.sleep(self._backoff_s * 2 ** (attempt - 1))
                    attempt += 1
                except Halt:
                    raise
                except Exception as error:
                    kind = _FAULTS.get(type(request), "engine")
                    if isinstance(error, UsageError) and kind == "engine":
                        raise  # no weights, no package: for the user to mend
                    log.debug("%s failed", type(request).__name__, exc_info=True)
                    known = isinstance(error, EngineError)
                    reason = str(error) if known else redact.text(f"{type(error).__name__}: {error}")
                    return Failure(kind, reason), spent + _price(request), attempt
                else:
                    return served.value, spent + served.usage if failed else served.usage, attempt
        except asyncio.CancelledError:
            if self._expired and not task.uncancel():
                sent = failed < attempt and path not in self._switchboard.waiting
                return self._out_of_time(), spent + _price(request) if sent else spent, attempt
            raise
        finally:
            self._calls.discard(task)
            if failed:
                self._ledger.take_back(_price(request), failed)

    def _out_of_time(self) -> BudgetExhausted:
        return BudgetExhausted("seconds", self._seconds or 0.0)

    def _need(self, request: Any) -> Need:
        kind = type(request)
        if kind in _FAULTS:
            return Need.of(calls=0, tool_calls=int(kind is CallTool))
        engine = self._services.engine(request.model)
        tokens = engine.count_tokens(request.prompt)
        if kind is Generate:
            return Need.of(input_tokens=tokens, output_cap=request.sampling.max_tokens, samples=request.n)
        if kind is LogProb:
            ids = request.continuation_ids
            tokens += len(ids) if ids else engine.count_tokens(Prompt(prefix=request.continuation))
        return Need.of(input_tokens=tokens)


_NOTHING = Usage()
_FAULTS: dict[type, str] = {CallTool: "tool", Recall: "memory", Remember: "memory", Ask: "human"}

UNFINISHED = "{} was called before this run was cut off; whether it did its work is not known."


def _price(request: Any) -> Usage:
    """What an attempt counts of which nothing more is known."""
    kind = type(request)
    return Usage(calls=int(kind not in _FAULTS), tool_calls=int(kind is CallTool))
