"""What `flash_lla` is judged by."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..base import Kernel, Work, dense
from . import kernel, reference


def arguments(
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    n_q: int,
    n: int,
    n_kv: int,
    group: int,
    d: int,
    lam: float,
    window: int = 0,
    offset: float = 0.0,
) -> dict[str, Any]:
    """Of `flash_lla`; a head's ridge lies between lam and twice that."""
    rng = torch.Generator().manual_seed(n * 7 + d)
    q = torch.randn(batch, n_q, n_kv * group, d, generator=rng)
    k, v = (torch.randn(batch, n, n_kv, d, generator=rng) for _ in range(2))
    ridge = lam * (1 + torch.rand(n_kv * group, generator=rng))
    floats = {"q": q, "k": k + offset, "v": v}
    return {
        **{name: x.to(device, dtype) for name, x in floats.items()},
        "lam": ridge.to(device),
        "scale": d**-0.5,
        "window": window,
    }


FEWEST = 6  # iterations that a tile of the large case takes at least: the last one, with the largest ridge


def _cases(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    yield arguments(dtype, device, 1, 1, 1, 1, 1, 16, 1.0)
    yield arguments(dtype, device, 1, 33, 33, 1, 2, 16, 1.0)
    yield arguments(dtype, device, 1, 10, 45, 2, 1, 24, 10.0, offset=2.0)
    yield arguments(dtype, device, 1, 40, 40, 1, 1, 16, 1.0, window=17)
    yield arguments(dtype, device, 1, 34, 130, 1, 1, 16, 1.0, window=100)  # sees some tiles whole


def decoded(
    dtype: torch.dtype, device: torch.device, batch: int, width: int, n_kv: int, group: int, d: int
) -> dict[str, Any]:
    """Of `decode`: lists of any length up to `width`, scattered over a pool."""
    rng = torch.Generator().manual_seed(width)
    n_slots = width + 7
    slots = torch.stack([torch.randperm(n_slots, generator=rng)[:width] for _ in range(batch)])[:, None]
    used = torch.randint(0, width + 1, (batch, 1, 1), generator=rng)
    slots = slots.masked_fill(torch.arange(width) >= used, -1).to(device, torch.int32)
    floats = {
        "q": torch.randn(batch, n_kv * group, d, generator=rng),
        "k_cache": torch.randn(n_slots, n_kv, d, generator=rng) + 2,
        "v_cache": torch.randn(n_slots, n_kv, d, generator=rng),
    }
    return {
        **{name: x.to(device, dtype) for name, x in floats.items()},
        "slots": slots,
        "lam": torch.full((n_kv * group,), 1.0, device=device),
        "scale": d**-0.5,
    }


def _decodes(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for width, n_kv, group, d in [(1, 1, 1, 16), (63, 2, 2, 24), (1100, 1, 1, 16)]:
        yield decoded(dtype, device, 3, width, n_kv, group, d)


def _work(a: Mapping[str, Any]) -> Work:
    batch, n, n_heads, d = a["q"].shape
    size = a["q"].element_size()
    n_bytes = (2 * a["q"].numel() + 2 * a["k"].numel()) * size
    return Work(n_bytes, batch * n_heads * (5 + 3 * FEWEST) * float(n) ** 2 * d)


def decode_work(a: Mapping[str, Any]) -> Work:
    """Keys and values once; moments by query head."""
    n_kv, d = a["k_cache"].shape[1:]
    listed = int((a["slots"] >= 0).sum())
    group = a["q"].shape[1] // n_kv
    return Work(2 * listed * n_kv * d * a["k_cache"].element_size(), 4.0 * listed * n_kv * group * d * d)


def _gated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, **_: Any) -> torch.Tensor:
    """Linear attention by chunks, without forgetting: of its family the kernel that is most used."""
    from fla.ops.gla import chunk_gla

    out: torch.Tensor = chunk_gla(q, k, v, torch.zeros_like(k), scale=scale)[0]
    return out


KERNELS = (
    Kernel(
        "flash_lla.forward_and_backward",
        reference.flash_lla,
        kernel.flash_lla,
        _cases,
        lambda device: arguments(torch.bfloat16, device, 1, 4096, 4096, 16, 1, 64, 1.0),
        _work,
        gradients=("q", "k", "v", "lam"),
        peers={"softmax attention (SDPA)": dense, "linear attention (fla, chunk_gla)": _gated},
        slack=3.0,  # an iterative solve: its floor in float32 is above that of a sum
    ),
    Kernel(
        "flash_lla.decode",
        reference.decode,
        kernel.decode,
        _decodes,
        lambda device: decoded(torch.bfloat16, device, 8, 32768, 8, 4, 64),
        decode_work,
        slack=3.0,  # a covariance by moments
    ),
)
