"""DeltaLLM's encoder, runs, packed keys and hybrid prefill in Triton; thresholds and sums are float32."""

import torch
import triton
import triton.language as tl

from ..base import empty
from ..paged.kernel import parts, store_part, unite
from ..triton_parts import LOG2E, dot, native, softmax_step
from .reference import TILE

_CHANNELS = 32
_BLOCK = 64
_ROWS = 16  # the least that tl.dot takes


def encode(
    k: torch.Tensor, limit: torch.Tensor, n_sink: int, state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `reference.encode`: channels are independent lanes, tokens a loop."""
    n, n_kv, d = k.shape
    k = k.contiguous()
    approximate = empty(n, n_kv, d, dtype=k.dtype, device=k.device)
    changed = empty(n, n_kv, d, dtype=torch.int8, device=k.device)
    end = empty(n_kv, d, dtype=k.dtype, device=k.device)
    _encode_kernel[(triton.cdiv(n_kv * d, _CHANNELS),)](
        k, limit.float().contiguous(), k if state is None else state.contiguous(), approximate, changed, end,
        n, n_kv * d, n_sink, HAS_STATE=state is not None, CHANNELS=_CHANNELS,
    )  # fmt: skip
    return approximate, changed.bool(), end


def run_ids(k: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """As `reference.run_ids`: one program per KV head."""
    n, n_kv, d = k.shape
    ids = empty(n_kv, n, dtype=torch.int32, device=k.device)
    _runs_kernel[(n_kv,)](
        k.contiguous(), limit.float().contiguous(), ids, n, n_kv, d, D=triton.next_power_of_2(d)
    )
    return ids


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
    """As `reference.attend_packed`: keys are put together tile by tile, and written nowhere."""
    batch, n_heads, d = q.shape
    n_kv, d_v, width = words.shape[1], v_cache.shape[2], tiles.shape[1]
    n_parts = parts(batch * n_kv, width * TILE, q)
    part = triton.cdiv(width, n_parts)
    o_part = empty(batch, n_heads, n_parts, d_v, dtype=torch.float32, device=q.device)
    m_part = empty(batch, n_heads, n_parts, dtype=torch.float32, device=q.device)
    group = n_heads // n_kv
    _packed_kernel[(batch, n_kv, n_parts)](
        q.contiguous(), words.contiguous(), first.contiguous(), values, tiles.contiguous(), v_cache,
        slots.contiguous(), o_part, m_part, scale * LOG2E, width, part, d, d_v, n_heads, n_kv, n_parts,
        v_cache.stride(0), v_cache.stride(1), G=group, ROWS=max(_ROWS, triton.next_power_of_2(group)),
        TILE=TILE, D=max(16, triton.next_power_of_2(d)), D_V=max(16, triton.next_power_of_2(d_v)),
        NATIVE=native(),
    )  # fmt: skip
    return unite(o_part, m_part, q.dtype)


def hybrid_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    approximate: torch.Tensor,
    v: torch.Tensor,
    local: int,
    n_sink: int,
    scale: float,
) -> torch.Tensor:
    """As `reference.hybrid_attention`; a tile reads exact keys, or approximate ones, or at the edge both."""
    (n, n_heads, d), n_kv, d_v = q.shape, k.shape[1], v.shape[2]
    o = empty(n, n_heads, d_v, dtype=q.dtype, device=q.device)
    _hybrid_kernel[(triton.cdiv(n, _BLOCK), n_heads)](
        q.contiguous(), k.contiguous(), approximate.contiguous(), v.contiguous(), o, n, n_heads, n_kv, d, d_v,
        local, n_sink, scale * LOG2E, G=n_heads // n_kv, D=max(16, triton.next_power_of_2(d)),
        D_V=max(16, triton.next_power_of_2(d_v)), BLOCK=_BLOCK, NATIVE=native(),
    )  # fmt: skip
    return o


@triton.jit
def _encode_kernel(
    k, limit, state, approximate, changed, end, n, size, n_sink,
    HAS_STATE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    mask = c < size
    threshold = tl.load(limit + c, mask=mask, other=0.0)
    n_exact = n_sink if HAS_STATE else tl.maximum(n_sink, 1)
    r = tl.load(state + c, mask=mask, other=0.0).to(tl.float32)
    for t in range(n):
        now = tl.load(k + t * size + c, mask=mask, other=0.0).to(tl.float32)
        new = (tl.abs(now - r) > threshold) | (t < n_exact)
        r = tl.where(new, now, r)
        tl.store(approximate + t * size + c, r, mask=mask)
        tl.store(changed + t * size + c, new.to(tl.int8), mask=mask)
    tl.store(end + c, r, mask=mask)


@triton.jit
def _runs_kernel(k, limit, ids, n, n_kv, d, D: tl.constexpr):
    h, c = tl.program_id(0), tl.arange(0, D)
    mask = c < d
    threshold = tl.load(limit + h * d + c, mask=mask, other=0.0)
    r = tl.load(k + h * d + c, mask=mask, other=0.0).to(tl.float32)
    current = 0
    for t in range(n):
        now = tl.load(k + (t * n_kv + h) * d + c, mask=mask, other=0.0).to(tl.float32)
        left = tl.max((tl.abs(now - r) > threshold).to(tl.int32), 0)
        r = tl.where(left > 0, now, r)
        current += left
        tl.store(ids + h * n + t, current)


@triton.jit
def _packed_kernel(
    q, words, first, values, tiles, v_cache, slots, o_part, m_part, scale, width, part,
    d, d_v, n_heads, n_kv, n_parts, v_s, v_h,
    G: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    b, g, p = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, dim, dim_v, t = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, D_V), tl.arange(0, TILE)
    head = g * G + row
    q_tile = tl.load(
        q + (b * n_heads + head[:, None]) * d + dim[None, :],
        mask=(row < G)[:, None] & (dim < d)[None, :], other=0.0,
    )  # fmt: skip
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_V], tl.float32)
    for i in range(p * part, tl.minimum((p + 1) * part, width)):
        tile = tl.load(tiles + b * width + i).to(tl.int64)
        slot = tl.load(slots + (b * width + i) * TILE + t).to(tl.int64)
        there = tl.where(tile >= 0, slot, -1) >= 0
        own = tl.maximum(tile, 0) * n_kv + g
        word = tl.load(words + own * d + dim, mask=dim < d, other=0)
        begin = tl.load(first + own)
        bit = ((word[None, :] >> t[:, None].to(tl.int64)) & 1).to(tl.int32)
        of_channel = tl.sum(bit, 0)
        place = (tl.cumsum(of_channel, 0) - of_channel)[None, :] + tl.cumsum(bit, 0) - 1
        k_mask = there[:, None] & (dim < d)[None, :]
        k = tl.load(values + begin + place, mask=k_mask, other=0.0)
        s = dot(q_tile, tl.trans(k), NATIVE) * scale
        s = tl.where(there[None, :], s, float("-inf"))
        v = tl.load(
            v_cache + slot[:, None] * v_s + g * v_h + dim_v[None, :],
            mask=there[:, None] & (dim_v < d_v)[None, :], other=0.0,
        )  # fmt: skip
        top, total, acc = softmax_step(s, v, top, total, acc, NATIVE)
    out = (b * n_heads + head) * n_parts + p
    store_part(o_part, m_part, out, row < G, top, total, acc, d_v, D_V)


@triton.jit
def _hybrid_kernel(
    q, k, approximate, v, o, n, n_heads, n_kv, d, d_v, local, n_sink, scale,
    G: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, BLOCK: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    first, head = tl.program_id(0) * BLOCK, tl.program_id(1)
    g = head // G
    i, dim, dim_v = first + tl.arange(0, BLOCK), tl.arange(0, D), tl.arange(0, D_V)
    q_mask = (i < n)[:, None] & (dim < d)[None, :]
    q_tile = tl.load(q + (i[:, None] * n_heads + head) * d + dim[None, :], mask=q_mask, other=0.0)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, D_V], tl.float32)
    for start in range(0, tl.minimum(first + BLOCK, n), BLOCK):
        j = start + tl.arange(0, BLOCK)
        k_at = (j[None, :] * n_kv + g) * d + dim[:, None]
        k_mask = (j < n)[None, :] & (dim < d)[:, None]
        near = (i[:, None] - j[None, :] < local) | (j < n_sink)[None, :]
        far_tile = (first - (start + BLOCK - 1) >= local) & (start >= n_sink)
        near_tile = (first + BLOCK - 1 - start < local) | (start + BLOCK <= n_sink)
        s = tl.zeros([BLOCK, BLOCK], tl.float32)
        if not far_tile:
            s = dot(q_tile, tl.load(k + k_at, mask=k_mask, other=0.0), NATIVE)
        if not near_tile:
            delta = dot(q_tile, tl.load(approximate + k_at, mask=k_mask, other=0.0), NATIVE)
            s = tl.where(near, s, delta)
        s = tl.where((j[None, :] <= i[:, None]) & (j < n)[None, :], s * scale, float("-inf"))
        v_mask = (j < n)[:, None] & (dim_v < d_v)[None, :]
        value = tl.load(v + (j[:, None] * n_kv + g) * d_v + dim_v[None, :], mask=v_mask, other=0.0)
        top, total, acc = softmax_step(s, value, top, total, acc, NATIVE)
    o_mask = (i < n)[:, None] & (dim_v < d_v)[None, :]
    tl.store(o + (i[:, None] * n_heads + head) * d_v + dim_v[None, :], acc / total[:, None], mask=o_mask)
