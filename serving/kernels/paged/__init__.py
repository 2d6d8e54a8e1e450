"""Attention of one query a sequence over listed slots of a cache, and the union of two such results.

The list may differ by KV head: what page selection, eviction and merging leave to be read. Chooses Triton
where it runs, else the reference.
"""

import torch

from ..base import form
from . import reference


def decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.decode`."""
    return form(q, reference).decode(q, k_cache, v_cache, slots, scale, bias)


def decode_beside(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    k_side: torch.Tensor,
    v_side: torch.Tensor,
    side_slots: torch.Tensor,
    mass: torch.Tensor | None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.decode_beside`."""
    return form(q, reference).decode_beside(
        q, k_cache, v_cache, slots, k_side, v_side, side_slots, mass, scale
    )


merge = reference.merge
