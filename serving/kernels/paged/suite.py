"""What `paged` is judged by."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..base import Kernel, Work
from . import kernel, peers, reference


def _decode(
    dtype: torch.dtype,
    device: torch.device,
    batch: int,
    width: int,
    n_kv: int,
    group: int,
    d: int,
    shared: bool,
) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(width * 31 + n_kv)
    n_slots = 2 * max(width, 1) + 3
    random = (torch.rand(batch, 1 if shared else n_kv, n_slots, generator=rng)).argsort(-1)[..., :width]
    lengths = torch.randint(0, width + 1, (*random.shape[:2], 1), generator=rng)
    slots = random.masked_fill(torch.arange(width) >= lengths, -1).to(torch.int32)
    tensors = {
        "q": torch.randn(batch, n_kv * group, d, generator=rng) * 3,
        "k_cache": torch.randn(n_slots, n_kv, d, generator=rng),
        "v_cache": torch.randn(n_slots, n_kv, d, generator=rng),
    }
    floats = {name: x.to(device, dtype) for name, x in tensors.items()}
    bias = torch.randn(slots.shape, generator=rng).to(device) if n_kv == 3 else None
    return {**floats, "slots": slots.to(device), "scale": d**-0.5, "bias": bias}


def _cases(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for width, n_kv, group, d, shared in [
        (1, 1, 1, 16, True),
        (63, 2, 3, 64, False),
        (100, 3, 4, 80, False),
        (600, 1, 8, 128, True),
        (0, 2, 2, 32, False),
    ]:
        yield _decode(dtype, device, 3, width, n_kv, group, d, shared)


def _beside(
    dtype: torch.dtype, device: torch.device, batch: int, width: int, side: int, n_kv: int, group: int,
    d: int, by_mass: bool,
) -> dict[str, Any]:  # fmt: skip
    """A list that all heads share, and one of a side pool whose entries differ by head, some of them none."""
    rng = torch.Generator().manual_seed(width * 31 + side)
    case = _decode(dtype, device, batch, width, n_kv, group, d, True)
    case.pop("bias")
    entries = torch.randperm(batch * side + 2, generator=rng)[: batch * side].view(batch, 1, side)
    lengths = torch.randint(0, side + 1, (batch, 1, 1), generator=rng)
    lengths[0] = side
    mass = torch.randint(0, 5, (batch * side + 2, n_kv), generator=rng).float()
    k, v = torch.randn(2, batch * side + 2, n_kv, d, generator=rng).to(device, dtype)
    return {
        **case,
        "k_side": k,
        "v_side": v,
        "side_slots": entries.masked_fill(torch.arange(side) >= lengths, -1).to(device),
        "mass": mass.to(device) if by_mass else None,
    }


def _besides(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for width, side, n_kv, group, d, by_mass in [
        (1, 1, 1, 1, 16, False),
        (63, 100, 2, 3, 63, True),
        (600, 63, 1, 8, 80, True),
        (0, 130, 3, 1, 32, False),
    ]:
        yield _beside(dtype, device, 3, width, side, n_kv, group, d, by_mass)


def _beside_work(a: Mapping[str, Any]) -> Work:
    n_kv, d = a["k_side"].shape[1:]
    entries = a["side_slots"].numel() * n_kv
    if a["mass"] is not None:
        held = a["mass"][a["side_slots"].clamp_min(0)[:, 0]] > 0
        entries = int((held & (a["side_slots"][:, 0] >= 0)[..., None]).sum())
    n_bytes, flops = _work(a)
    size = a["q"].element_size()
    group = a["q"].shape[1] / n_kv
    return Work(n_bytes + entries * (2 * d * size + 4), flops + 4 * entries * d * group)


def _gathered(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor, **_: Any
) -> Any:
    heads = torch.arange(k_cache.shape[1], device=q.device)[:, None]
    listed = slots.clamp_min(0).long()
    k, v = (x[listed, heads] for x in (k_cache, v_cache))
    mask = (slots >= 0).repeat_interleave(q.shape[1] // k.shape[1], 1).unsqueeze(2)
    return torch.nn.functional.scaled_dot_product_attention(q.unsqueeze(2), k, v, mask, enable_gqa=True)


def _work(a: Mapping[str, Any]) -> Work:
    batch, n_heads, d = a["q"].shape
    n_kv = a["k_cache"].shape[1]
    listed = int((a["slots"] >= 0).sum()) * (n_kv if a["slots"].shape[1] == 1 else 1)
    size = a["q"].element_size()
    return Work(listed * (2 * d * size + 4) + 2 * batch * n_heads * d * size, 4 * listed * d * n_heads / n_kv)


KERNELS = (
    Kernel(
        "paged.decode",
        reference.decode,
        kernel.decode,
        _cases,
        lambda device: _decode(torch.bfloat16, device, 16, 8192, 8, 4, 128, False),
        _work,
        peers={
            "torch: gather, then SDPA": _gathered,
            "FlashInfer": peers.flashinfer,
            "SGLang's Triton": peers.sglang,
        },
    ),
    Kernel(
        "paged.decode_beside",
        reference.decode_beside,
        kernel.decode_beside,
        _besides,
        lambda device: _beside(torch.bfloat16, device, 64, 160, 256, 8, 4, 128, True),
        _beside_work,
    ),
)
