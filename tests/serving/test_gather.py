import asyncio

import pytest

from abduce.serving.gather import gather


async def test_results_come_in_order():
    async def after(i):
        await asyncio.sleep(0.003 * (3 - i))
        return i

    assert await gather(after(i) for i in range(3)) == [0, 1, 2]


async def test_one_failure_calls_off_the_others_before_it_is_told():
    began, ended = [], []

    async def work(i):
        began.append(i)
        try:
            await asyncio.sleep(0 if i == 3 else 60)
            raise RuntimeError("no")
        finally:
            ended.append(i)

    with pytest.raises(RuntimeError, match="no"):
        await gather(work(i) for i in range(6))
    assert sorted(ended) == sorted(began) == list(range(6))
