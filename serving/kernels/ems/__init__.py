"""EMS: a KV cache of a fixed number of entries per head, by evicting and merging; formulas in `reference.py`.

Chooses Triton where it runs, else the reference.
"""

import torch

from ..base import form
from . import reference
from .reference import Config, Entries, classify, global_local_score, pooled
from .unrotated import Rotary, merge_unrotated, taken

__all__ = [
    "Config",
    "Entries",
    "Rotary",
    "attend",
    "classify",
    "column_sums",
    "compress",
    "global_local_score",
    "pooled",
    "score",
]


def score(q: torch.Tensor, k: torch.Tensor, config: Config, scale: float) -> torch.Tensor:
    """s [kv_heads, n] of the keys k [n, kv_heads, head_dim], by the last queries q [n_q, heads, head_dim]."""
    global_, local = column_sums(q, k, config.window, scale)
    return pooled(global_local_score(global_, local, len(q)), config.pool)


def column_sums(
    q: torch.Tensor, k: torch.Tensor, window: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """sG and sL [kv_heads, n], see `reference.column_sums`. Of a prompt that is read in parts, the sG of its
    parts add up."""
    ours = form(q, reference)
    sums: tuple[torch.Tensor, torch.Tensor] = ours.column_sums(q, k, ours.row_lse(q, k, scale), window, scale)
    return sums


def compress(
    k: torch.Tensor,
    v: torch.Tensor,
    s: torch.Tensor,
    config: Config,
    *,
    position: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    mass: torch.Tensor | None = None,
    rotary: Rotary | None = None,
) -> Entries:
    """`config.budget` entries from n tokens: k, v [n, kv_heads, head_dim], s [kv_heads, n].

    With n ≤ budget nothing changes. The inputs are not written to. Compressing again passes the entries' own
    position, weight and mass [kv_heads, n], so that a centre counts by all that it holds. With `rotary` keys
    are merged as they were before they were turned by it.
    """
    n, n_kv = k.shape[:2]
    if position is None:
        position = torch.arange(n, device=k.device).expand(n_kv, n)
    weight = s if weight is None else weight
    mass = torch.ones_like(s) if mass is None else mass
    if n <= config.budget:
        same = torch.arange(n, dtype=torch.int32, device=k.device).expand(n_kv, n)
        return Entries(k, v, position, weight, mass, same)
    ours = form(k, reference)
    centres, tokens = classify(s, config)
    target = ours.assign(k, v, centres, tokens, config.tau)
    if not config.merge_keys:
        kept = taken(k, centres)
    elif rotary is None:
        kept = ours.merge(k, weight, centres, tokens, target, True)
    else:
        kept = merge_unrotated(k, weight, position, centres, tokens, target, *rotary)
    merged = ours.merge(v, weight, centres, tokens, target, False)
    recent = torch.arange(n - config.window, n, device=k.device)
    where = torch.cat([centres, recent.expand(n_kv, -1)], 1)
    source = _source(n, where, tokens, target, config.n_centres)
    return Entries(
        torch.cat([kept, k[recent]]),
        torch.cat([merged, v[recent]]),
        position.gather(1, where),
        _sums(weight, source, config.budget),
        _sums(mass, source, config.budget),
        source,
    )


def attend(
    q: torch.Tensor, entries: Entries, scale: float, *, mass_bias: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of queries q [n_q, heads, head_dim] over all entries: o as q, log-sum-exp [n_q, heads]."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // entries.k.shape[1]
    k, v = (x.to(wide).repeat_interleave(group, 1) for x in (entries.k, entries.v))
    s = torch.einsum("ihd,jhd->ihj", q.to(wide), k) * scale
    if mass_bias:
        s = s + entries.mass.to(wide).log().repeat_interleave(group, 0)
    return torch.einsum("ihj,jhd->ihd", torch.softmax(s, -1), v).to(q.dtype), torch.logsumexp(s, -1)


def _source(n: int, where: torch.Tensor, tokens: torch.Tensor, target: torch.Tensor, m: int) -> torch.Tensor:
    n_kv, budget = where.shape
    source = where.new_full((n_kv, n + 1), -1, dtype=torch.int32)  # the last column takes what is no token
    entry = torch.arange(budget, dtype=torch.int32, device=where.device).expand(n_kv, -1)
    source.scatter_(1, where, entry)
    merged = torch.where(target < m, target, -1).to(torch.int32)
    source.scatter_(1, torch.where(tokens >= 0, tokens, n), merged)
    return source[:, :n]


def _sums(x: torch.Tensor, source: torch.Tensor, budget: int) -> torch.Tensor:
    """Of each entry. In float64: a GPU adds in any order, and the result must not depend on it."""
    total = x.new_zeros(len(x), budget + 1, dtype=torch.float64)
    total.scatter_add_(1, torch.where(source >= 0, source, budget).long(), x.double())
    return total[:, :budget].to(x.dtype)
