"""Hogwild: workers that decode side by side and read each other's blocks; formulas in `reference.py`.

Chooses Triton where it runs, else the reference.
"""

import torch

from ..base import form
from . import reference
from .reference import attend_by_keys, locations, moved, rotate

__all__ = ["attend", "attend_by_keys", "locations", "moved", "rotate"]


def attend(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor,
    loc: torch.Tensor,
    frequency: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """See `reference.attend`."""
    out: torch.Tensor = form(q, reference).attend(q, k_pool, v_pool, slots, loc, frequency, scale)
    return out
