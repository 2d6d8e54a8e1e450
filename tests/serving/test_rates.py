"""The law of rates: in no window more than the limit, turns by arrival, over any number of loops."""

import asyncio
import threading
import time

import pytest

from abduce.serving.errors import UsageError
from abduce.serving.rates import Rates

WINDOW_S = 0.25


async def begin(rates: Rates, n_tokens: int, begun: list[tuple[float, int, int]], name: int = 0) -> None:
    """One call. Counted is its turn: on a busy machine it may begin later, and so nearer to the next one."""
    async with rates.turn(n_tokens) as turn:
        assert time.monotonic() >= turn.start_s
        begun.append((turn.start_s, n_tokens, name))


def worst(begun: list[tuple[float, int, int]]) -> tuple[int, int]:
    """Most requests and tokens of any window."""
    within = [[b for b in begun if t <= b[0] < t + WINDOW_S - 1e-6] for t, _, _ in begun]
    return max(map(len, within)), max(sum(n for _, n, _ in each) for each in within)


async def test_no_window_has_more_requests_than_the_limit() -> None:
    rates, begun = Rates(4, None, window_s=WINDOW_S), []
    await asyncio.gather(*(begin(rates, 10, begun, i) for i in range(12)))
    assert worst(begun)[0] == 4  # and no fewer: the limit is used
    begins = [start for start, _, _ in sorted(begun, key=lambda b: b[2])]  # by arrival
    assert begins == sorted(begins)
    assert begins[-1] - begins[0] < 2.5 * WINDOW_S


async def test_no_window_has_more_tokens_than_the_limit() -> None:
    rates, begun = Rates(None, 100, window_s=WINDOW_S), []
    await asyncio.gather(*(begin(rates, n, begun) for n in (60, 30, 50, 100, 10, 90, 400)))
    assert worst(begun[:-1])[1] <= 100
    assert len(begun) == 7  # a call above the limit has a window to itself


def test_the_limit_holds_over_event_loops_in_threads() -> None:
    rates, begun = Rates(3, None, window_s=WINDOW_S), []

    async def some() -> None:
        await asyncio.gather(*(begin(rates, 1, begun) for _ in range(3)))

    threads = [threading.Thread(target=asyncio.run, args=(some(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(begun) == 9
    assert worst(begun)[0] <= 3


async def test_a_call_that_is_cancelled_while_it_waits_counts_nothing() -> None:
    rates, begun = Rates(1, None, window_s=WINDOW_S), []
    await begin(rates, 1, begun)
    waiting = [asyncio.ensure_future(begin(rates, 1, begun)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(begun) == 1
    started = time.monotonic()
    await begin(rates, 1, begun)
    assert begun[-1][0] - started < 1.5 * WINDOW_S  # and holds up nobody


async def test_what_a_call_used_counts_in_place_of_the_estimate() -> None:
    rates, begun = Rates(None, 100, window_s=WINDOW_S), []
    async with rates.turn(100) as turn:
        turn.n_tokens = 10
    started = time.monotonic()
    await begin(rates, 90, begun)
    assert begun[-1][0] - started < WINDOW_S / 2


async def test_a_pause_holds_for_all() -> None:
    rates, begun = Rates(None, None), []
    rates.pause(0.1)
    started = time.monotonic()
    await begin(rates, 1, begun)
    assert time.monotonic() - started >= 0.095


@pytest.mark.parametrize("limits", [(0, None), (None, 0)])
def test_limits_that_cannot_be(limits: tuple[int | None, int | None]) -> None:
    with pytest.raises(UsageError, match="per_minute cannot be 0"):
        Rates(*limits)
