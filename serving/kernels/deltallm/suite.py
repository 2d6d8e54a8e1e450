"""What `deltallm` is judged by."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..base import Kernel, Work, dense
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
        (200, 1, 2, 64, 30, 70),
        (130, 1, 1, 32, 500, 4),
    ]:
        yield _attended(dtype, device, n, n_kv, group, d, local, n_sink)


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
        "deltallm.hybrid_attention",
        reference.hybrid_attention,
        kernel.hybrid_attention,
        _prefills,
        lambda device: _attended(torch.bfloat16, device, 8192, 8, 4, 128, 128, 4),
        _attention,
        peers={"exact keys (SDPA)": dense},
    ),
)
