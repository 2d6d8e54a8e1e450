"""Admission to a shared resource of two kinds: slots, and tokens of one cache."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple


class _Waiter(NamedTuple):
    slots: int
    tokens: int
    loop: asyncio.AbstractEventLoop
    admitted: "asyncio.Future[None]"


class Room:
    """Lets in what fits, first come first served, so that large requests are not overtaken for ever.

    Unlike asyncio's locks it serves several event loops, one after another or in several threads.
    """

    def __init__(self, slots: int, tokens: int) -> None:
        self.slots = slots
        self.tokens = tokens
        self._free_slots = slots
        self._free_tokens = tokens
        self._queue: deque[_Waiter] = deque()
        self._lock = threading.Lock()

    @asynccontextmanager
    async def hold(self, slots: int, tokens: int) -> AsyncIterator[None]:
        """Wait for the room, hold it inside the block. More than there is at all counts as all."""
        slots, tokens = min(slots, self.slots), min(tokens, self.tokens)
        loop = asyncio.get_running_loop()
        waiter = _Waiter(slots, tokens, loop, loop.create_future())
        with self._lock:
            self._queue.append(waiter)
            self._admit()
        try:
            await waiter.admitted
            yield
        finally:
            with self._lock:
                if waiter in self._queue:  # cancelled before its turn
                    self._queue.remove(waiter)
                else:
                    self._free_slots += slots
                    self._free_tokens += tokens
                self._admit()

    def _admit(self) -> None:
        """Let in whoever is first and fits. Under the lock."""
        while self._queue:
            first = self._queue[0]
            if first.loop.is_closed():  # its task is gone for good
                self._queue.popleft()
                continue
            if first.slots > self._free_slots or first.tokens > self._free_tokens:
                return
            self._queue.popleft()
            self._free_slots -= first.slots
            self._free_tokens -= first.tokens
            first.loop.call_soon_threadsafe(_resolve, first.admitted)


def _resolve(admitted: "asyncio.Future[None]") -> None:
    if not admitted.done():  # else cancelled in the meantime: `hold` gives the room back
        admitted.set_result(None)
