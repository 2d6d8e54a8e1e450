"""Hogwild attention in plain PyTorch: workers that read one set of cache blocks, each in its own order.

Keys are stored rotated by their position in their block, once. Worker w sees block f at offset o_f(w); with
R(a)ᵀ R(b) = R(b - a) the score of its query at position P is

    (R(P) q)·(R(o_f + j) k_j) = (R(P - o_f) q)·(R(j) k_j)

so one query is rotated a block, and no key. The location P - o_f also masks: key j is seen iff j ≤ P - o_f.
Source: "Hogwild! Inference: Parallel LLM Generation via Concurrent Attention", arXiv 2504.06261.
"""

from collections.abc import Sequence

import torch


def rotate(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """R x for x [..., head_dim], by angle [..., head_dim / 2] for the pairs (j, j + head_dim / 2)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    a, b = x.to(wide).chunk(2, -1)
    cos, sin = angle.to(wide).cos(), angle.to(wide).sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def locations(views: Sequence[Sequence[int]], lengths: Sequence[int], n_new: int) -> torch.Tensor:
    """P - o_f, int64 [blocks, workers, n_new]; -1 where a worker does not see the block.

    views[w] lists the blocks in w's order, its own last; lengths count the new tokens, already appended.
    """
    loc = torch.full((len(lengths), len(views), n_new), -1, dtype=torch.int64)
    for w, view in enumerate(views):
        behind = 0  # tokens of this block and of those after it
        for f in reversed(view):
            behind += lengths[f]
            loc[f, w] = torch.arange(behind - n_new, behind)
    return loc


def attend(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor,
    loc: torch.Tensor,
    frequency: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """One softmax over all that a worker sees, by rotated queries. Returns o as q.

    q [workers, n_new, heads, head_dim], not rotated; pools [slots, kv_heads, head_dim], keys rotated by their
    place in the block; slots int [blocks, longest], -1 beyond a block's end; loc as `locations` gives it;
    frequency [head_dim / 2], radians a position. A query that sees nothing gives 0.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[2] // k_pool.shape[1]
    scores, values = [], []
    for f in range(len(slots)):
        listed = slots[f][slots[f] >= 0].long()
        angle = loc[f].to(wide)[..., None, None] * frequency.to(wide)
        turned = rotate(q.to(wide), angle)
        k = k_pool[listed].to(wide).repeat_interleave(group, 1)
        s = torch.einsum("wshd,jhd->wshj", turned, k) * scale
        j = torch.arange(len(listed), device=q.device)
        scores.append(s.masked_fill(j > loc[f][..., None, None], -torch.inf))
        values.append(v_pool[listed].to(wide).repeat_interleave(group, 1))
    every = torch.cat(scores, -1)
    blind = torch.isneginf(every).all(-1, keepdim=True)
    p = torch.softmax(every.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)
    return torch.einsum("wshj,jhd->wshd", p, torch.cat(values)).to(q.dtype)


def attend_by_keys(
    q: torch.Tensor,
    blocks: Sequence[tuple[torch.Tensor, torch.Tensor]],
    views: Sequence[Sequence[int]],
    frequency: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The same by its definition: each worker's blocks side by side, the keys rotated to where it sees them.

    blocks: (k [length, kv_heads, head_dim] rotated by place in the block, v) of each. For comparison.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    _, n_new, n_heads, _ = q.shape
    out = torch.zeros(*q.shape[:3], blocks[0][1].shape[-1], dtype=wide, device=q.device)
    for w, view in enumerate(views):
        offset, keys, values = 0, [], []
        for f in view:
            k, v = blocks[f]
            keys.append(rotate(k, torch.full((len(k), 1, 1), offset, device=k.device) * frequency))
            values.append(v)
            offset += len(k)
        group = n_heads // keys[0].shape[1]
        k, v = (torch.cat(x).to(wide).repeat_interleave(group, 1) for x in (keys, values))
        position = torch.arange(offset - n_new, offset, device=q.device)
        turned = rotate(q[w].to(wide), position[:, None, None].to(wide) * frequency.to(wide))
        s = torch.einsum("shd,jhd->hsj", turned, k) * scale
        s = s.masked_fill(torch.arange(offset, device=q.device) > position[:, None], -torch.inf)
        out[w] = torch.einsum("hsj,jhd->shd", torch.softmax(s, -1), v)
    return out.to(q.dtype)


def moved(k: torch.Tensor, by: int, frequency: torch.Tensor) -> torch.Tensor:
    """The keys of a block, k [length, kv_heads, head_dim], for a place that is `by` positions later.

    A pure rotation, without the factor that some models put on their cosines: a key keeps its length.
    """
    return rotate(k, by * frequency.expand(1, 1, -1))
