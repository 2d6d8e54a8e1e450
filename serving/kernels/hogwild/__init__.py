"""Hogwild: workers that decode side by side and read each other's blocks; formulas in `reference.py`.

Chooses Triton where it runs, else the reference.
"""

from importlib import import_module
from importlib.util import find_spec

import torch

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
    on_gpu = q.is_cuda and find_spec("triton")
    form = import_module(f"{__name__}.kernel") if on_gpu else reference
    out: torch.Tensor = form.attend(q, k_pool, v_pool, slots, loc, frequency, scale)
    return out
