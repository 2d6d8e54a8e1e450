"""DeltaLLM: keys far from the query as thresholded differences, packed, or as runs.

Formulas are in `reference.py`. Chooses Triton where it runs, else the reference.
"""

import torch

from .. import paged
from ..base import form
from . import reference
from .reference import TILE, Packed, Runs, Sparsity, gather_runs, pack, sparsity, thresholds, unpack

__all__ = [
    "TILE",
    "Packed",
    "Runs",
    "Sparsity",
    "attend_packed",
    "attend_runs",
    "encode",
    "extend_runs",
    "gather_runs",
    "hybrid_attention",
    "pack",
    "run_ids",
    "sparsity",
    "thresholds",
    "unpack",
]


def encode(
    k: torch.Tensor, limit: torch.Tensor, n_sink: int, state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `reference.encode`."""
    return form(k, reference).encode(k, limit, n_sink, state)


def run_ids(k: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """See `reference.run_ids`."""
    return form(k, reference).run_ids(k, limit)


def extend_runs(runs: Runs, k: torch.Tensor, v: torch.Tensor, limit: torch.Tensor) -> Runs:
    """See `reference.extend_runs`; limit is Θ [kv_heads, head_dim]."""
    ids = run_ids(torch.cat([reference.last_keys(runs), k]), limit)
    return reference.extend_runs(runs, k, v, ids[:, 1:])


def hybrid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    approximate: torch.Tensor,
    v: torch.Tensor,
    local: int,
    n_sink: int,
    scale: float,
) -> torch.Tensor:
    """See `reference.hybrid_attention`."""
    return form(q, reference).hybrid_attention(q, k, approximate, v, local, n_sink, scale)


def attend_runs(q: torch.Tensor, runs: Runs, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of q [batch, heads, head_dim] over the runs, with ln m as bias: o as q, log-sum-exp [batch,
    heads]."""
    place = torch.arange(len(runs.k), device=q.device).expand(len(q), 1, -1)
    mass, nothing_else = runs.mass.transpose(0, 1), place[..., :0]
    return paged.decode_beside(q, runs.k, runs.v, nothing_else, runs.k, runs.v, place, mass, scale)


def attend_packed(
    q: torch.Tensor,
    packed: Packed,
    tiles: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.attend_packed`."""
    return form(q, reference).attend_packed(q, *packed, tiles, v_cache, slots, scale)
