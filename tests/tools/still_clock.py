"""A clock that stands unless everybody waits: seconds of sleep cost none, and are measured exactly."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Selector(selectors.DefaultSelector):
    loop: "StillLoop"

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("Everybody waits for somebody: nothing can happen any more.")
        found = super().select(0)
        if not found and timeout > 0:
            self.loop.now += timeout
        return found


class StillLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def timed(work: Coroutine[Any, Any, Any]) -> tuple[Any, float]:
    """What a coroutine returns, and how many seconds of that clock it took. Raises RuntimeError if it waits
    for what never happens."""
    with asyncio.Runner(loop_factory=StillLoop) as runner:
        loop = runner.get_loop()

        async def measured() -> tuple[Any, float]:
            began = loop.time()
            found = await work
            return found, loop.time() - began

        return runner.run(measured())
