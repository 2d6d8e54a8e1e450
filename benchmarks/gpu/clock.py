"""How long a call takes on the device here, and what the device can do at best."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .base import Machine


def seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median time of a call, after three that warm up; on a GPU by its events, the cache cold."""
    for _ in range(3):
        call()
    taken = []
    flush = torch.empty(2**28, dtype=torch.int8, device=device) if device.type == "cuda" else None
    for _ in range(repeats):
        if flush is not None:
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            taken.append(start.elapsed_time(end) / 1e3)
        else:
            begun = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 2]


def replayed(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """As `seconds`, of a CUDA graph that has captured the call: without the time that Python takes to launch.

    Raises RuntimeError where the call reads a value back, so that no graph can hold it.
    """
    if device.type != "cuda":
        return seconds(call, device, repeats)
    apart = torch.cuda.Stream(device)
    apart.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(apart):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(apart)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return seconds(graph.replay, device, repeats)


def ceilings(device: torch.device) -> tuple[float, float]:
    """Bytes a second of a large copy (read and written), multiply-adds × 2 a second of a large product."""
    big = device.type == "cuda"
    x = torch.empty(2**30 if big else 2**26, dtype=torch.int8, device=device)
    y = torch.empty_like(x)
    n = 8192 if big else 512
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if big else torch.float32)
    copy = 2 * x.numel() / seconds(lambda: y.copy_(x), device, 10)
    return copy, 2 * n**3 / seconds(lambda: a @ a, device, 10)


def machine(device: torch.device, small: bool, copy: float, product: float) -> Machine:
    """The device with its clocks."""
    repeats = 5 if small else 20
    return Machine(
        device, small, copy, product,
        seconds=partial(seconds, device=device, repeats=repeats),
        replayed=partial(replayed, device=device, repeats=repeats),
    )  # fmt: skip
