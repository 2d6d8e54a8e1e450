"""What `ems` is judged by."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..base import Kernel, Work, dense, flash
from . import kernel, reference, unrotated


def _attended(
    dtype: torch.dtype, device: torch.device, n_q: int, n: int, n_kv: int, group: int, d: int, window: int
) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(n)
    q = torch.randn(n_q, n_kv * group, d, generator=rng).to(device, dtype)
    k = torch.randn(n, n_kv, d, generator=rng).to(device, dtype)
    lse = reference.row_lse(q.double(), k.double(), d**-0.5) if n < 4096 else torch.full(
        (n_q, n_kv * group), 9.0, device=device
    )  # fmt: skip
    return {"q": q, "k": k, "lse": lse.float(), "window": window, "scale": d**-0.5}


def _sequences(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for n_q, n, n_kv, group, d, window in [
        (1, 1, 1, 1, 16, 4),
        (63, 63, 2, 3, 64, 8),
        (100, 100, 1, 4, 80, 32),
        (37, 130, 2, 1, 32, 8),
    ]:
        yield _attended(dtype, device, n_q, n, n_kv, group, d, window)


def _rows(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for case in _sequences(dtype, device):
        yield {name: case[name] for name in ("q", "k", "scale")}


def _large_rows(device: torch.device) -> dict[str, Any]:
    case = _attended(torch.bfloat16, device, 8192, 8192, 8, 4, 128, 32)
    return {name: case[name] for name in ("q", "k", "scale")}


def _classes(
    dtype: torch.dtype, device: torch.device, n: int, n_kv: int, d: int, m: int, n_tokens: int
) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(n + m)
    around = torch.randint(0, 5, (n,), generator=rng)  # five clusters, so that many cosines are high
    k, v = (
        torch.randn(5, n_kv, d, generator=rng)[around]
        + 0.4 * torch.randn(n, n_kv, d, generator=rng) * (d != 64)
        for _ in range(2)
    )
    if d == 64:  # signs: cosines without rounding, so that ties are ties
        k, v = k.sign(), v.sign()
    opposite = torch.randint(0, 2, (n, 1, 1), generator=rng) * 2 - 1
    k, v = k * opposite, v * opposite  # of a pair of opposites both cosines are negative
    order = torch.stack([torch.randperm(n, generator=rng) for _ in range(n_kv)])
    tokens = order[:, m : m + n_tokens].clone()
    tokens[:, n_tokens - n_tokens // 4 :] = -1
    return {
        "k": k.to(device, dtype),
        "v": v.to(device, dtype),
        "centres": order[:, :m].sort(1).values.to(device),
        "tokens": tokens.to(device),
    }


def _assignments(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for n, n_kv, d, m, n_tokens in [(9, 1, 16, 1, 5), (200, 2, 64, 100, 80), (300, 3, 80, 130, 100)]:
        yield {**_classes(dtype, device, n, n_kv, d, m, n_tokens), "tau": 0.5}


def _merges(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for unit in (True, False):
        for case in _assignments(dtype, device):
            k, v, tau = case.pop("k"), case.pop("v"), case.pop("tau")
            target = reference.assign(k.double(), v.double(), case["centres"], case["tokens"], tau)
            weights = torch.rand(k.shape[1], len(k), generator=torch.Generator().manual_seed(1)).to(device)
            yield {"x": k, "weights": weights, **case, "target": target, "unit": unit}


def _unrotated(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    """Words of five clusters at scattered positions, turned by them; of 80 channels 16 are not."""
    for n, n_kv, d, m, n_tokens in [(9, 1, 16, 1, 5), (100, 2, 32, 63, 30), (130, 3, 80, 40, 80)]:
        case = _classes(torch.float64, torch.device("cpu"), n, n_kv, d, m, n_tokens)
        rng = torch.Generator().manual_seed(n)
        position = torch.stack([torch.randperm(4 * n, generator=rng)[:n].sort().values for _ in range(n_kv)])
        rotary = _rotary(4 * n, 32 if d == 80 else d // 2)
        k, v = case.pop("k"), case.pop("v")
        case["target"] = reference.assign(k, v, case["centres"], case["tokens"], 0.5)
        case |= {
            "k": unrotated.turned(k, position, rotary).to(dtype),
            "weights": torch.rand(n_kv, n, generator=rng),
            "position": position,
            **rotary._asdict(),
        }
        yield {name: x.to(device) for name, x in case.items()}


def _rotary(n: int, half: int) -> unrotated.Rotary:
    """With a factor, as YaRN's has."""
    angle = torch.arange(n)[:, None] * 10_000.0 ** -(torch.arange(half) / half)
    return unrotated.Rotary(1.1 * angle.cos(), 1.1 * angle.sin())


def _large_classes(device: torch.device) -> dict[str, Any]:
    return _classes(torch.bfloat16, device, 32768, 8, 128, 224, 7 * 224)


def _large_merge(device: torch.device) -> dict[str, Any]:
    case = _large_classes(device)
    k, v = case.pop("k"), case.pop("v")
    target = kernel.assign(k, v, case["centres"], case["tokens"], 0.5)
    return {
        "x": k,
        "weights": torch.rand(k.shape[1], len(k), device=device),
        **case,
        "target": target,
        "unit": True,
    }


def _large_unrotated(device: torch.device) -> dict[str, Any]:
    case = _large_merge(device)
    k, _ = case.pop("x"), case.pop("unit")
    n, n_kv, d = k.shape
    tables = {name: x.to(device) for name, x in _rotary(n, d // 2)._asdict().items()}
    return {**case, **tables, "k": k, "position": torch.arange(n, device=device).expand(n_kv, -1)}


def _columns_work(a: Mapping[str, Any]) -> Work:
    (n_q, n_heads, d), n = a["q"].shape, len(a["k"])
    pairs = n_q * (n - n_q) + n_q * (n_q + 1) / 2
    return Work((a["q"].numel() + a["k"].numel()) * a["q"].element_size(), 2 * pairs * n_heads * d)


def _assign_work(a: Mapping[str, Any]) -> Work:
    n_kv, m = a["centres"].shape
    read = (a["tokens"].numel() + n_kv * m) * a["k"].shape[2] * 2
    return Work(read * a["k"].element_size(), 4.0 * a["tokens"].numel() * m * a["k"].shape[2])


def _merge_work(a: Mapping[str, Any]) -> Work:
    n_kv, m = a["centres"].shape
    rows = int((a["target"] < m).sum()) + 2 * n_kv * m
    return Work(rows * a["x"].shape[2] * a["x"].element_size(), 4.0 * rows * a["x"].shape[2])


_PROMPT = {
    "the prompt's attention (SDPA)": lambda q, k, **_: dense(q, k, k),
    "the same (FlashAttention)": lambda q, k, **_: flash(q, k, k),
}

KERNELS = (
    Kernel(
        "ems.row_lse",
        reference.row_lse,
        kernel.row_lse,
        _rows,
        _large_rows,
        _columns_work,
        peers=_PROMPT,
    ),
    Kernel(
        "ems.column_sums",
        reference.column_sums,
        kernel.column_sums,
        _sequences,
        lambda device: _attended(torch.bfloat16, device, 8192, 8192, 8, 4, 128, 32),
        _columns_work,
        peers=_PROMPT,
    ),
    Kernel(
        "ems.assign",
        reference.assign,
        kernel.assign,
        _assignments,
        lambda device: {**_large_classes(device), "tau": 0.5},
        _assign_work,
        peers={"torch": reference.assign},
    ),
    Kernel(
        "ems.merge_unrotated",
        reference.merge_unrotated,
        unrotated.merge_unrotated,
        _unrotated,
        _large_unrotated,
        lambda a: _merge_work({**a, "x": a["k"]}),
    ),
    Kernel("ems.merge", reference.merge, kernel.merge, _merges, _large_merge, _merge_work),
)
