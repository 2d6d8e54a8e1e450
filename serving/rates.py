"""Requests and tokens per minute: calls take turns, so that a provider's limits are kept and not tried.

In any window of a minute at most so many requests are begun, of at most so many tokens together. A call
books its start when it comes, so turns go by arrival, and a lock for some microseconds is all that calls
share: they may come from any number of event loops and threads.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from .errors import demand


@dataclass(slots=True, eq=False)
class Turn:
    """A booked call: when it may begin (`time.monotonic`), and what it counts."""

    start_s: float
    n_tokens: int


class Rates:
    """At most `requests` and `tokens` in any `window_s` seconds; None: no such limit."""

    def __init__(self, requests: int | None, tokens: int | None, *, window_s: float = 60.0) -> None:
        demand(requests is None or requests >= 1, "requests_per_minute", requests, "write 1 or more")
        demand(tokens is None or tokens >= 1, "tokens_per_minute", tokens, "write 1 or more")
        self._requests = requests
        self._tokens = tokens
        self._window_s = window_s
        self._lock = threading.Lock()
        self._booked: deque[Turn] = deque()  # by start; those that may matter to the next one
        self._not_before = 0.0

    @asynccontextmanager
    async def turn(self, n_tokens: int) -> AsyncIterator[Turn]:
        """Waits until a call of about `n_tokens` may begin. Once it is known what the call used, write it
        into the turn's `n_tokens`. A call that is cancelled while it waits counts nothing."""
        turn = self._book(n_tokens)
        try:
            while True:
                wait_s = max(turn.start_s, self._not_before) - time.monotonic()
                if wait_s <= 0:
                    break
                await asyncio.sleep(wait_s)
        except asyncio.CancelledError:
            self._give_back(turn)
            raise
        yield turn

    def pause(self, seconds: float) -> None:
        """Nothing begins for so long: the provider asked for it."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    def _book(self, n_tokens: int) -> Turn:
        with self._lock:
            now = time.monotonic()
            start = max(now, self._not_before)
            if self._requests is None and self._tokens is None:
                return Turn(start, n_tokens)
            if self._booked:
                start = max(start, self._booked[-1].start_s)
            cost = n_tokens if self._tokens is None else min(n_tokens, self._tokens)
            self._forget(start)
            while self._booked and not self._fits(cost):
                start = max(start, self._booked[0].start_s + self._window_s)
                self._forget(start)
            turn = Turn(start, cost)
            self._booked.append(turn)
            return turn

    def _give_back(self, turn: Turn) -> None:
        with self._lock, suppress(ValueError):  # forgotten already
            self._booked.remove(turn)

    def _forget(self, start: float) -> None:
        while self._booked and self._booked[0].start_s <= start - self._window_s:
            self._booked.popleft()

    def _fits(self, cost: int) -> bool:
        if self._requests is not None and len(self._booked) >= self._requests:
            return False
        return self._tokens is None or sum(t.n_tokens for t in self._booked) + cost <= self._tokens
