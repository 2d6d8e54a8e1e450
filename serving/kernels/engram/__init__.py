"""Engram: a large table read at hashed n-grams, gated into the residual stream; formulas in `reference.py`.

Chooses Triton where it runs, else the reference.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

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
    rows: torch.Tensor = _form(ids).hash_rows(ids, layout)
    return rows


def lookup(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """See `reference.lookup`."""
    out: torch.Tensor = _form(rows).lookup(table, rows)
    return out


def gate(h: torch.Tensor, kv: torch.Tensor, h_weight: torch.Tensor, k_weight: torch.Tensor) -> torch.Tensor:
    """See `reference.gate`."""
    out: torch.Tensor = _form(h).gate(h, kv, h_weight, k_weight)
    return out


def short_conv(
    u: torch.Tensor,
    weight: torch.Tensor,
    norm: torch.Tensor,
    dilation: int,
    before: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `reference.short_conv`."""
    out: torch.Tensor = _form(u).short_conv(u, weight, norm, dilation, before)
    return out


def _form(x: torch.Tensor) -> Any:
    if x.is_cuda and find_spec("triton"):
        return import_module(f"{__name__}.kernel")
    return reference
