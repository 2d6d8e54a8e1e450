"""The clock of a run: it goes on where an earlier part ended, and stands while somebody is waited for."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

_TICK_S = 0.05


class Clock:
    """Seconds since the run began. `zero` is that moment, in `perf_counter`'s time."""

    def __init__(self) -> None:
        self.zero = perf_counter()
        self._holds = 0
        self._held_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    def start(self, elapsed_s: float) -> None:
        """Begin to count, from there."""
        self.zero = perf_counter() - elapsed_s

    @property
    def elapsed_s(self) -> float:
        """Seconds so far."""
        return (self._held_at if self._holds else perf_counter()) - self.zero

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the clock stand; also for several at once."""
        if not self._holds:
            self._held_at = perf_counter()
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            if not self._holds:
                self.zero += perf_counter() - self._held_at

    def set_alarm(self, at_s: float, ring: Callable[[], None]) -> None:
        """Call `ring` once the clock shows `at_s`."""
        left = at_s - self.elapsed_s
        if left <= 0 and not self._holds:
            ring()
            return
        later = asyncio.get_running_loop().call_later
        self._alarm = later(max(left, _TICK_S if self._holds else 0.0), self.set_alarm, at_s, ring)

    def cancel_alarm(self) -> None:
        """Forget the alarm."""
        if self._alarm is not None:
            self._alarm.cancel()
