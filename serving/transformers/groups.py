"""Groups of workers of one engine, served one after the other in a thread of their own."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ..errors import EngineError
from ..flow import Generate
from ..workers import Workers
from .decoding import Turn
from .model import Tokeniser

if TYPE_CHECKING:
    from .hogwild import Sharing
    from .hogwild_steps import Written


class Groups:
    """Ordinary requests go on beside them. `threads`: of the CPU, for a forward."""

    def __init__(self, *, threads: int, context: int) -> None:
        self._threads = threads
        self._context = context
        self._line = ThreadPoolExecutor(1, thread_name_prefix="abduce-workers")
        self._sharing: tuple[Any, Sharing] | None = None  # of which model
        self._stops: set[threading.Event] = set()

    async def write(
        self, model: Any, known: Tokeniser, turn: Turn, workers: Workers, seeds: Sequence[int]
    ) -> "list[Written]":
        """A transcript for each seed. Where the caller gives up, the group stops after its call."""
        stop = threading.Event()
        self._stops.add(stop)
        try:
            done = self._line.submit(self._write, model, known, turn, workers, seeds, stop)
            written = await asyncio.wrap_future(done)
            if stop.is_set():
                raise EngineError("The engine was closed.")
            return written
        finally:
            stop.set()
            self._stops.discard(stop)

    def stop(self) -> None:
        """End what is in flight, which fails, and let go of the model."""
        for stop in list(self._stops):
            stop.set()
        self._sharing = None

    def _write(
        self,
        model: Any,
        known: Tokeniser,
        turn: Turn,
        workers: Workers,
        seeds: Sequence[int],
        stop: threading.Event,
    ) -> "list[Written]":
        from . import hogwild

        if self._sharing is None or self._sharing[0] is not model:
            self._sharing = model, hogwild.Sharing(model, threads=self._threads)
        _, sharing = self._sharing
        return [
            hogwild.written(sharing, known, workers, turn, seed, context=self._context, stopped=stop.is_set)
            for seed in seeds
        ]


def refuse(request: Generate) -> None:
    """Raise EngineError for what workers cannot keep."""
    if request.logprobs or request.top_logprobs or request.constraint or request.sampling.stop:
        raise EngineError("Workers write without log-probs, constraint and stop texts: leave them out.")
