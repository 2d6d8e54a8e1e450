"""Several coroutines at once, none left behind."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from ..serving.errors import BudgetExhausted

T = TypeVar("T")


async def together(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results in order; if one raises, the others are cancelled first."""
    start = asyncio.get_running_loop().create_task
    tasks = [start(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
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
