"""Engram: a large table read at hashed n-grams, gated into the residual stream; formulas in `reference.py`.

Chooses Triton where it runs, else the reference.
"""

import torch

from ..base import form
from . import reference
from .hashing import Layout, layouts, multipliers_of, predecessors, token_map

__all__ = [
    "Layout",
    "gate",
    "hash_rows",
    "layouts",
    "lookup",
    "multipliers_of",
    "predecessors",
    "short_conv",
    "token_map",
]


def hash_rows(ids: torch.Tensor, layout: Layout) -> torch.Tensor:
    """See `hashing.hash_rows`."""
    rows: torch.Tensor = form(ids, reference).hash_rows(ids, layout)
    return rows


def lookup(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """See `reference.lookup`."""
    out: torch.Tensor = form(rows, reference).lookup(table, rows)
    return out


def gate(h: torch.Tensor, kv: torch.Tensor, h_weight: torch.Tensor, k_weight: torch.Tensor) -> torch.Tensor:
    """See `reference.gate`."""
    out: torch.Tensor = form(h, reference).gate(h, kv, h_weight, k_weight)
    return out


def short_conv(
    u: torch.Tensor,
    weight: torch.Tensor,
    norm: torch.Tensor,
    dilation: int,
    before: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `reference.short_conv`."""
    out: torch.Tensor = form(u, reference).short_conv(u, weight, norm, dilation, before)
    return out
