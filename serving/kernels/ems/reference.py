"""EMS in plain PyTorch: per KV head keep important tokens, merge similar ones into them, drop the rest.

    s_j = max( sG_j · mean(sL)/mean(sG), sL_j )       global-local score of token j
    M = B - L_w centres: the best by s;  to be merged: the next ones, until a share γ of Σ s is covered
    r_xy = cos(k_x, k_y) · cos(v_x, v_y), both cosines positive;  y*(x) = argmax_y r_xy, dropped if r < τ
    v_y ← Σ s_x v_x / Σ s_x,   k_y ← |k_y| u/|u|,  u = Σ s_x k_x/|k_x|       over x in the class of y

Dropping is a class of its own (M), so every head has the same shapes. Source: "EMS: Adaptive Evict-then-Merge
Strategy for Head-wise KV Cache Compression Based on Global-Local Importance", arXiv 2412.08521; γ, ρ, τ and
the exact merge are reconstructed.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """Sizes in tokens per KV head. Raises ValueError if nothing would be left to choose."""

    budget: int = 256  # the paper's headline
    window: int = 32  # observation window, kept as it is; SnapKV's
    tail: int = 128  # generated tokens beyond the window before compressing again; reconstructed
    tau: float = 0.5
    gamma: float = 0.98
    rho: int = 8  # at most (ρ - 1) · M tokens are merged
    merge_keys: bool = True
    mass_bias: bool = False  # add ln(class size) to a centre's logits
    pool: int = 1  # a score becomes the largest of so many neighbours'; SnapKV's practice has 5

    def __post_init__(self) -> None:
        if not 0 < self.window < self.budget:
            raise ValueError(
                f"EMS: write 0 < window < budget, got window={self.window}, budget={self.budget}"
            )
        if self.rho < 1 or not 0 < self.gamma <= 1 or self.tail < 1:
            raise ValueError("EMS: write rho >= 1, 0 < gamma <= 1 and tail >= 1")
        if self.pool < 1 or self.pool % 2 == 0:
            raise ValueError(f"EMS: write an odd pool >= 1, got {self.pool}")

    @property
    def n_centres(self) -> int:
        """M."""
        return self.budget - self.window


@dataclass(frozen=True)
class Entries:
    """A compressed cache: k, v [entries, kv_heads, head_dim]; the rest [kv_heads, entries].

    `position` of a merged entry is its centre's; `weight` = Σ s of its class, `mass` = its size. `source`
    int32 [kv_heads, n] tells which entry each token went into, -1 if it was dropped.
    """

    k: torch.Tensor
    v: torch.Tensor
    position: torch.Tensor
    weight: torch.Tensor
    mass: torch.Tensor
    source: torch.Tensor


def row_lse(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """Log-sum-exp of each query's causal row, [n_q, heads]; the queries are the last n_q positions."""
    before = len(k) - len(q)
    rows = [torch.logsumexp(_logits(q[a:b], k[: before + b], scale), -1) for a, b in _chunks(q, k)]
    return torch.cat(rows, 1).transpose(0, 1)


def column_sums(
    q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor, window: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """sG, sL [kv_heads, n]: the attention each key gets from all queries, and from the last `window`.

    q [n_q, heads, head_dim] at the last n_q of n positions; k [n, kv_heads, head_dim]; lse as `row_lse`. The
    mean over the heads of a group.
    """
    n, n_kv, _ = k.shape
    wide = torch.promote_types(torch.promote_types(q.dtype, torch.float32), lse.dtype)
    global_, local = q.new_zeros(2, n_kv, n, dtype=wide)
    for a, b in _chunks(q, k):
        end = n - len(q) + b
        p = torch.exp(_logits(q[a:b], k[:end], scale) - lse[a:b].transpose(0, 1)[..., None])
        p = p.view(n_kv, -1, *p.shape[1:]).mean(1)
        global_[:, :end] += p.sum(1)
        local[:, :end] += p[:, max(len(q) - window - a, 0) :].sum(1)
    return global_, local


def global_local_score(global_: torch.Tensor, local: torch.Tensor, n_queries: int) -> torch.Tensor:
    """s [kv_heads, n] from the column sums.

    With fewer queries than keys (a cached prefix) each column counts by how many queries could see it. Raises
    ValueError on a number that is not finite.
    """
    n = global_.shape[1]
    if n_queries < n:
        seen = (n - torch.arange(n, device=global_.device)).clamp_max(n_queries)
        global_ = global_ / seen
    total = global_.mean(1, keepdim=True)
    s = torch.maximum(global_ * local.mean(1, keepdim=True) / total.clamp_min(1e-30), local)
    if not torch.isfinite(s).all():
        raise ValueError("EMS: a score is not finite; the attention that it sums holds NaN or infinity")
    return s


def pooled(s: torch.Tensor, pool: int) -> torch.Tensor:
    """The largest score among each token and its (pool - 1)/2 neighbours on both sides, as s."""
    return torch.nn.functional.max_pool1d(s[None], pool, stride=1, padding=pool // 2)[0] if pool > 1 else s


def classify(s: torch.Tensor, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres int64 [kv_heads, M], by position, and tokens to be merged [kv_heads, ≤ (ρ-1)·M], -1 for none.

    s [kv_heads, n]; the last `window` tokens are no candidates. Of equal scores the later token wins, so that
    a head without any attention keeps its latest. Raises ValueError if n ≤ budget: nothing is to be done.
    """
    n, m = s.shape[1], config.n_centres
    if n <= config.budget:
        raise ValueError(f"EMS: {n} tokens are within the budget of {config.budget}")
    candidates = s[:, : n - config.window]
    order = candidates.flip(1).argsort(dim=1, descending=True, stable=True)
    order = candidates.shape[1] - 1 - order
    ranked = candidates.gather(1, order).to(torch.promote_types(s.dtype, torch.float32))
    covered = ranked.cumsum(1) / ranked.sum(1, keepdim=True).clamp_min(1e-30)
    rank = torch.arange(candidates.shape[1], device=s.device)
    n_relevant = (covered < config.gamma).sum(1, keepdim=True) + 1
    merged = (rank >= m) & (rank < n_relevant)
    width = min((config.rho - 1) * m, candidates.shape[1] - m)
    tokens = torch.where(merged, order, -1)[:, m : m + width]
    return order[:, :m].sort(1).values, tokens


def assign(
    k: torch.Tensor, v: torch.Tensor, centres: torch.Tensor, tokens: torch.Tensor, tau: float
) -> torch.Tensor:
    """The class of each token to be merged, int64 [kv_heads, tokens]: a centre, or M for the zero class.

    k, v [n, kv_heads, head_dim]; centres, tokens as `classify` gives them. Ties go to the lower index.
    """
    similar = _cosines(k, centres, tokens), _cosines(v, centres, tokens)
    r = torch.where((similar[0] > 0) & (similar[1] > 0), similar[0] * similar[1], -1.0)
    best, target = r.max(-1)
    return torch.where((best >= tau) & (tokens >= 0), target, centres.shape[1])


def merge(
    x: torch.Tensor, weights: torch.Tensor, centres: torch.Tensor, tokens: torch.Tensor, target: torch.Tensor,
    unit: bool,
) -> torch.Tensor:  # fmt: skip
    """The centres after merging, [M, kv_heads, head_dim]: weighted means, or, if `unit`, weighted sums of
    directions at the centre's own length.

    x [n, kv_heads, head_dim]; weights [kv_heads, n]; the rest as `assign` takes and gives it.
    """
    n_heads, m = centres.shape
    wide = x.transpose(0, 1).to(torch.promote_types(x.dtype, torch.float32))
    members = torch.cat([centres, tokens.clamp_min(0)], 1)
    class_of = torch.cat([torch.arange(m, device=x.device).expand(n_heads, -1), target], 1)

    def sums(of: torch.Tensor) -> torch.Tensor:
        """Of [kv_heads, members, ...] over each class; the last class, which is dropped, is left out."""
        total = of.new_zeros(n_heads, m + 1, *of.shape[2:])
        index = class_of.view(*class_of.shape, *[1] * (of.dim() - 2)).expand(of.shape)
        return total.scatter_add_(1, index, of)[:, :m]

    member = wide.gather(1, members[..., None].expand(-1, -1, wide.shape[2]))
    w = weights.gather(1, members).to(wide.dtype)
    centre, total = member[:, :m], sums(w)[..., None]
    if unit:
        u = sums(w[..., None] * torch.nn.functional.normalize(member, dim=-1))
        merged = centre.norm(dim=-1, keepdim=True) * torch.nn.functional.normalize(u, dim=-1)
    else:
        merged = sums(w[..., None] * member) / torch.where(total > 0, total, 1.0)
    alone = sums(torch.ones_like(w))[..., None] == 1
    return torch.where(alone | (total <= 0), centre, merged).transpose(0, 1).contiguous().to(x.dtype)


def merge_unrotated(
    k: torch.Tensor, weights: torch.Tensor, position: torch.Tensor, centres: torch.Tensor,
    tokens: torch.Tensor, target: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """What `unrotated.merge_unrotated` gives, class by class, channels c and c + half being the parts of one
    complex number."""
    half, turns = cos.shape[1], torch.complex(cos, sin)
    turns = turns / turns.abs()
    keys = k[centres.T, torch.arange(k.shape[1], device=k.device)]
    for h in range(k.shape[1]):
        turn = turns[position[h]]
        near = _times(k[:, h].to(cos.dtype), turn.conj(), half)
        for y, centre in enumerate(centres[h].tolist()):
            members = [centre, *tokens[h][target[h] == y].tolist()]
            w = weights[h, members].to(cos.dtype)
            if len(members) > 1 and w.sum() > 0:
                u = w @ torch.nn.functional.normalize(near[members], dim=-1)
                merged = near[centre].norm() * torch.nn.functional.normalize(u, dim=0)
                keys[y, h] = _times(merged, turn[centre], half).to(k.dtype)
    return keys


# ---------------------------------------------------------------- details


def _times(x: torch.Tensor, turn: torch.Tensor, half: int) -> torch.Tensor:
    pair = torch.complex(x[..., :half], x[..., half : 2 * half]) * turn
    return torch.cat([pair.real, pair.imag, x[..., 2 * half :]], -1)


def _chunks(q: torch.Tensor, k: torch.Tensor) -> list[tuple[int, int]]:
    """Queries whose logits are in memory at a time."""
    rows = max(1, 2**24 // (q.shape[1] * len(k)))
    return [(a, min(a + rows, len(q))) for a in range(0, len(q), rows)]


def _logits(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """[heads, n_q, n], causal, the queries at the end."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    keys = k.to(wide).repeat_interleave(group, 1)
    s = torch.einsum("ihd,jhd->hij", q.to(wide), keys) * scale
    n_q, n = s.shape[1:]
    later = torch.ones(n_q, n, dtype=torch.bool, device=q.device).triu(n - n_q + 1)
    return s.masked_fill(later, -torch.inf)


def _cosines(x: torch.Tensor, centres: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[kv_heads, tokens, M]."""
    wide = x.transpose(0, 1).to(torch.promote_types(x.dtype, torch.float32))
    unit = torch.nn.functional.normalize(wide, dim=-1)
    rows = torch.arange(len(unit), device=x.device)[:, None]
    return unit[rows, tokens.clamp_min(0)] @ unit[rows, centres].transpose(1, 2)
