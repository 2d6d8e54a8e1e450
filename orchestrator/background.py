"""Synchronous doors: one event loop in a background thread, shared by all synchronous calls.

So `solve()` works in a plain script and inside a running loop (a notebook) alike, and engines keep
their connections from call to call.
"""

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

from ..serving.errors import AbduceError, UsageError

T = TypeVar("T")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end and return the result. Ctrl-C cancels the work, waits for it, and is raised again."""
    if threading.current_thread() is _thread:  # what was to be waited for would wait for us
        work.close()
        raise UsageError("solve() was called inside a search, by an engine or tool of yours. Await asolve().")
    running = asyncio.run_coroutine_threadsafe(work, _background_loop())
    try:
        return running.result()
    except KeyboardInterrupt:
        running.cancel()
        # The future is cancelled at once, its task only soon: let the task close its files first.
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_all_done(), _background_loop()).result(timeout=10)
        raise
    except CancelledError:  # not by us
        raise AbduceError(
            "The work was cancelled from within: something in it raised CancelledError."
        ) from None


def start(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Run in the background; whoever started it need not wait."""
    return asyncio.run_coroutine_threadsafe(work, _background_loop())


def _background_loop() -> asyncio.AbstractEventLoop:
    global _loop, _thread
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _thread = threading.Thread(target=_loop.run_forever, name="abduce", daemon=True)
            _thread.start()
        return _loop


@atexit.register
def _wind_up() -> None:
    """Let what still runs at the end of the program, such as an engine's connections, close in good order."""
    loop, thread = _loop, _thread
    if loop is None or thread is None or not thread.is_alive():
        return
    with suppress(TimeoutError, RuntimeError):
        asyncio.run_coroutine_threadsafe(_all_cancelled(), loop).result(timeout=5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=5)


def _start_anew() -> None:
    """In a forked child: the thread is the parent's, and the lock may be held by one that is not here."""
    global _lock, _loop, _thread
    _orphans.append(_loop)
    _lock, _loop, _thread = threading.Lock(), None, None


_orphans: list[asyncio.AbstractEventLoop | None] = []  # kept: collecting one would touch the parent's sockets
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


async def _all_cancelled() -> None:
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await _all_done()


async def _all_done() -> None:
    """Wait for the tasks that are being cancelled."""
    me = asyncio.current_task()
    ending = [task for task in asyncio.all_tasks() if task is not me and task.cancelling()]
    await asyncio.gather(*ending, return_exceptions=True)
