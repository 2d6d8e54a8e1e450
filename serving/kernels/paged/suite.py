"""What `paged` is judged by."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..base import Kernel, Work
from . import kernel, reference


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
        peers={"torch: gather, then SDPA": _gathered},
    ),
)
