"""EMS's merge of keys whose rotary positions are taken off first, and the centre's put on again.

    k_y ← R(p_y) |k_y| u/|u|,   u = Σ s_x R(-p_x) k_x/|k_x|       over x in the class of y

R(p) turns channels c and c + half by the angle of c at position p. Which keys are alike is told by the keys
as they are.
"""

from typing import NamedTuple

import torch

from ..base import form
from . import reference


class Rotary(NamedTuple):
    """cos and sin [positions, half] by which a model turns its keys.

    Channel c goes with channel c + half; those beyond 2 · half are not turned. A factor that the tables have
    (YaRN's) is left out.
    """

    cos: torch.Tensor
    sin: torch.Tensor


def turned(x: torch.Tensor, position: torch.Tensor, rotary: Rotary, *, back: bool = False) -> torch.Tensor:
    """x [rows, kv_heads, head_dim] turned by its positions [kv_heads, rows], float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    cos, sin = (table[position].transpose(0, 1).to(wide.dtype) for table in rotary)
    length = torch.hypot(cos, sin)
    cos, sin = cos / length, (-sin if back else sin) / length
    half = cos.shape[-1]
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def merge_unrotated(
    k: torch.Tensor, weights: torch.Tensor, position: torch.Tensor, centres: torch.Tensor,
    tokens: torch.Tensor, target: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """The centres' keys after merging, [M, kv_heads, head_dim], as `reference.merge` with `unit`.

    The keys k are turned by `position` [kv_heads, n] and cos, sin. A centre that stays alone keeps its own
    bit for bit.
    """
    rotary, m = Rotary(cos, sin), centres.shape[1]
    rows = torch.cat([centres, tokens.clamp_min(0)], 1)
    place = torch.arange(rows.shape[1], device=k.device).expand_as(rows)
    near = turned(taken(k, rows), position.gather(1, rows), rotary, back=True)
    near_weights = weights.gather(1, rows)
    merged = form(k, reference).merge(near, near_weights, place[:, :m], place[:, m:], target, True)
    alone = (merged == near[:m]).all(-1, keepdim=True)
    keys = turned(merged, position.gather(1, centres), rotary).to(k.dtype)
    return torch.where(alone, taken(k, centres), keys)


def taken(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Each head's own rows [kv_heads, m] of x [n, kv_heads, head_dim], as [m, kv_heads, head_dim]."""
    heads = torch.arange(x.shape[1], device=x.device)
    return x[rows.transpose(0, 1), heads]
