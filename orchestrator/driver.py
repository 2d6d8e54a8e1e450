"""The driver: carries out flows.

It sends each batch of a flow to the dispatcher, all its requests at once, and the replies back; runs the
branches of forks side by side, and ends races, searches whose budget is spent, and runs at their deadline.

    flow ──batch──► driver ──request──► dispatcher ──► engine | tool | memory | human
         ◄─replies─   └── forks, races, notes        (`dispatch.py`)

A batch of which nothing was affordable throws `BudgetExhausted` into the flow, which returns its best so far.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from ..serving.errors import BudgetExhausted, SearchEnded
from ..serving.flow import Failure, Flow, Fork, Note, Promise, Request, Usage, Wait
from .clock import Clock
from .dispatch import Dispatcher, Unanswered
from .journal import Entry, Journal
from .ledger import Budget, Ledger
from .services import Services, Switchboard
from .together import all_then_raise, cancel, together
from .trace import Exhausted, Noted, Observer, Path

T = TypeVar("T")
Gate: TypeAlias = Callable[[Path, Sequence[Request]], Awaitable[None]]
"""Awaited before each batch of each flow, with the batch's path: who steps through a run holds it there."""


class Driver:
    """Carries out one run, or one visit of a node in a run of several: `root` is then the beginning of all
    its paths, `ledger` the account of the whole run and `elapsed_s` how long it has been going on.

    `run` is the name of a run that can be cut off and go on: what was written to a memory and not yet stored
    in the journal is then not written again."""

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
        run: str = "",
        ledger: Ledger | None = None,
        elapsed_s: float | None = None,
        gate: Gate | None = None,
    ) -> None:
        budget = budget or Budget()
        self.ledger = ledger or Ledger(budget)
        self._engines = tuple({id(engine): engine for engine in services.engines.values()}.values())
        self._journal = journal
        self._switchboard = Switchboard(
            services, seed=seed, concurrency=concurrency, depth=len(root), run=run
        )
        self._clock = Clock()
        self._seconds = budget.seconds
        self._dispatcher = Dispatcher(
            services,
            self._switchboard,
            clock=self._clock,
            ledger=self.ledger,
            journal=journal,
            observers=observers,
            seconds=budget.seconds,
            retries=retries,
            backoff_s=backoff_s,
        )
        self._cut_short = False  # a branch ran into a limit
        self._open: set[Path] = set()  # forks and branches not begun, batches not delivered, if cancelled now
        self._cut: set[Path] = set()  # the same, of branches that lost their race before a resume
        self._root = root
        self._before_s = elapsed_s
        self._gate = gate

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began, time before a resume included, time at the gate left out."""
        return self._clock.elapsed_s

    async def run(self, flow: Flow[T]) -> T:
        """Run a flow to its end and return what it returns. Raises what the flow raises, and what an engine
        raises that cannot be made ready; the clock starts once all are."""
        for engine in self._engines:
            await engine.ready()
        before = self._before_s
        if before is None:
            before = self._journal.elapsed_s if self._journal else 0.0
        self._clock.start(before)
        if self._seconds is None:
            return await self._drive(flow, self._root)
        self._clock.set_alarm(self._seconds, self._dispatcher.expire)
        try:
            return await self._drive(flow, self._root)
        finally:
            self._clock.cancel_alarm()

    async def _drive(self, flow: Flow[T], path: Path, *, replay_only: bool = False) -> T:
        """One flow, batch by batch. `replay_only` runs a branch that lost its race before a resume."""
        turn = 0
        here: Path = path
        is_branch = path != self._root
        self._open.discard(path)
        try:
            if path in self._cut:
                raise Unanswered
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
                    self._dispatcher.emit(Exhausted(here, str(end), self.elapsed_s))
                    met = self.ledger.is_met_by(end)
                    if is_branch:
                        self._cut_short |= met
                    elif met:
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
                continue
            waiting.append(i)
            if type(request) is Fork:
                self._open.add((*path, i))
        if len(waiting) == 1:
            [i] = waiting
            replies[i] = await self._answer(batch[i], (*path, i), replay_only)
        elif waiting:
            calls = (self._answer(batch[i], (*path, i), replay_only) for i in waiting)
            answers = await (all_then_raise if replay_only else together)(calls)
            for i, answer in zip(waiting, answers, strict=True):
                replies[i] = answer
        if path in self._cut:
            raise Unanswered
        refused = [reply for reply in replies if type(reply) is BudgetExhausted]
        if refused and len(refused) == len(waiting):
            raise refused[0]
        if refused:
            return [Failure("budget", str(r)) if type(r) is BudgetExhausted else r for r in replies]
        return replies

    def _note(self, note: Note, path: Path) -> None:
        if note.reward_passes:
            self.ledger.charge(Usage(reward_passes=note.reward_passes))
        if self._dispatcher.observers:
            self._dispatcher.emit(Noted(path, note.kind, note.data, self.elapsed_s))

    async def _fork(self, fork: Fork, path: Path, replay_only: bool) -> tuple[Any, ...]:
        self._open.discard(path)
        if path in self._cut:
            raise Unanswered
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
        known = self._journal.get(path, _RACE) if self._journal else None
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
        if self._journal is not None:
            cut = tuple(sorted(p for p in self._open if p[: len(path)] == path))
            entry = Entry((tuple(ended), cut), Usage(), began, self.elapsed_s - began)
            await self._journal.append(path, _RACE, entry)
        return tuple(ended.get(b, lost[b]) for b in range(len(flows)))

    async def _branch(self, flow: Flow[Any], path: Path, replay_only: bool) -> Any:
        try:
            return await self._drive(flow, path, replay_only=replay_only)
        except BudgetExhausted as end:
            return Failure("budget", str(end))

    async def _lost(self, flow: Flow[Any], path: Path) -> None:
        """Replay a branch that lost its race as far as it got: what it spent and noted counts."""
        with suppress(Unanswered):
            await self._branch(flow, path, True)

    def _answer(self, request: Request, path: Path, replay_only: bool) -> Coroutine[Any, Any, Any]:
        """The reply to one request, or the BudgetExhausted that refused it."""
        if type(request) is Fork:
            return self._fork(request, path, replay_only)
        if type(request) is Wait:
            return _kept(request.promise)
        return self._dispatcher.answer(request, path, replay_only)


_RACE: tuple[int, ...] = ()  # a race is filed under it; the reply: branches as they ended, what was cut off
_BREATH = 64  # batches of a flow between turns of the event loop, where nothing else gives it one


async def _kept(promise: Promise) -> Any:
    if not promise.given:
        given = asyncio.Event()
        promise.then(given.set)
        await given.wait()
    return promise.value
