"""What `deltallm` is judged by."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .. import paged
from ..base import Kernel, Work, dense, flash
from . import kernel, reference


def _keys(dtype: torch.dtype, device: torch.device, n: int, n_kv: int, d: int, rho: float) -> torch.Tensor:
    """Keys that change slowly: an AR(1) process over the tokens."""
    rng = torch.Generator().manual_seed(n + d)
    k = torch.randn(n, n_kv, d, generator=rng)
    for t in range(1, n if n < 4096 else 1):
        k[t] = rho * k[t - 1] + (1 - rho**2) ** 0.5 * k[t]
    return k.to(device, dtype)


def _encoded(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for n, n_kv, d, n_sink, going_on in [(1, 1, 16, 0, False), (63, 2, 63, 4, False), (40, 3, 80, 0, True)]:
        k = _keys(dtype, device, n + 1, n_kv, d, 0.95)
        limit = reference.thresholds(k)
        yield {"k": k[1:], "limit": limit, "n_sink": n_sink, "state": k[0] if going_on else None}


def _in_runs(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for n, n_kv, d in [(1, 1, 16), (63, 2, 63), (100, 3, 32)]:
        k = _keys(dtype, device, n, n_kv, d, 0.98)
        yield {"k": k, "limit": reference.thresholds(k, 1.0) + 0.01}


def _attended(
    dtype: torch.dtype, device: torch.device, n: int, n_kv: int, group: int, d: int, local: int, n_sink: int
) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(n)
    k = _keys(dtype, device, n, n_kv, d, 0.9)
    return {
        "q": torch.randn(n, n_kv * group, d, generator=rng).to(device, dtype),
        "k": k,
        "approximate": (k + 0.3).to(dtype) if n < 4096 else k,
        "v": torch.randn(n, n_kv, d, generator=rng).to(device, dtype),
        "local": local,
        "n_sink": n_sink,
        "scale": d**-0.5,
    }


def _prefills(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for n, n_kv, group, d, local, n_sink in [
        (1, 1, 1, 16, 8, 4),
        (100, 2, 3, 63, 1, 0),
        (300, 1, 2, 64, 30, 70),
        (130, 1, 1, 32, 500, 4),
    ]:
        yield _attended(dtype, device, n, n_kv, group, d, local, n_sink)


def _pack(
    dtype: torch.dtype, device: torch.device, batch: int, width: int, n_kv: int, group: int, d: int, d_v: int,
    n_tiles: int,
) -> dict[str, Any]:  # fmt: skip
    """Sequences of different lengths, up to `width` tiles of n_tiles; six of ten channels do not change."""
    rng = torch.Generator().manual_seed(width + d)
    n = n_tiles * reference.TILE
    k = torch.randn(n, n_kv, d, generator=rng).to(device, dtype)
    packed = reference.pack(k, (torch.rand(n, n_kv, d, generator=rng) > 0.6).to(device))
    tiles = torch.stack([torch.randperm(n_tiles, generator=rng)[:width] for _ in range(batch)])
    n_tokens = torch.randint(0, width * reference.TILE + 1, (batch, 1), generator=rng)
    n_tokens[0] = width * reference.TILE - 1
    slots = torch.stack([torch.randperm(n, generator=rng)[: width * reference.TILE] for _ in range(batch)])
    slots = slots.masked_fill(torch.arange(width * reference.TILE) >= n_tokens, -1)
    used = torch.arange(width) * reference.TILE < n_tokens
    return {
        "q": torch.randn(batch, n_kv * group, d, generator=rng).to(device, dtype),
        **packed._asdict(),
        "tiles": tiles.masked_fill(~used, -1).to(device, torch.int32),
        "v_cache": torch.randn(n, n_kv, d_v, generator=rng).to(device, dtype),
        "slots": slots.to(device, torch.int32),
        "scale": d**-0.5,
    }


def _packs(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for batch, width, n_kv, group, d, d_v in [
        (1, 1, 1, 1, 16, 16),
        (2, 3, 2, 3, 63, 48),
        (2, 9, 1, 4, 80, 80),
    ]:
        yield _pack(dtype, device, batch, width, n_kv, group, d, d_v, width + 2)


def _packed_work(a: Mapping[str, Any]) -> Work:
    listed, tiles = int((a["slots"] >= 0).sum()), int((a["tiles"] >= 0).sum())
    n_kv, d = a["words"].shape[1:]
    size, d_v = a["v_cache"].element_size(), a["v_cache"].shape[2]
    of_tile = (a["words"][0].numel() * 8 + n_kv * 8) + a["values"].numel() / len(a["words"]) * size
    group = a["q"].shape[1] // n_kv
    return Work(tiles * of_tile + listed * n_kv * d_v * size, 2.0 * listed * n_kv * group * (d + d_v))


def _of_whole_keys(
    q: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor, scale: float, **_: Any
) -> Any:
    """The same reading of keys that are not packed; which keys does not matter for its time."""
    return paged.decode(q, v_cache, v_cache, slots[:, None], scale)


def _stream(a: Mapping[str, Any]) -> Work:
    return Work(2 * a["k"].numel() * a["k"].element_size(), 3.0 * a["k"].numel())


def _attention(a: Mapping[str, Any]) -> Work:
    (n, n_heads, d), size = a["q"].shape, a["q"].element_size()
    return Work((2 * a["q"].numel() + 3 * a["k"].numel()) * size, 4.0 * n_heads * d * n * (n + 1) / 2)


def _large_keys(device: torch.device) -> dict[str, Any]:
    k = _keys(torch.bfloat16, device, 32768, 8, 128, 0.9)
    return {"k": k, "limit": reference.thresholds(k)}


KERNELS = (
    Kernel(
        "deltallm.encode",
        reference.encode,
        kernel.encode,
        _encoded,
        lambda device: {**_large_keys(device), "n_sink": 4},
        _stream,
    ),
    Kernel("deltallm.run_ids", reference.run_ids, kernel.run_ids, _in_runs, _large_keys, _stream),
    Kernel(
        "deltallm.attend_packed",
        reference.attend_packed,
        kernel.attend_packed,
        _packs,
        lambda device: _pack(torch.bfloat16, device, 16, 128, 8, 4, 128, 128, 256),
        _packed_work,
        peers={"whole keys (paged.decode)": _of_whole_keys},
    ),
    Kernel(
        "deltallm.hybrid_attention",
        reference.hybrid_attention,
        kernel.hybrid_attention,
        _prefills,
        lambda device: _attended(torch.bfloat16, device, 8192, 8, 4, 128, 128, 4),
        _attention,
        peers={"exact keys (SDPA)": dense, "exact keys (FlashAttention)": flash},
    ),
)
