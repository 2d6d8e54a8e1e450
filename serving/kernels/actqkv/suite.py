"""What `actqkv` is judged by."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..base import Kernel, Work, dense, flash
from . import kernel, prompt, reference


def _window(
    dtype: torch.dtype, device: torch.device, batch: int, m: int, d: int, power: float
) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(m)
    x = torch.randn(batch, m, d, generator=rng) + 3 * torch.randn(batch, 1, d, generator=rng)
    x[:, m // 2] += 5 * torch.randn(d, generator=rng)
    x[..., d // 3] = 0.5  # a channel that is constant, and exactly so in every dtype
    return {"x": x.to(device, dtype), "power": power}


def _windows(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for m, d, power in [(1, 16, 1.0), (2, 63, 1.0), (63, 100, 2.0), (100, 129, 1.0), (65, 64, 0.0)]:
        yield _window(dtype, device, 2, m, d, power)
    yield {"x": torch.full((1, 7, 20), 1.5, dtype=dtype, device=device), "power": 1.0}


def _pages(
    dtype: torch.dtype, device: torch.device, batch: int, width: int, n_kv: int, group: int, d: int
) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(width)
    n_pages = width + 5
    table = torch.stack([torch.randperm(n_pages, generator=rng)[:width] for _ in range(batch)])
    used = torch.randint(0, width + 1, (batch, 1), generator=rng)
    return {
        "probe": torch.randn(batch, n_kv * group, d, generator=rng).to(device, dtype),
        "means": torch.randn(n_pages, n_kv, d, generator=rng).to(device, dtype),
        "page_table": table.masked_fill(torch.arange(width) >= used, -1).to(device, torch.int32),
    }


def _tables(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for width, n_kv, group, d in [(1, 1, 1, 16), (63, 2, 3, 80), (100, 3, 1, 64), (130, 2, 4, 32)]:
        yield _pages(dtype, device, 3, width, n_kv, group, d)


def _choice(
    device: torch.device, batch: int, places: int, page: int, k: int, n_first: int, n_last: int
) -> dict[str, Any]:
    """Scores with many ties, zeros of both signs and none at all, of sequences of any length."""
    rng = torch.Generator().manual_seed(places)
    scores = torch.randn(batch, places, generator=rng).mul(4).round().div(4)
    scores[torch.rand(batch, places, generator=rng) < 0.1] = -torch.inf
    scores[torch.rand(batch, places, generator=rng) < 0.1] = -0.0
    n_tokens = torch.randint(1, places * page + 1, (batch,), generator=rng)
    n_tokens[0] = places * page
    table = torch.randperm(2 * batch * places * page, generator=rng).view(2 * batch, -1).to(torch.int32)
    return {
        "scores": scores.to(device),
        "n_tokens": n_tokens.to(device),
        "k": torch.randint(0, k + 1, (batch,), generator=rng).to(device),
        "table": table.to(device),
        "rows": torch.randperm(2 * batch, generator=rng)[:batch].to(device),
        "page": page,
        "width": n_first + k + n_last,
        "n_first": n_first,
        "n_last": n_last,
    }


def _choices(_: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for places, page, k, n_first, n_last in [
        (1, 4, 1, 1, 1),
        (63, 5, 7, 1, 3),
        (100, 16, 100, 0, 1),
        (130, 3, 40, 2, 0),
    ]:
        yield _choice(device, 4, places, page, k, n_first, n_last)


def _choice_work(a: Mapping[str, Any]) -> Work:
    n_slots = len(a["scores"]) * a["width"] * a["page"]
    return Work(a["scores"].numel() * 4.0 + n_slots * 2 * a["table"].element_size(), a["scores"].numel())


def _prompt(
    dtype: torch.dtype, device: torch.device, n_q: int, n: int, n_kv: int, group: int, d: int, **sizes: int
) -> dict[str, Any]:
    """Keys in groups of a page; each window of queries looks for one, so that rounding changes no choice."""
    rng = torch.Generator().manual_seed(n + d)
    page, window = sizes["page"], sizes["window"]
    around = torch.randn(n // page + 1, n_kv, d, generator=rng)
    k = around.repeat_interleave(page, 0)[:n] + 0.3 * torch.randn(n, n_kv, d, generator=rng)
    wanted = torch.randint(0, len(around), (n // window + 1,), generator=rng)
    q = around[wanted].repeat_interleave(window, 0)[n - n_q : n].repeat_interleave(group, 1)
    return {
        "q": (q + torch.randn(n_q, n_kv * group, d, generator=rng)).to(device, dtype),
        "k": k.to(device, dtype),
        "v": torch.randn(n, n_kv, d, generator=rng).to(device, dtype),
        "scale": d**-0.5,
        **sizes,
    }


def _prompts(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for n_q, n, n_kv, group, d, n_best in [
        (1, 1, 1, 1, 16, 1),
        (100, 100, 2, 3, 63, 1),
        (63, 130, 1, 4, 32, 2),
    ]:
        yield _prompt(
            dtype, device, n_q, n, n_kv, group, d, window=20, page=8, n_best=n_best, n_first=1, n_local=9
        )


def _large_prompt(device: torch.device) -> dict[str, Any]:
    sizes = {"window": 512, "page": 64, "n_best": 16, "n_first": 2, "n_local": 1024}
    return _prompt(torch.bfloat16, device, 16384, 16384, 8, 4, 128, **sizes)


def _prompt_work(a: Mapping[str, Any]) -> Work:
    (n_q, n_heads, d), (n, n_kv, _) = a["q"].shape, a["k"].shape
    n_read = pairs = 0
    for first, end in reference.windows(n - n_q, n, a["window"]):
        local = max(first - a["n_local"], 0) // a["page"]
        n_pages = min(local, a["n_first"] + a["n_best"])
        behind = n_pages * a["page"] + first - local * a["page"]
        n_read += behind + end - first
        pairs += (end - first) * behind + (end - first) * (end - first + 1) // 2
    moved = 2 * a["q"].numel() + 2 * n_read * n_kv * d
    return Work(moved * a["q"].element_size(), 4.0 * n_heads * d * pairs)


def _window_work(a: Mapping[str, Any]) -> Work:
    return Work(a["x"].numel() * a["x"].element_size(), 7 * a["x"].numel())


def _pages_work(a: Mapping[str, Any]) -> Work:
    read = int((a["page_table"] >= 0).sum()) * a["means"][0].numel()
    return Work(read * a["means"].element_size() + 8 * a["page_table"].numel(), 2 * read)


KERNELS = (
    Kernel(
        "actqkv.probe_query",
        reference.probe_query,
        kernel.probe_query,
        _windows,
        lambda device: _window(torch.bfloat16, device, 16, 512, 32 * 128, 1.0),
        _window_work,
        peers={"torch": reference.probe_query},
    ),
    Kernel(
        "actqkv.page_scores",
        reference.page_scores,
        kernel.page_scores,
        _tables,
        lambda device: _pages(torch.bfloat16, device, 16, 1024, 8, 4, 128),
        _pages_work,
        peers={"torch": reference.page_scores},
    ),
    Kernel(
        "actqkv.chosen_slots",
        reference.chosen_slots,
        kernel.chosen_slots,
        _choices,
        lambda device: _choice(device, 32, 1024, 128, 16, 1, 8),
        _choice_work,
        dtypes=(torch.float32,),
        peers={"torch (three sorts)": reference.chosen_slots},
    ),
    Kernel(
        "actqkv.retrieve",
        reference.retrieve,
        prompt.retrieve,
        _prompts,
        _large_prompt,
        _prompt_work,
        peers={"every key (SDPA)": dense, "every key (FlashAttention)": flash},
    ),
)
