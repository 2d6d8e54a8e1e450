"""The searches of one request: as many as it wants answers, each with its own seed, and what they spend."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

from ...serving.flow import Completion, Failure, Generate, Usage
from ...serving.seeds import derive
from ...strategies.base import Result
from ..doors import Doors
from ..trace import Called, Event, Exhausted, Noted, Observer
from .asked import Asked


@dataclass
class Progress:
    """An observer of all searches of a request: what was spent so far, also if they are cut off, and what
    there is to tell."""

    began: float = field(default_factory=time.perf_counter)
    usage: Usage = field(default_factory=Usage)
    nodes: int = 0
    best_score: float | None = None
    event: str = ""
    exhausted: bool = False
    failed: int = 0  # the status that a stream which broke off would have had
    told: Callable[[], None] | None = None  # called when something happened
    sample: Completion | None = None  # the first one drawn

    def __call__(self, event: Event) -> None:
        """Hear of one event."""
        if type(event) is Called:
            self.usage += event.usage
            self.event = type(event.request).__name__.lower()
            drawn = event.reply
            if self.sample is None and type(event.request) is Generate and not isinstance(drawn, Failure):
                self.sample = drawn[0]
        elif type(event) is Noted:
            self.event = event.note
            self._note(event)
        elif type(event) is Exhausted:
            self.event, self.exhausted = "exhausted", True
        else:
            return
        if self.told is not None:
            self.told()

    def _note(self, event: Noted) -> None:
        if event.note == "nodes":
            self.nodes += len(event.data["nodes"])
        elif event.note == "scores":
            found = [score for score in event.data["scores"].values() if score is not None]
            self.best_score = max(
                [*found, *([] if self.best_score is None else [self.best_score])], default=None
            )

    @property
    def seconds(self) -> float:
        """Since the request was admitted."""
        return time.perf_counter() - self.began


async def answers(pipeline: Doors, asked: Asked, *observers: Observer) -> list[Result]:
    """The results of `asked.n` searches. The first has the request's own seed, so that it is the same
    whatever `n` is."""
    seeds = [asked.seed, *(derive(asked.seed, "choice", i) for i in range(1, asked.n))]
    if asked.n == 1:
        return [await pipeline.asolve(asked.task, seed=asked.seed, observers=observers)]
    return await _all(pipeline.asolve(asked.task, seed=seed, observers=observers) for seed in seeds)


async def _all(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results; if one fails or we are cancelled, none goes on."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await stopped(tasks)


async def stopped(tasks: Iterable["asyncio.Future[Any]"]) -> None:
    """Cancel what is not done and wait until it has let go."""
    tasks = [task for task in tasks if not task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
