"""Engram in plain PyTorch: rows of a hashed table, gated by the hidden state, convolved, added.

    e = concat E[row],   k^(m) = W_K^(m) e,   v = W_V e
    g = ⟨RMS(h^(m)), RMS(k^(m))⟩ / √d,   α = σ(sign(g) √max(|g|, 1e-6)),   u^(m) = α v
    y = u + SiLU(DWConv(RMS(u))),   h^(m) ← h^(m) + y^(m)

m are the branches of the residual stream, one in a plain transformer. The convolution is depthwise, causal,
of 4 taps N apart, and zero at the start. Source: "Conditional Memory via Scalable Lookup", arXiv 2601.07372;
the square root under the gate is the demonstration code's.
"""

import torch

from .hashing import Layout
from .hashing import hash_rows as hash_rows_exactly

EPS = 1e-6


def hash_rows(ids: torch.Tensor, layout: Layout) -> torch.Tensor:
    """See `hashing.hash_rows`."""
    return hash_rows_exactly(ids, layout)


def lookup(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """e [tokens, columns · width] from table [rows, width] and rows int64 [tokens, columns]."""
    return table[rows].flatten(1)


def gate(h: torch.Tensor, kv: torch.Tensor, h_weight: torch.Tensor, k_weight: torch.Tensor) -> torch.Tensor:
    """u [tokens, branches, d]: h as u; kv [tokens, (branches + 1) · d], keys first; weights [branches, d]."""
    n, branches, d = h.shape
    wide = torch.promote_types(h.dtype, torch.float32)
    parts = kv.to(wide).view(n, branches + 1, d)
    k, v = parts[:, :-1], parts[:, -1:]
    h_ = _rms(h.to(wide)) * h_weight.to(wide)
    g = (h_ * _rms(k) * k_weight.to(wide)).sum(-1, keepdim=True) / d**0.5
    alpha = torch.sigmoid(torch.sign(g) * g.abs().clamp_min(1e-6).sqrt())
    return (alpha * v).to(h.dtype)


def short_conv(
    u: torch.Tensor,
    weight: torch.Tensor,
    norm: torch.Tensor,
    dilation: int,
    before: torch.Tensor | None = None,
) -> torch.Tensor:
    """y as u [tokens, branches, d], one sequence; weight [branches, d, taps], the last tap at the token.

    norm [branches, d]; before [(taps - 1) · dilation, branches, d]: the values of u before the first token.
    """
    taps = weight.shape[2]
    wide = torch.promote_types(u.dtype, torch.float32)
    past = u.new_zeros((taps - 1) * dilation, *u.shape[1:]) if before is None else before
    x = _rms(torch.cat([past, u]).to(wide)) * norm.to(wide)
    total = torch.zeros(u.shape, dtype=wide, device=u.device)
    for tap in range(taps):
        total = total + x[tap * dilation : tap * dilation + len(u)] * weight[..., tap].to(wide)
    return (u.to(wide) + torch.nn.functional.silu(total)).to(u.dtype)


def _rms(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPS)
