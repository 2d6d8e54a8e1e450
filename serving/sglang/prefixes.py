"""Which prompts the server has read, as far as this client knows. A new one is sent once before all others
that begin with it, since requests that start together don't find each other's prefix in the cache."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from .tokens import Ids

_KEPT = 65536


@dataclass(eq=False)
class _Asked:
    """One new prompt that is read now, and the samples of it that were asked for."""

    n: int
    done: "asyncio.Future[None]"


class Prefixes:
    """`read`: has the server read a prompt, returns how many of its tokens were cached."""

    def __init__(self, read: Callable[[Ids], Awaitable[int]]) -> None:
        self._read = read
        self._known: OrderedDict[int, None] = OrderedDict()  # hashes of what was read or drawn
        self._asked: dict[tuple[asyncio.AbstractEventLoop, Ids], _Asked] = {}

    async def read(self, ids: Ids, n: int) -> int | None:
        """Wait until a prompt may be sent `n` times: at once if it is known or nobody else sends it now.

        Returns how many of its tokens had been cached, to the one for whom it was read, else None."""
        if hash(ids) in self._known:
            return None
        loop = asyncio.get_running_loop()
        asked = self._asked.get((loop, ids))
        if asked is not None:
            asked.n += n
            await asyncio.shield(asked.done)
            return None
        asked = self._asked[loop, ids] = _Asked(n, loop.create_future())
        try:
            await asyncio.sleep(0)  # whoever asks at the same moment joins
            return await self._read(ids) if asked.n > 1 else None
        finally:
            del self._asked[loop, ids]
            asked.done.set_result(None)

    @asynccontextmanager
    async def turn(self, ids: Ids) -> AsyncIterator[None]:
        """For one who reads the prompt and a text after it: of those who come while it is new one goes first,
        and the others when that one has ended, however it did."""
        loop = asyncio.get_running_loop()
        asked = self._asked.get((loop, ids))
        if asked is not None:
            await asyncio.shield(asked.done)
        if asked is not None or hash(ids) in self._known:
            yield
            return
        asked = self._asked[loop, ids] = _Asked(1, loop.create_future())
        try:
            yield
        finally:
            del self._asked[loop, ids]
            asked.done.set_result(None)

    def add(self, ids: Ids, drawn: Iterable[Iterable[int]]) -> None:
        """A prompt was read, and continued in these ways."""
        self._known[hash(ids)] = None
        for more in drawn:
            self._known[hash((*ids, *more))] = None
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)

    def forget(self) -> None:
        """Another server may be there now."""
        self._known.clear()
