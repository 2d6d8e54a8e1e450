"""What `localleap` is judged by."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..base import Kernel, Work
from . import kernel, reference


def _logits(dtype: torch.dtype, device: torch.device, rows: int, vocabulary: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(rows, vocabulary, generator=rng) * 4
    logits[:, vocabulary // 2] = logits.amax(1) + 1  # of two equal maxima the first wins
    logits[:, -1] = logits[:, vocabulary // 2]
    return {"logits": logits.to(device, dtype)}


def _cases(dtype: torch.dtype, device: torch.device) -> Iterator[dict[str, Any]]:
    for rows, vocabulary in [(1, 1), (3, 63), (5, 1500), (2, 9000)]:
        yield _logits(dtype, device, rows, vocabulary)
    masked = _logits(dtype, device, 2, 100)
    masked["logits"][:, :40] = -torch.inf
    yield masked


def _work(a: Mapping[str, Any]) -> Work:
    return Work(a["logits"].numel() * a["logits"].element_size(), 4 * a["logits"].numel())


KERNELS = (
    Kernel(
        "localleap.predict",
        reference.predict,
        kernel.predict,
        _cases,
        lambda device: _logits(torch.bfloat16, device, 32 * 32, 156_896),
        _work,
        peers={"torch": reference.predict},
    ),
)
