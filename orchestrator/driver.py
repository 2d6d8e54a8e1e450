"""The driver: the only place where requests are carried out.

It sends each batch of a flow to the services concurrently and owns concurrency limits, retries, the
budget, the journal, the trace, cancellation and deadlines.

    flow ──batch──► driver ──► journal? ──► ledger ──► engine | tool | memory | human
         ◄─replies─        ◄── commit ◄── settle ◄───────────┘

A request that fails is answered with a `Failure`. A batch of which nothing was affordable throws
`BudgetExhausted` into the flow, which returns its best so far.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from math import inf
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

from ..serving import redact
from ..serving.errors import BudgetExhausted, EngineError, SearchEnded, TransientError, UsageError
from ..serving.flow import (
    Ask,
    CallTool,
    Failure,
    Flow,
    Fork,
    Generate,
    LogProb,
    Note,
    Promise,
    Prompt,
    Recall,
    Remember,
    Request,
    Usage,
    Wait,
)
from ..serving.seeds import derive
from .clock import Clock
from .journal import Entry, Journal
from .ledger import Budget, Ledger, Need
from .services import Halt, Services, Switchboard
from .together import all_then_raise, cancel, together
from .trace import Called, Event, Exhausted, Noted, Observer, Path

T = TypeVar("T")
Gate: TypeAlias = Callable[[Path, Sequence[Request]], Awaitable[None]]
"""Awaited before each batch of each flow, with the batch's path: who steps through a run holds it there."""

log = redact.guard(logging.getLogger(__name__))


class Driver:
    """Carries out one run, or one visit of a node in a run of several: `root` is then the beginning of all
    its paths, `ledger` the account of the whole run and `elapsed_s` how long it has been going on."""

    def __init__(
        self,
        services: Services,
        *,
        seed: int = 0,
        budget: Budget | None = None,
        journal: Journal | None = None,
        observers: Iterable[Observer] = (),
        concurrency: int | None = None,
        retries: int = 2,
        backoff_s: float = 0.2,
        root: Path = (),
        ledger: Ledger | None = None,
        elapsed_s: float | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.services = services
        self.budget = budget or Budget()
        self.ledger = ledger or Ledger(self.budget)
        self._limited = self.ledger.limited
        self.journal = journal
        self._observers = tuple(observers)
        self._switchboard = Switchboard(services, seed=seed, concurrency=concurrency, depth=len(root))
        self._retries = retries
        self._backoff_s = backoff_s
        self._calls: set[asyncio.Task[Any]] = set()  # calls a deadline would cancel
        self._expired = False
        self._deadline = inf  # in seconds since the run began
        self._cut_short = False  # a branch ran into a limit
        self._open: set[Path] = set()  # forks and branches not begun, batches not delivered, if cancelled now
        self._cut: set[Path] = set()  # the same, of branches that lost their race before a resume
        self._root = root
        self._before_s = elapsed_s
        self._gate = gate
        self._clock = Clock()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began, time before a resume included, time at the gate left out."""
        return self._clock.elapsed_s

    async def run(self, flow: Flow[T]) -> T:
        """Run a flow to its end and return what it returns. Raises what the flow raises, and what an engine
        raises that cannot be made ready; the clock starts once all are."""
        for engine in {id(engine): engine for engine in self.services.engines.values()}.values():
            await engine.ready()
        before = self._before_s
        if before is None:
            before = self.journal.elapsed_s if self.journal else 0.0
        self._clock.start(before)
        if self.budget.seconds is None:
            return await self._drive(flow, self._root)
        self._deadline = self.budget.seconds
        self._clock.set_alarm(self._deadline, self._expire)
        try:
            return await self._drive(flow, self._root)
        finally:
            self._clock.cancel_alarm()

    # ------------------------------------------------------------ flows

    async def _drive(self, flow: Flow[T], path: Path, *, replay_only: bool = False) -> T:
        """One flow, batch by batch. `replay_only` runs a branch that lost its race before a resume."""
        turn = 0
        here: Path = path
        is_branch = path != self._root
        self._open.discard(path)
        try:
            if path in self._cut:
                raise _Unanswered
            batch = next(flow)
            while True:
                here = (*path, turn)
                turn += 1
                try:
                    if self._gate is not None and any(type(request) is not Wait for request in batch):
                        with self._clock.held():
                            await self._gate(here, batch)
                    replies = await self._batch(batch, here, replay_only)
                    if turn % _BREATH == 0:
                        await asyncio.sleep(0)
                except SearchEnded as end:
                    self._emit(Exhausted(here, str(end), self.elapsed_s))
                    if is_branch:
                        self._cut_short = True
                    else:
                        self.ledger.open_reserve()
                    batch = flow.throw(end)
                else:
                    if self._cut_short and not is_branch:  # nothing is in flight, and the end was swallowed
                        self.ledger.open_reserve()
                    batch = flow.send(replies)
        except StopIteration as end:
            result: T = end.value
            return result
        except asyncio.CancelledError:
            self._open.add(here)
            raise
        finally:
            flow.close()

    async def _batch(self, batch: Sequence[Request], path: Path, replay_only: bool) -> list[Any]:
        replies: list[Any] = [None] * len(batch)
        waiting: list[int] = []
        for i, request in enumerate(batch):
            if type(request) is Note:
                self._note(request, (*path, i))
            else:
                waiting.append(i)
        if len(waiting) == 1:
            [i] = waiting
            replies[i] = await self._answer(batch[i], (*path, i), replay_only)
        elif waiting:
            self._open.update((*path, i) for i in waiting if type(batch[i]) is Fork)
            calls = (self._answer(batch[i], (*path, i), replay_only) for i in waiting)
            answers = await (all_then_raise if replay_only else together)(calls)
            for i, answer in zip(waiting, answers, strict=True):
                replies[i] = answer
        if path in self._cut:
            raise _Unanswered
        refused = [reply for reply in replies if type(reply) is BudgetExhausted]
        if refused and len(refused) == len(waiting):
            raise refused[0]
        if refused:
            return [Failure("budget", str(r)) if type(r) is BudgetExhausted else r for r in replies]
        return replies

    def _note(self, note: Note, path: Path) -> None:
        if note.reward_passes:
            self.ledger.charge(Usage(reward_passes=note.reward_passes))
        if self._observers:
            self._emit(Noted(path, note.kind, note.data, self.elapsed_s))

    async def _fork(self, fork: Fork, path: Path, replay_only: bool) -> tuple[Any, ...]:
        self._open.discard(path)
        if path in self._cut:
            raise _Unanswered
        self._open.update((*path, b) for b in range(len(fork.flows)))
        if fork.until is not None:
            self._switchboard.races.add(path)
        if fork.until is None:
            branches = (self._branch(flow, (*path, b), replay_only) for b, flow in enumerate(fork.flows))
            return tuple(await (all_then_raise if replay_only else together)(branches))
        return await self._race(fork.flows, fork.until, path, replay_only)

    async def _race(
        self,
        flows: Sequence[Flow[Any]],
        until: Callable[[Mapping[int, Any]], bool],
        path: Path,
        replay_only: bool,
    ) -> tuple[Any, ...]:
        known = self.journal.get(path, _RACE) if self.journal else None
        if known is not None and max(known.reply[0], default=0) >= len(flows):
            known = None  # inherited from a run whose race had more branches
        began = self.elapsed_s
        lost: list[Any] = [Failure("cancelled", "another branch won")] * len(flows)
        if known is not None or replay_only:
            winners, cut = known.reply if known is not None else ((), ())
            self._cut.update(cut)
            branches = (
                self._branch(flow, (*path, b), False) if b in winners else self._lost(flow, (*path, b))
                for b, flow in enumerate(flows)
            )
            results = await together(branches)
            return tuple(r if b in winners else lost[b] for b, r in enumerate(results))
        tasks = {
            asyncio.ensure_future(self._branch(flow, (*path, b), False)): b for b, flow in enumerate(flows)
        }
        ended: dict[int, Any] = {}
        try:
            running = set(tasks)
            while running and not (ended and until(ended)):
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=tasks.__getitem__):
                    result = task.result()  # a bug reaches the caller, from a loser too
                    if not (ended and until(ended)):
                        ended[tasks[task]] = result
        finally:
            await cancel(tasks)
        if self.journal is not None:
            cut = tuple(sorted(p for p in self._open if p[: len(path)] == path))
            entry = Entry((tuple(ended), cut), Usage(), began, self.elapsed_s - began)
            await self.journal.append(path, _RACE, entry)
        return tuple(ended.get(b, lost[b]) for b in range(len(flows)))

    async def _branch(self, flow: Flow[Any], path: Path, replay_only: bool) -> Any:
        try:
            return await self._drive(flow, path, replay_only=replay_only)
        except BudgetExhausted as end:
            return Failure("budget", str(end))

    async def _lost(self, flow: Flow[Any], path: Path) -> None:
        """Replay a branch that lost its race as far as it got: what it spent and noted counts."""
        with suppress(_Unanswered):
            await self._branch(flow, path, True)

    # ------------------------------------------------------------ requests

    def _answer(self, request: Request, path: Path, replay_only: bool) -> Coroutine[Any, Any, Any]:
        """The reply to one request, or the BudgetExhausted that refused it."""
        if type(request) is Fork:
            return self._fork(request, path, replay_only)
        if type(request) is Wait:
            return _kept(request.promise)
        if type(request) is Generate and request.n > 1 and self._limited:
            return self._samples(request, path, replay_only)
        return self._reply(request, path, replay_only)

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
        if self.journal is None:
            return self._call(request, path)
        return self._replay(self.journal, request, path, replay_only)

    async def _replay(self, journal: Journal, request: Request, path: Path, replay_only: bool) -> Any:
        entry = journal.get(path, request)
        if entry is None:
            if replay_only:
                raise _Unanswered
            return await self._call(request, path)
        self.ledger.charge(entry.usage)
        if self._observers and type(entry.reply) is not BudgetExhausted:
            self._emit(Called(path, request, *entry, replayed=True))
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
                need = self.ledger.reserve_at_once(wanted) or await self._wait_for(wanted)
                if need is not wanted:
                    asked = replace(request, n=need.samples)
            try:
                if self.journal is not None and type(request) is CallTool and self._switchboard.once(request):
                    # Holds if the run is cut off before there is another reply: the tool is not called again.
                    unfinished = Failure("tool", UNFINISHED.format(request.name))
                    await self.journal.append(path, request, Entry(unfinished, _price(request), began, 0.0))
                with self._clock.held() if type(request) is Ask else _GOING:
                    reply, spent, attempts = await self._try(asked, path, fault)
            finally:
                if need is not None:
                    self.ledger.settle(need, spent)
                else:
                    self.ledger.charge(spent)
        except BudgetExhausted as end:
            reply = end
        took = perf_counter() - self._clock.zero - began
        try:
            if self.journal is not None:
                await self.journal.append(path, request, Entry(reply, spent, began, took))
        finally:  # cancelled meanwhile, it is stored and spent all the same
            if self._observers and type(reply) is not BudgetExhausted:
                self._emit(Called(path, request, reply, spent, began, took, attempts))
        return reply

    async def _wait_for(self, wanted: Need) -> Need:
        """Wait until the budget has room for a call. Raises BudgetExhausted if it must not start."""
        need = await self.ledger.reserve(wanted)
        if self._expired or self.elapsed_s >= self._deadline:
            self.ledger.settle(need, _NOTHING)
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
                    if not self.ledger.promise_again(once):
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
                self.ledger.take_back(_price(request), failed)

    def _expire(self) -> None:
        self._expired = True
        for task in self._calls:
            task.cancel()

    def _out_of_time(self) -> BudgetExhausted:
        return BudgetExhausted("seconds", self.budget.seconds or 0.0)

    def _need(self, request: Any) -> Need:
        kind = type(request)
        if kind in _FAULTS:
            return Need.of(calls=0, tool_calls=int(kind is CallTool))
        engine = self.services.engine(request.model)
        tokens = engine.count_tokens(request.prompt)
        if kind is Generate:
            return Need.of(input_tokens=tokens, output_cap=request.sampling.max_tokens, samples=request.n)
        if kind is LogProb:
            ids = request.continuation_ids
            tokens += len(ids) if ids else engine.count_tokens(Prompt(prefix=request.continuation))
        return Need.of(input_tokens=tokens)

    def _emit(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                log.exception("An observer failed and is told no more: %r", observer)
                self._observers = tuple(other for other in self._observers if other is not observer)


_NOTHING = Usage()
_GOING = nullcontext()
_RACE: tuple[int, ...] = ()  # a race is filed under it; the reply: branches as they ended, what was cut off
_BREATH = 64  # batches of a flow between turns of the event loop, where nothing else gives it one
_FAULTS: dict[type, str] = {CallTool: "tool", Recall: "memory", Remember: "memory", Ask: "human"}


def _price(request: Any) -> Usage:
    """What an attempt counts of which nothing more is known."""
    kind = type(request)
    return Usage(calls=int(kind not in _FAULTS), tool_calls=int(kind is CallTool))


UNFINISHED = "{} was called before this run was cut off; whether it did its work is not known."


async def _kept(promise: Promise) -> Any:
    if not promise.given:
        given = asyncio.Event()
        promise.then(given.set)
        await given.wait()
    return promise.value


class _Unanswered(Exception):
    """A branch that lost its race got no further than this."""
