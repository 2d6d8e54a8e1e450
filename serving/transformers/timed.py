"""Functions of the user's, called with a time limit.

A call runs in a thread of its own and is left alone when its time is over: Python cannot stop it. The next
call then gets a new thread, and no thread keeps the program from ending.
"""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from ..errors import EngineError

_Task: TypeAlias = tuple[Callable[[Any], Any], Any, "SimpleQueue[tuple[bool, Any]]"]


class Timed:
    """`call(function, argument)` in a worker thread, for at most `timeout_s` seconds each."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._idle: list[SimpleQueue[_Task | None]] = []
        self._lock = threading.Lock()

    def call(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """The function's value. Raises EngineError where it fails or takes too long, never a verdict: to
        count either as a rejection would distort what the caller estimates."""
        with self._lock:
            tasks = self._idle.pop() if self._idle else _start()
        reply: SimpleQueue[tuple[bool, Any]] = SimpleQueue()
        tasks.put((function, argument, reply))
        name = getattr(function, "__name__", "function")
        try:
            good, value = reply.get(timeout=self.timeout_s)
        except Empty:
            tasks.put(None)  # its thread ends once the function does
            raise EngineError(
                f"The constraint's {name!r} took longer than {self.timeout_s:g} s. "
                "Make it faster, or give the engine a larger check_timeout_s."
            ) from None
        with self._lock:
            self._idle.append(tasks)
        if not good:
            raise EngineError(f"The constraint's {name!r} failed: {value!r}") from value
        return value

    def close(self) -> None:
        """End the idle threads."""
        with self._lock:
            while self._idle:
                self._idle.pop().put(None)


def _start() -> "SimpleQueue[_Task | None]":
    tasks: SimpleQueue[_Task | None] = SimpleQueue()
    threading.Thread(target=_work, args=(tasks,), name="abduce-check", daemon=True).start()
    return tasks


def _work(tasks: "SimpleQueue[_Task | None]") -> None:
    while task := tasks.get():
        function, argument, reply = task
        try:
            reply.put((True, function(argument)))
        except Exception as error:
            reply.put((False, error))
