"""Askers for the same thing at the same time share one answer."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar, cast

T = TypeVar("T")
_NOTHING = object()


class Once:
    """The first to ask for a key finds the answer, those who come meanwhile wait for it.

    If the first fails or is cancelled, the next finds it for itself, so that nobody suffers another's
    cancellation. Serves any number of event loops; each finds its own answer."""

    def __init__(self) -> None:
        self._open: dict[tuple[asyncio.AbstractEventLoop, Hashable], asyncio.Future[Any]] = {}

    async def get(self, key: Hashable, find: Callable[[], Awaitable[T]]) -> T:
        """What `find` returns, found by whoever came first."""
        loop = asyncio.get_running_loop()
        while (coming := self._open.get((loop, key))) is not None:
            answer = await asyncio.shield(coming)
            if answer is not _NOTHING:
                return cast(T, answer)
        answer = _NOTHING
        coming = self._open[loop, key] = loop.create_future()
        try:
            answer = await find()
            return answer
        finally:
            del self._open[loop, key]
            coming.set_result(answer)
