"""How many requests run and wait at once: the rest are told to come again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .errors import ApiError


class Gate:
    """At most `running` requests at once and `waiting` behind them, each for `patience_s` at most."""

    def __init__(self, running: int, waiting: int, patience_s: float) -> None:
        self._room = asyncio.Semaphore(running)
        self._most_waiting = waiting
        self._patience_s = patience_s
        self.running = 0
        self.waiting = 0
        self.idle = asyncio.Event()  # nothing runs or waits
        self.idle.set()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for one's turn. Raises ApiError 503 if too many wait already, or it takes too long."""
        if self._room.locked():
            await self._wait()
        else:
            await self._room.acquire()
        self._count(running=1)
        try:
            yield
        finally:
            self._count(running=-1)
            self._room.release()

    def _count(self, *, running: int = 0, waiting: int = 0) -> None:
        self.running += running
        self.waiting += waiting
        (self.idle.clear if self.running or self.waiting else self.idle.set)()

    async def _wait(self) -> None:
        if self.waiting >= self._most_waiting:
            raise ApiError(
                503,
                f"{self.running} requests are running and {self.waiting} waiting, as many as may.",
                code="overloaded",
                retry_after_s=1,
            )
        self._count(waiting=1)
        try:
            async with asyncio.timeout(self._patience_s):
                await self._room.acquire()
        except TimeoutError:
            raise ApiError(
                503, "There was no room for the request in time.", code="overloaded", retry_after_s=5
            ) from None
        finally:
            self._count(waiting=-1)
