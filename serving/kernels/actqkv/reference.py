"""ActQKV in plain PyTorch: a probe query per window, pages by their score, a budget for each layer.

    AB_t = (1/D) Σ_c (x_tc - μ_c)² / var_c        how far token t deviates from its window
    w_t = AB_t^p / Σ_u AB_u^p,  q* = Σ_t w_t x_t   the probe
    σ_b = Σ_h q*_h · r_b,h                        the score of page b
    k_l ∝ exp(H(softmax(σ^l / (√d H)))), Σ_l k_l = L k    the pages of layer l

Nothing is evicted or changed; the selection says which pages a step, or a window of a prompt, reads. Source:
"Activation-aware Probe-Query", arXiv 2502.13542; its formulas are reconstructed (AB from the deviation
squared over the variance, as in the authors' earlier work), the blocks from InfLLM, arXiv 2402.04617.
"""

from itertools import pairwise

import torch


def activation_bias(x: torch.Tensor) -> torch.Tensor:
    """AB [..., m] of the window's vectors x [..., m, D]; a constant channel adds nothing."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    m = x.shape[-2]
    square = (x - x.mean(-2, keepdim=True)) ** 2
    var = square.sum(-2, keepdim=True) / max(m - 1, 1)
    floor = 1e-12 * var.amax(-1, keepdim=True) + 1e-30
    return torch.where(var > 0, square / (var + floor), 0.0).mean(-1)


def probe_query(x: torch.Tensor, power: float = 1.0) -> torch.Tensor:
    """q* [..., D] of the window x [..., m, D]: the plain mean if power is 0 or no token deviates."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    weights = activation_bias(wide) ** power
    total = weights.sum(-1, keepdim=True)
    weights = torch.where(total > 0, weights / total.clamp_min(1e-30), 1.0 / x.shape[-2])
    return torch.einsum("...m,...md->...d", weights, wide).to(x.dtype)


def page_means(k_pages: torch.Tensor, n_filled: torch.Tensor) -> torch.Tensor:
    """The mean key of each page: [pages, page_size, kv_heads, head_dim] → [pages, kv_heads, head_dim].

    n_filled int [pages]: how many of its tokens count. A page is represented by its own keys alone, so the
    result may be shared by every request that shares the page. An empty page gives 0.
    """
    wide = k_pages.to(torch.promote_types(k_pages.dtype, torch.float32))
    there = torch.arange(k_pages.shape[1], device=k_pages.device) < n_filled[:, None]
    total = torch.where(there[..., None, None], wide, 0.0).sum(1)
    return (total / n_filled.clamp_min(1)[:, None, None]).to(k_pages.dtype)


def page_scores(probe: torch.Tensor, means: torch.Tensor, page_table: torch.Tensor) -> torch.Tensor:
    """σ [batch, width], float32 or wider: probe [batch, heads, head_dim], means as `page_means`.

    page_table int [batch, width]: the physical page at each place, negative for none, whose score is -inf.
    The heads of a group are summed against their KV head's mean.
    """
    batch, _, d = probe.shape
    n_kv = means.shape[1]
    wide = torch.promote_types(probe.dtype, torch.float32)
    summed = probe.to(wide).view(batch, n_kv, -1, d).sum(2)
    scores = torch.einsum("bhd,bphd->bp", summed, means[page_table.clamp_min(0).long()].to(wide))
    return scores.masked_fill(page_table < 0, -torch.inf)


def select(
    scores: torch.Tensor, n_pages: torch.Tensor, k: torch.Tensor, *, width: int, n_first: int, n_last: int
) -> torch.Tensor:
    """The places to read: the first, the last, the k best between. int64 [batch, width], ascending, then -1.

    scores [batch, places]; n_pages int [batch] places in use; k int [batch]. width at least n_first + n_last
    + the largest k, so that shapes depend on no value. Of equal scores the lower place wins.
    """
    place = torch.arange(scores.shape[1], device=scores.device)
    used = place < n_pages[:, None]
    kept = used & ((place < n_first) | (place >= n_pages[:, None] - n_last))
    least = torch.finfo(scores.dtype).min  # before those that are no candidates
    ranked = scores.clamp_min(least).masked_fill(kept | ~used, -torch.inf)
    rank = ranked.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    chosen = kept | (used & (rank < k[:, None]))
    ascending = torch.where(chosen, place, scores.shape[1]).sort(-1).values[:, :width]
    taken = torch.where(ascending < scores.shape[1], ascending, -1)
    missing = width - taken.shape[1]
    return torch.nn.functional.pad(taken, (0, missing), value=-1) if missing > 0 else taken


def slots_of(
    selected: torch.Tensor, page_table: torch.Tensor, seq_lens: torch.Tensor, page_size: int
) -> torch.Tensor:
    """The slots of selected places, for `paged`: int64 [batch, 1, width · page_size], -1 beyond the end."""
    pages = page_table.gather(1, selected.clamp_min(0)).long()
    within = torch.arange(page_size, device=selected.device)
    position = selected[..., None] * page_size + within
    there = (selected[..., None] >= 0) & (position < seq_lens[:, None, None])
    return torch.where(there, pages[..., None] * page_size + within, -1).flatten(1).unsqueeze(1)


def chosen_slots(
    scores: torch.Tensor, n_tokens: torch.Tensor, k: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, *,
    page: int, width: int, n_first: int, n_last: int,
) -> torch.Tensor:  # fmt: skip
    """The slots of what `select` chooses, for `paged`: [batch, 1, width · page] as table, -1 beyond the end.

    A page is `page` positions of a sequence of n_tokens int [batch]; table int [rows, positions] has the slot
    of each, in the sequence's row, int [batch].
    """
    n_pages = (n_tokens + page - 1) // page
    selected = select(scores, n_pages, k, width=width, n_first=n_first, n_last=n_last)
    position = selected[..., None] * page + torch.arange(page, device=scores.device)
    there = (selected[..., None] >= 0) & (position < n_tokens[:, None, None])
    slots = table[rows[:, None, None], position.clamp(0, table.shape[1] - 1)]
    return torch.where(there, slots, -1).flatten(1).unsqueeze(1)


def retrieve(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, *,
    window: int, page: int, n_best: int, n_first: int, n_local: int, power: float = 1.0,
) -> torch.Tensor:  # fmt: skip
    """Causal attention of a prompt, each window of queries reading what its probe finds: o as q.

    q [n_q, heads, head_dim] at the last n_q of n positions; k, v [n, kv_heads, head_dim]. A window ends where
    its last position + 1 is a multiple of `window`, and where q ends. It reads the first `n_first` pages, the
    `n_best` that score best (of equal ones the lower), the `n_local` tokens before it, rounded up to a page's
    border, and, causally, itself.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    (n_q, n_heads, d), (n, n_kv, _) = q.shape, k.shape
    filled = torch.full((n // page,), page, device=q.device)
    means = page_means(k[: n // page * page].view(-1, page, n_kv, d), filled)
    logits = (
        torch.einsum("ihd,jhd->hij", q.to(wide), k.to(wide).repeat_interleave(n_heads // n_kv, 1)) * scale
    )
    seen = torch.zeros(n_q, n, dtype=torch.bool, device=q.device)
    for first, end in windows(n - n_q, n, window):
        local = max(first - n_local, 0) // page
        rows = seen[first - n + n_q : end - n + n_q]
        rows[:, : min(n_first, local) * page] = True
        rows[:, local * page : end] = torch.ones(end - first, end - local * page, device=q.device).tril(
            first - local * page
        ) > 0  # fmt: skip
        places = torch.arange(n_first, max(local, n_first), device=q.device)
        probe = probe_query(q[first - n + n_q : end - n + n_q].flatten(1), power).view(1, n_heads, d)
        scores = page_scores(probe, means, places[None])[0]
        for best in scores.sort(descending=True, stable=True).indices[:n_best] + n_first:
            rows[:, best * page : (best + 1) * page] = True
    p = torch.softmax(logits.masked_fill(~seen, -torch.inf), -1)
    return torch.einsum("hij,jhd->ihd", p, v.to(wide).repeat_interleave(n_heads // n_kv, 1)).to(q.dtype)


def windows(first: int, end: int, window: int) -> list[tuple[int, int]]:
    """The windows of positions from `first` up to `end`: borders are multiples of `window`, wherever it
    begins."""
    borders = [first, *range(first // window * window + window, end, window), end]
    return list(pairwise(borders))


def effective_pages(scores: torch.Tensor, n_heads: int, head_dim: int) -> torch.Tensor:
    """N = exp(H) of p = softmax(σ / (√d · heads)) over the last axis: how many pages the layer looks at."""
    log_p = torch.log_softmax(scores.double() / (head_dim**0.5 * n_heads), dim=-1)
    return torch.exp(-(log_p.exp() * log_p).nan_to_num(0.0).sum(-1))


def layer_budgets(effective: torch.Tensor, k: int, k_min: int, k_max: int) -> torch.Tensor:
    """Pages of each layer, int64 [layers], in proportion to N [layers], between k_min and k_max.

    They sum to layers · k. With λ such that Σ clip(λ N_l, k_min, k_max) = L k, the shares are rounded by
    largest remainder. Raises ValueError unless 0 < k_min ≤ k ≤ k_max.
    """
    if not 0 < k_min <= k <= k_max:
        raise ValueError(f"write 0 < k_min <= k <= k_max, got k_min={k_min}, k={k}, k_max={k_max}")
    n, total = effective.double(), len(effective) * k
    low, high = 0.0, float(k_max / n.min().clamp_min(1e-9))
    for _ in range(100):
        middle = (low + high) / 2
        if (middle * n).clamp(k_min, k_max).sum() < total:
            low = middle
        else:
            high = middle
    share = (high * n).clamp(k_min, k_max)
    budget = share.floor().long()
    remainder = torch.where(budget < k_max, share - budget, -1.0)
    for layer in remainder.argsort(descending=True, stable=True)[: max(total - int(budget.sum()), 0)]:
        budget[layer] += int(budget[layer] < k_max)
    return budget
