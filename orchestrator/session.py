"""A run that is going on: its journal, its trace, its account and its clock, for one search or many.

with Session(run, budget=budget, observers=observers) as session:
    session.begin(task.question, seed, settings)
    result = await session.drive(strategy.solve(task, seed=seed), services, seed=seed)
    session.end(result)
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, TypeVar

from ..serving.flow import Flow, Usage
from ..serving.settings import register_secrets
from ..strategies.base import Result
from .driver import Driver, Gate
from .ledger import Budget, Ledger
from .runs import Run
from .services import Services
from .trace import Event, JsonLines, Observer, Path, RunEnded, RunStarted

T = TypeVar("T")


class Session:
    """Whoever opens it holds the run alone until it is closed.

    `visit` says from which visit of a node on a run of several goes on: what the trace tells of those before
    it stays, `spent` is what they consumed and `elapsed_s` how long they took.
    """

    def __init__(
        self,
        run: Run | None,
        *,
        budget: Budget,
        observers: Iterable[Observer] = (),
        concurrency: int | None = None,
        gate: Gate | None = None,
        visit: int = 0,
        spent: Usage | None = None,
        elapsed_s: float = 0.0,
    ) -> None:
        self.run = run
        self.budget = budget
        self.concurrency = concurrency
        self.gate = gate
        self.ledger = Ledger(budget)
        if spent is not None:
            self.ledger.charge(spent)
        self.elapsed_s = elapsed_s
        self._observers = list(observers)
        self._visit = visit
        self._result: Result | None = None
        self._files = ExitStack()

    def __enter__(self) -> "Session":
        register_secrets()
        self.journal = None
        self._trace: JsonLines | None = None
        with ExitStack() as files:
            if self.run is not None:
                files.enter_context(self.run.held())
                files.callback(self._keep_result)  # the trace is whole by then, and the run still held
                self.journal = self.run.journal()
                files.callback(self.journal.close)
                self._trace = JsonLines(self.run.trace, keep=self._is_past if self._visit else None)
                files.callback(self._trace.close)
                self._observers.append(self._trace)
                self.elapsed_s = max(self.elapsed_s, self.journal.elapsed_s)
            self._files = files.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._files.close()
        for observer in self._observers if error is not None else ():
            if told := getattr(observer, "broke_off", None):  # those that hold something open
                told(error)

    async def drive(self, flow: Flow[T], services: Services, *, seed: int, root: Path = ()) -> T:
        """Carry out a flow and return what it returns; `root` begins the paths of its requests."""
        driver = Driver(
            services,
            seed=seed,
            budget=self.budget,
            journal=self.journal,
            observers=self._observers,
            concurrency=self.concurrency,
            root=root,
            run=self.run.id if self.run else "",
            ledger=self.ledger,
            elapsed_s=self.elapsed_s,
            gate=self.gate,
        )
        try:
            return await driver.run(flow)
        finally:
            self.elapsed_s = max(self.elapsed_s, driver.elapsed_s)

    def begin(self, question: str, seed: int, settings: Mapping[str, Any]) -> None:
        """Tell those who watch what is asked."""
        self.emit(RunStarted(self.run.id if self.run else "", question, seed, settings))

    def end(self, result: Result) -> None:
        """Tell those who watch what came of it; a run keeps it when the session is closed."""
        self._result = result
        self.emit(RunEnded(result.answer, result.complete, result.usage, self.elapsed_s, result.diagnostics))

    def emit(self, event: Event) -> None:
        """Tell those who watch."""
        for observer in self._observers:
            observer(event)

    def flush(self) -> None:
        """Let the trace so far survive the process."""
        if self._trace is not None:
            self._trace.flush()

    def _keep_result(self) -> None:
        if self.run is not None and self._result is not None:
            self.run.finish(self._result)

    def _is_past(self, path: Path) -> bool:
        return path == () or path[0] < self._visit


async def streamed(work: Callable[[Observer], Coroutine[Any, Any, Any]]) -> AsyncIterator[Event]:
    """The events of a run as they happen. Whoever stops listening ends the run."""
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    running = asyncio.ensure_future(work(events.put_nowait))
    running.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
