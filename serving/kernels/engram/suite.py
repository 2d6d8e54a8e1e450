"""What `engram` is judged by."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..base import Kernel, Work
from . import kernel, reference
from .hashing import layouts


def _ids(device: torch.device, n: int, max_order: int, n_heads: int, base: int) -> dict[str, Any]:
    size = 99_092
    ids = torch.randint(0, size, (n, max_order), generator=torch.Generator().manual_seed(n))
    [layout] = layouts([1], size, max_order=max_order, n_heads=n_heads, base=base)
    return {"ids": ids.to(device), "layout": layout}


def _hashes(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for n, max_order, n_heads, base in [(1, 2, 1, 7), (63, 3, 8, 646_400), (100, 4, 3, 16_000_000)]:
        yield _ids(device, n, max_order, n_heads, base)


def _rows(
    dtype: torch.dtype, device: torch.device, n: int, columns: int, width: int, size: int
) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(n)
    table = torch.randn(size, width, generator=rng).to(device, dtype)
    return {"table": table, "rows": torch.randint(0, size, (n, columns), generator=rng).to(device)}


def _lookups(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for n, columns, width in [(1, 1, 8), (63, 3, 20), (100, 2, 64)]:
        yield _rows(dtype, device, n, columns, width, 500)


def _gated(dtype: torch.dtype, device: torch.device, n: int, branches: int, d: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(n + d)
    kv = torch.randn(n, (branches + 1) * d, generator=rng)
    kv[0, : branches * d] = 0  # keys of nothing: a gate of one half
    arguments = {
        "h": torch.randn(n, branches, d, generator=rng) * 3,
        "kv": kv,
        "h_weight": torch.rand(branches, d, generator=rng) + 0.5,
        "k_weight": torch.rand(branches, d, generator=rng) + 0.5,
    }
    return {name: x.to(device, dtype) for name, x in arguments.items()}


def _gates(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for n, branches, d in [(1, 1, 16), (10, 4, 63), (7, 2, 300)]:
        yield _gated(dtype, device, n, branches, d)


def _convolved(
    dtype: torch.dtype, device: torch.device, n: int, branches: int, d: int, dilation: int, past: bool
) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(n)
    arguments = {
        "u": torch.randn(n, branches, d, generator=rng),
        "weight": torch.randn(branches, d, 4, generator=rng),
        "norm": torch.rand(branches, d, generator=rng) + 0.5,
        "before": torch.randn(3 * dilation, branches, d, generator=rng),
    }
    moved = {name: x.to(device, dtype) for name, x in arguments.items()}
    return {**moved, "before": moved["before"] if past else None, "dilation": dilation}


def _convolutions(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for n, branches, d, dilation, past in [
        (1, 1, 16, 3, False),
        (20, 2, 63, 3, True),
        (13, 1, 100, 4, False),
    ]:
        yield _convolved(dtype, device, n, branches, d, dilation, past)


def _hash_work(a: Mapping[str, Any]) -> Work:
    n, columns = len(a["ids"]), len(a["layout"].primes)
    return Work(8.0 * n * (a["layout"].max_order + columns), 3.0 * n * columns)


def _lookup_work(a: Mapping[str, Any]) -> Work:
    n_bytes = a["rows"].numel() * (2 * a["table"].shape[1] * a["table"].element_size() + 8)
    return Work(n_bytes, 0)


def _gate_work(a: Mapping[str, Any]) -> Work:
    return Work((2 * a["h"].numel() + a["kv"].numel()) * a["h"].element_size(), 8.0 * a["h"].numel())


def _conv_work(a: Mapping[str, Any]) -> Work:
    return Work(2.0 * a["u"].numel() * a["u"].element_size(), 16.0 * a["u"].numel())


def _bags(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    bags = torch.nn.functional.embedding_bag(rows.view(-1, 1), table, mode="sum")
    return bags.view(len(rows), -1)


KERNELS = (
    Kernel(
        "engram.hash_rows",
        reference.hash_rows,
        kernel.hash_rows,
        _hashes,
        lambda device: _ids(device, 8192, 4, 8, 16_000_000),
        _hash_work,
        dtypes=(torch.int64,),
    ),
    Kernel(
        "engram.lookup",
        reference.lookup,
        kernel.lookup,
        _lookups,
        lambda device: _rows(torch.bfloat16, device, 8192, 16, 80, 4_000_000),
        _lookup_work,
        peers={"torch": reference.lookup, "torch: embedding_bag of one row each": _bags},
    ),
    Kernel(
        "engram.gate",
        reference.gate,
        kernel.gate,
        _gates,
        lambda device: _gated(torch.bfloat16, device, 8192, 4, 2560),
        _gate_work,
        peers={"torch": reference.gate},
    ),
    Kernel(
        "engram.short_conv",
        reference.short_conv,
        kernel.short_conv,
        _convolutions,
        lambda device: _convolved(torch.bfloat16, device, 8192, 4, 2560, 3, False),
        _conv_work,
        peers={"torch": reference.short_conv},
    ),
)
