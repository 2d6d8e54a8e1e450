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


def merge(
    o: torch.Tensor, lse: torch.Tensor, more: torch.Tensor, more_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention over two disjoint sets of keys from that over each: o [..., head_dim], lse [...]."""
    both = torch.logaddexp(lse, more_lse)
    share = torch.where(torch.isneginf(both), 0.0, torch.exp(lse - both)).unsqueeze(-1)
    rest = torch.where(torch.isneginf(both), 0.0, torch.exp(more_lse - both)).unsqueeze(-1)
    return (share * o.to(lse.dtype) + rest * more.to(lse.dtype)).to(o.dtype), both
