"""What `hogwild` is judged by."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ..base import Kernel, Work
from ..paged.kernel import decode
from . import kernel, reference


def blocks(
    views: Sequence[Sequence[int]], lengths: Sequence[int], n_new: int, n_kv: int, group: int, d: int,
    dtype: torch.dtype, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Arguments of `attend` for blocks of these lengths, scattered over a pool, in these views."""
    rng = torch.Generator().manual_seed(sum(lengths))
    n_slots, longest = sum(lengths) + 3, max(*lengths, 1)
    order = torch.randperm(n_slots, generator=rng)
    slots, at = torch.full((len(lengths), longest), -1), 0
    for f, length in enumerate(lengths):
        slots[f, :length] = order[at : at + length]
        at += length
    loc = reference.locations(views, lengths, n_new)
    floats = {
        "q": torch.randn(len(views), n_new, n_kv * group, d, generator=rng),
        "k_pool": torch.randn(n_slots, n_kv, d, generator=rng),
        "v_pool": torch.randn(n_slots, n_kv, d, generator=rng),
    }
    frequency = 1e4 ** (-torch.arange(d // 2) * 2 / d)
    return {
        **{name: x.to(device, dtype) for name, x in floats.items()},
        "slots": slots.to(device, torch.int32),
        "loc": loc.to(device),
        "frequency": frequency.double().to(device),
        "scale": d**-0.5,
    }


def _cases(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    yield blocks([[0]], [1], 1, 1, 1, 16, dtype, device)
    yield blocks([[0, 1, 3, 4, 2], [0, 1, 2, 4, 3]], [130, 5, 63, 70, 3], 1, 2, 3, 32, dtype, device)
    yield blocks(
        [[0, 2, 1], [0, 2]], [100, 4, 8], 3, 1, 2, 80, dtype, device
    )  # block 1 is not seen by worker 1
    yield blocks([[0, 1], [1, 0], [0, 1]], [9, 0], 2, 1, 5, 16, dtype, device)
    yield blocks([[0, 1, 2], [0, 2, 1]], [700, 5, 70], 1, 1, 2, 16, dtype, device)  # in several parts


def _large(device: torch.device) -> dict[str, Any]:
    views = [[0, 1, 3, 4, 5, 6, 2], [0, 1, 2, 4, 5, 6, 3], [0, 1, 2, 3, 5, 6, 4], [0, 1, 2, 3, 4, 6, 5]]
    return blocks(views, [16384, 8, 200, 220, 180, 210, 8], 1, 8, 4, 128, torch.bfloat16, device)


def _work(a: Mapping[str, Any]) -> Work:
    n_heads, d = a["q"].shape[2:]
    lengths = (a["slots"] >= 0).sum(1)
    keys = a["k_pool"][0].numel() * a["k_pool"].element_size()
    seen = (lengths[:, None, None] * (a["loc"] >= 0)).sum()
    return Work(2.0 * int(lengths.sum()) * keys, 4.0 * int(seen) * n_heads * d)


def _alone(
    q: torch.Tensor, k_pool: torch.Tensor, v_pool: torch.Tensor, slots: torch.Tensor, scale: float, **_: Any
) -> torch.Tensor:
    return decode(q[0, :1], k_pool, v_pool, slots[:1, None].contiguous(), scale)[0]


KERNELS = (
    Kernel(
        "hogwild.attend",
        reference.attend,
        kernel.attend,
        _cases,
        _large,
        _work,
        peers={"paged.decode of one worker over the common block alone": _alone},
    ),
)
