"""Local linear attention: softmax attention corrected by a local regression; formulas in `reference.py`.

Chooses Triton where it runs, else the reference.
"""

import torch

from ..base import form
from . import reference


def flash_lla(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lam: torch.Tensor, scale: float, window: int = 0
) -> torch.Tensor:
    """See `reference.flash_lla`. Raises ValueError for a ridge on the CPU that is not positive."""
    if not lam.is_cuda and not bool((lam > 0).all()):  # on a GPU every call would wait for the answer
        raise ValueError(
            "local linear attention: the ridge must be positive. Write e.g. 1e-4 for almost none."
        )
    out: torch.Tensor = form(q, reference).flash_lla(q, k, v, lam, scale, window)
    return out


def decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    lam: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """See `reference.decode`."""
    out: torch.Tensor = form(q, reference).decode(q, k_cache, v_cache, slots, lam, scale)
    return out
