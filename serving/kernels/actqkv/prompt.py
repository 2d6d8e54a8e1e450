"""ActQKV's reading of a prompt: each window of queries gathers what its probe finds, then attends densely.

It equals `reference.retrieve`. The probe and the scores are Triton's where it runs, the attention PyTorch's:
what was gathered is dense, but for the window's own triangle.
"""

import torch
from torch.nn.attention.bias import causal_lower_right

from ..base import form
from . import reference
from .reference import page_means, windows


def retrieve(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *,
    window: int, page: int, n_best: int, n_first: int, n_local: int, power: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """See `reference.retrieve`."""
    (n_q, n_heads, d), (n, n_kv, _) = q.shape, k.shape
    ours = form(q, reference)
    full = n // page
    means = page_means(k[: full * page].view(-1, page, n_kv, d), torch.full((full,), page, device=q.device))
    out = torch.empty(n_q, n_heads, v.shape[2], dtype=q.dtype, device=q.device)
    for first, end in windows(n - n_q, n, window):
        own = slice(first - n + n_q, end - n + n_q)
        local = max(first - n_local, 0) // page
        places = torch.arange(n_first, max(local, n_first), device=q.device)
        if len(places) > n_best:
            probe = ours.probe_query(q[own].flatten(1)[None], power).view(1, n_heads, d)
            scores = ours.page_scores(probe, means, places[None])[0]
            best = scores.sort(descending=True, stable=True).indices[:n_best]
            places = places[best.sort().values]
        chosen = torch.cat([torch.arange(min(n_first, local), device=q.device), places])
        at = (chosen[:, None] * page + torch.arange(page, device=q.device)).flatten()
        at = torch.cat([at, torch.arange(local * page, end, device=q.device)])
        heads_first = (x.transpose(0, 1)[None] for x in (q[own], k[at], v[at]))
        # The window comes last, so its triangle is the lower right one; for a mask there is no fast kernel.
        got = torch.nn.functional.scaled_dot_product_attention(
            *heads_first,
            attn_mask=causal_lower_right(end - first, len(at)),
            scale=scale,
            enable_gqa=n_heads != n_kv,
        )
        out[own] = got[0].transpose(0, 1)
    return out
