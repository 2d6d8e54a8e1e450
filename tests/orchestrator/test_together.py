"""Several coroutines at once: results in order, the first fault raised, nothing left behind."""

import asyncio

import pytest

from abduce.orchestrator.together import together


async def after(seconds, value, ended=None):
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        ended.append(value)
        raise
    if isinstance(value, BaseException):
        raise value
    return value


async def test_results_come_in_the_order_of_the_calls():
    assert await together(after(seconds, seconds) for seconds in (0.02, 0.0, 0.01)) == [0.02, 0.0, 0.01]
    assert await together([]) == []


async def test_the_first_to_fail_is_raised_and_the_others_have_ended_by_then():
    ended = []
    faults = after(0.02, KeyError("second")), after(0.0, ValueError("first"))
    with pytest.raises(ValueError, match="first"):
        await together([after(60, "slow", ended), *faults, after(60, "slower", ended)])
    assert sorted(ended) == ["slow", "slower"] and len(asyncio.all_tasks()) == 1


async def test_faults_at_once_are_all_heard_of(recwarn):
    with pytest.raises(ValueError, match="a"):
        await together([after(0.0, ValueError("a")), after(0.0, ValueError("b"))])
    assert not recwarn.list  # none was never retrieved


async def test_cancelling_it_cancels_and_awaits_all():
    ended = []
    running = asyncio.ensure_future(together(after(60, i, ended) for i in range(3)))
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == [0, 1, 2]


async def test_one_that_is_cancelled_from_outside_ends_the_others():
    ended, tasks = [], []

    async def known(seconds):
        tasks.append(asyncio.current_task())
        await after(seconds, seconds, ended)

    running = asyncio.ensure_future(together(known(60 + i) for i in range(2)))
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == [60, 61]
