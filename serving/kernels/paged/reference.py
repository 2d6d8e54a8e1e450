"""Decode attention over listed slots, in plain PyTorch."""

import torch


def decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """o = Σ_s softmax_s(scale · q·k_s + bias_s) v_s over the slots listed for the sequence and the KV head.

    q [batch, heads, head_dim]; caches [slots, kv_heads, head_dim]; slots int [batch, kv_heads or 1, width],
    where a negative entry is none; bias as slots, or None for 0. Returns o as q, and the natural log-sum-exp
    [batch, heads], float32 or wider. A row without slots gives o = 0 and -inf.
    """
    batch, n_heads, _ = q.shape
    n_kv, d_v = k_cache.shape[1], v_cache.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    o = q.new_zeros(batch, n_heads, d_v, dtype=wide)
    lse = q.new_full((batch, n_heads), -torch.inf, dtype=wide)
    for b in range(batch):
        for h in range(n_heads):
            g = h // (n_heads // n_kv)
            row = min(g, slots.shape[1] - 1)
            there = slots[b, row] >= 0
            listed = slots[b, row][there].long()
            if listed.numel():
                s = k_cache[listed, g].to(wide) @ q[b, h].to(wide) * scale
                if bias is not None:
                    s = s + bias[b, row][there].to(wide)
                lse[b, h] = torch.logsumexp(s, 0)
                o[b, h] = torch.softmax(s, 0) @ v_cache[listed, g].to(wide)
    return o.to(q.dtype), lse


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
    """One softmax over the slots of a cache, as in `decode`, and over entries of a pool beside it.

    k_side, v_side [entries, kv_heads, head_dim], side_slots as slots; mass [entries, kv_heads]: for how many
    tokens an entry stands, 0 for none, or None where each stands for one.
    """
    bias = None
    if mass is not None:
        head = torch.arange(mass.shape[1], device=q.device)[:, None]
        held = torch.where(side_slots >= 0, mass[side_slots.clamp_min(0).long(), head], 0)
        side_slots, bias = torch.where(held > 0, side_slots, -1), torch.where(held > 0, held, 1).log()
    return merge(
        *decode(q, k_side, v_side, side_slots, scale, bias), *decode(q, k_cache, v_cache, slots, scale)
    )


def merge(
    o: torch.Tensor, lse: torch.Tensor, more: torch.Tensor, more_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention over two disjoint sets of keys from that over each: o [..., head_dim], lse [...]."""
    both = torch.logaddexp(lse, more_lse)
    share = torch.where(torch.isneginf(both), 0.0, torch.exp(lse - both)).unsqueeze(-1)
    rest = torch.where(torch.isneginf(both), 0.0, torch.exp(more_lse - both)).unsqueeze(-1)
    return (share * o.to(lse.dtype) + rest * more.to(lse.dtype)).to(o.dtype), both
