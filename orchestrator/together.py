"""Several coroutines at once, none left behind."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from ..serving.errors import BudgetExhausted

T = TypeVar("T")


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; if one raises, the others are cancelled first. As `asyncio.gather`, which takes
    half a microsecond more for each."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(call) for call in calls]
    last_or_failed: asyncio.Future[asyncio.Task[T]] = loop.create_future()
    n_open = len(tasks)

    def ended(task: asyncio.Task[T]) -> None:
        nonlocal n_open
        n_open -= 1
        if (not n_open or task.cancelled() or task.exception()) and not last_or_failed.done():
            last_or_failed.set_result(task)

    for task in tasks:
        task.add_done_callback(ended)
    try:
        if tasks:
            (await last_or_failed).result()
        return [task.result() for task in tasks]
    except BaseException:
        await cancel(tasks)
        raise


async def all_then_raise(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; if one raises, the others end first, so that all that is known is replayed."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, BudgetExhausted):
            raise result
    return results  # type: ignore[return-value]


async def cancel(tasks: Iterable["asyncio.Future[Any]"]) -> None:
    """Cancel what is not done, and wait until it has ended."""
    open_tasks = [task for task in tasks if not task.done()]
    for task in open_tasks:
        task.cancel()
    await asyncio.gather(*open_tasks, return_exceptions=True)
