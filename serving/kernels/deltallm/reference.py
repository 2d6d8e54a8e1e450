"""DeltaLLM in plain PyTorch: keys as thresholded differences, exact near the query, approximate far from it.

    e_t = k_t - r;  D_tc = e_tc where |e_tc| > Θ_c, else 0;  r ← r + D_t;  k̂_t = r
    l_ij = c q_i·k_j   if i - j < L or j < n_sink,   else   c q_i·k̂_j

The comparison is with what was accumulated, not with the previous token, so |k - k̂| ≤ Θ at every token. Whole
tokens that stay within Θ of the first of their run share its key, and then, exactly,

    Σ_j softmax_j(c q·k̂_j) v_j = Σ_a softmax_a(c q·r_a + ln m_a) v̄_a      over runs a of m_a tokens

Or the keys k̂ are stored packed, as a bit for each channel of each token and what it changed to; no token is
left out, and bytes are saved.

Source: "DeltaLLM: A Training-Free Framework Exploiting Temporal Sparsity for Efficient Edge LLM Inference",
arXiv 2507.19608; thresholds, windows and the form of runs are this project's.
"""

from typing import NamedTuple

import torch


class Runs(NamedTuple):
    """k, v [runs, kv_heads, head_dim]: the first key and the mean value of each run.

    mass [kv_heads, runs]: its tokens, 0 where a head has fewer runs.
    """

    k: torch.Tensor
    v: torch.Tensor
    mass: torch.Tensor


TILE = 64
"""Tokens in a tile of packed keys: the bits of a word."""


class Packed(NamedTuple):
    """k̂ as what changed, in tiles of TILE tokens, each of which can be read alone.

    words int64 [tiles, kv_heads, head_dim]: bit t says that the channel changed at the tile's token t; at the
    first all count as changed. values [changed]: to what, channel after channel, in the order of the tokens.
    first int64 [tiles, kv_heads]: where in `values` those of a tile and head begin.
    """

    words: torch.Tensor
    first: torch.Tensor
    values: torch.Tensor

    @property
    def n_bytes(self) -> int:
        """What takes the place of the keys."""
        return sum(x.numel() * x.element_size() for x in self)


class Sparsity(NamedTuple):
    """Shares of zeros: of work (causal pairs; window and sinks are dense), of elements, of whole tokens."""

    work: float
    elements: float
    tokens: float


def thresholds(k: torch.Tensor, theta: float = 0.5) -> torch.Tensor:
    """Θ [kv_heads, head_dim]: theta standard deviations over the tokens of k [n, kv_heads, head_dim]."""
    return theta * k.to(torch.promote_types(k.dtype, torch.float32)).std(0, correction=0)


def encode(
    k: torch.Tensor, limit: torch.Tensor, n_sink: int, state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """k̂ as k [n, kv_heads, head_dim], which channels changed (bool, as k), and the state r to go on with.

    limit is Θ [kv_heads, head_dim]. The first `n_sink` tokens, and the very first, are exact. In parts, with
    the state of the part before and n_sink = 0, it gives what one call gives.
    """
    wide = torch.promote_types(k.dtype, torch.float32)
    approximate, changed = torch.empty_like(k), torch.empty(k.shape, dtype=torch.bool, device=k.device)
    r = None if state is None else state.to(wide)
    for t in range(len(k)):
        now = k[t].to(wide)
        new = torch.ones_like(now, dtype=torch.bool) if r is None or t < n_sink else (now - r).abs() > limit
        r = now if r is None else torch.where(new, now, r)
        approximate[t], changed[t] = r.to(k.dtype), new
    assert r is not None, "encode: no tokens and no state"
    return approximate, changed, r.to(k.dtype)


def run_ids(k: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """The run of each token, int32 [kv_heads, n], counted from 0: a new one where any channel leaves Θ."""
    wide = torch.promote_types(k.dtype, torch.float32)
    n, n_kv, _ = k.shape
    ids = torch.zeros(n_kv, n, dtype=torch.int32, device=k.device)
    r = k[0].to(wide)
    current = torch.zeros(n_kv, dtype=torch.int32, device=k.device)
    for t in range(1, n):
        now = k[t].to(wide)
        left = ((now - r).abs() > limit).any(-1)
        current = current + left
        r = torch.where(left[:, None], now, r)
        ids[:, t] = current
    return ids


def gather_runs(k: torch.Tensor, v: torch.Tensor, ids: torch.Tensor) -> Runs:
    """The runs of `run_ids`, padded to the head with most of them."""
    n, n_kv, _ = k.shape
    n_runs = int(ids.max()) + 1
    wide = torch.promote_types(v.dtype, torch.float32)
    at = ids.long()
    mass = torch.zeros(n_kv, n_runs, dtype=wide, device=k.device).scatter_add_(
        1, at, torch.ones(n_kv, n, dtype=wide, device=k.device)
    )
    total = torch.zeros(n_kv, n_runs, v.shape[2], dtype=wide, device=k.device)
    total.scatter_add_(1, at[..., None].expand(-1, -1, v.shape[2]), v.transpose(0, 1).to(wide))
    order = torch.arange(n, device=k.device).expand(n_kv, -1)
    first = torch.full((n_kv, n_runs), n - 1, device=k.device).scatter_reduce(1, at, order, "amin")
    keys = k.transpose(0, 1).gather(1, first[..., None].expand(-1, -1, k.shape[2]))
    mean = total / mass.clamp_min(1)[..., None]
    return Runs(keys.transpose(0, 1), mean.transpose(0, 1).to(v.dtype), mass)


def last_keys(runs: Runs) -> torch.Tensor:
    """The key of each head's last run, [1, kv_heads, head_dim]."""
    head = torch.arange(runs.k.shape[1], device=runs.k.device)
    return runs.k[(runs.mass > 0).sum(1) - 1, head][None]


def extend_runs(runs: Runs, k: torch.Tensor, v: torch.Tensor, ids: torch.Tensor) -> Runs:
    """The runs after more tokens k, v [n, kv_heads, head_dim]: what all at once would have given.

    ids int32 [kv_heads, n] is `run_ids` of `last_keys` and k, without its first column.
    """
    wide = runs.mass.dtype
    at = (runs.mass > 0).sum(1, keepdim=True) - 1 + ids.long()
    more = (0, int(at.max()) + 1 - runs.mass.shape[1])
    mass = torch.nn.functional.pad(runs.mass, more)
    held = torch.nn.functional.pad(runs.v.transpose(0, 1).to(wide), (0, 0, *more)) * mass[..., None]
    mass = mass.scatter_add(1, at, torch.ones_like(at, dtype=wide))
    total = held.scatter_add(1, at[..., None].expand(-1, -1, v.shape[2]), v.transpose(0, 1).to(wide))
    keys = torch.nn.functional.pad(runs.k.transpose(0, 1), (0, 0, *more))
    begins = torch.diff(ids, dim=1, prepend=torch.zeros_like(ids[:, :1])) > 0
    rows, tokens = begins.nonzero(as_tuple=True)
    keys[rows, at[rows, tokens]] = k[tokens, rows]
    mean = total / mass.clamp_min(1)[..., None]
    return Runs(keys.transpose(0, 1), mean.transpose(0, 1).to(v.dtype), mass)


def pack(approximate: torch.Tensor, changed: torch.Tensor) -> Packed:
    """k̂ and what changed, as `encode` gives them, packed; the last tile is filled up with its last token."""
    n, n_kv, d = approximate.shape
    empty = -n % TILE

    def tiles(x: torch.Tensor) -> torch.Tensor:
        """[tiles, kv_heads, head_dim, TILE]."""
        more = x.new_zeros(empty, n_kv, d)
        return torch.cat([x, more]).view(-1, TILE, n_kv, d).permute(0, 2, 3, 1).contiguous()

    bits = tiles(changed)
    bits[..., 0] = True
    counts = bits.sum((2, 3))
    first = (counts.flatten().cumsum(0) - counts.flatten()).view_as(counts)
    words = (bits.long() << torch.arange(TILE, device=bits.device)).sum(-1)
    return Packed(words, first, tiles(approximate)[bits])


def unpack(packed: Packed) -> torch.Tensor:
    """k̂ [tiles · TILE, kv_heads, head_dim], bit for bit what was packed."""
    words, first, values = packed
    bits = (words[..., None] >> torch.arange(TILE, device=words.device)) & 1
    of_channel = bits.sum(-1)
    before = of_channel.cumsum(-1) - of_channel
    at = first[..., None, None] + before[..., None] + bits.cumsum(-1) - 1
    return values[at].permute(0, 3, 1, 2).flatten(0, 1)


def attend_packed(
    q: torch.Tensor,
    words: torch.Tensor,
    first: torch.Tensor,
    values: torch.Tensor,
    tiles: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of q [batch, heads, head_dim] over packed keys and whole values.

    words, first, values as in Packed; tiles int [batch, width]: the tiles of each sequence, negative for
    none. v_cache [slots, kv_heads, head_dim]; slots int [batch, width · TILE]: where the value of each of the
    tiles' tokens lies, negative for a token that is none. Returns o as q, and the natural log-sum-exp [batch,
    heads], float32 or wider. A row without tokens gives o = 0 and -inf.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    k = unpack(Packed(words, first, values)).to(wide)
    batch, n_heads, _ = q.shape
    group = n_heads // words.shape[1]
    o = q.new_zeros(batch, n_heads, v_cache.shape[2], dtype=wide)
    lse = q.new_full((batch, n_heads), -torch.inf, dtype=wide)
    token = tiles.long()[..., None] * TILE + torch.arange(TILE, device=q.device)
    there = (slots >= 0) & (tiles >= 0).repeat_interleave(TILE, 1)
    for b in range(batch):
        k_at, v_at = token[b].flatten()[there[b]], slots[b][there[b]].long()
        for h in range(n_heads if len(v_at) else 0):
            s = k[k_at, h // group] @ q[b, h].to(wide) * scale
            lse[b, h] = torch.logsumexp(s, 0)
            o[b, h] = torch.softmax(s, 0) @ v_cache[v_at, h // group].to(wide)
    return o.to(q.dtype), lse


def hybrid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    approximate: torch.Tensor,
    v: torch.Tensor,
    local: int,
    n_sink: int,
    scale: float,
) -> torch.Tensor:
    """Causal attention with exact keys near the query and at the start.

    q [n, heads, head_dim]; k, approximate, v [n, kv_heads, head_dim]. Returns o as q.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    n, group = len(q), q.shape[1] // k.shape[1]
    exact, delta = (
        torch.einsum("ihd,jhd->hij", q.to(wide), x.to(wide).repeat_interleave(group, 1)) * scale
        for x in (k, approximate)
    )
    i, j = torch.arange(n, device=q.device)[:, None], torch.arange(n, device=q.device)
    s = torch.where((i - j < local) | (j < n_sink), exact, delta).masked_fill(j > i, -torch.inf)
    return torch.einsum("hij,jhd->ihd", torch.softmax(s, -1), v.to(wide).repeat_interleave(group, 1)).to(
        q.dtype
    )


def sparsity(changed: torch.Tensor, local: int, n_sink: int) -> Sparsity:
    """How much of what `encode` gave is zero; changed bool [n, kv_heads, head_dim]."""
    n = len(changed)
    zero = (~changed).double().mean((1, 2))
    used = (
        torch.arange(n - 1, -1, -1, device=changed.device).sub(local - 1).clamp_min(0)
    )  # queries beyond the window
    used[:n_sink] = 0
    work = float((zero * used).sum()) / (n * (n + 1) / 2)
    return Sparsity(work, float(zero.mean()), float((~changed).all(-1).double().mean()))
