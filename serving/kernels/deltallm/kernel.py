"""DeltaLLM's encoder, runs, packed keys and hybrid prefill in Triton; thresholds and sums are float32."""

import torch
import triton
import triton.language as tl

from ..base import empty
from ..paged.kernel import parts, store_part, unite
from ..triton_parts import LOG2E, dot, load_rows, native, softmax_step, tiles
from .reference import TILE

_CHANNELS = 32  # a thread each
_AHEAD = 16  # tokens that are asked for before the first of them is needed
_ROWS = 16  # the least that tl.dot takes


def encode(
    k: torch.Tensor, limit: torch.Tensor, n_sink: int, state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `reference.encode`: channels are independent lanes, tokens a loop."""
    n, n_kv, d = k.shape
    assert n or state is not None, "encode: no tokens and no state"
    k = k.contiguous()
    approximate = empty(n, n_kv, d, dtype=k.dtype, device=k.device)
    changed = empty(n, n_kv, d, dtype=torch.int8, device=k.device)
    end = empty(n_kv, d, dtype=k.dtype, device=k.device)
    _encode_kernel[(triton.cdiv(n_kv * d, _CHANNELS),)](
        k, limit.float().contiguous(), k if state is None else state.contiguous(), approximate, changed, end,
        n, n_kv * d, n_sink, HAS_STATE=state is not None, CHANNELS=_CHANNELS, AHEAD=_AHEAD, num_warps=1,
    )  # fmt: skip
    return approximate, changed.bool(), end


def run_ids(k: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """As `reference.run_ids`: one program per KV head."""
    n, n_kv, d = k.shape
    ids = empty(n_kv, n, dtype=torch.int32, device=k.device)
    _runs_kernel[(n_kv,)](
        k.contiguous(), limit.float().contiguous(), ids, n, n_kv, d, D=triton.next_power_of_2(d),
        AHEAD=_AHEAD, num_warps=1,
    )  # fmt: skip
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
    """As `reference.hybrid_attention`; of keys far from a whole tile only the approximate ones are read."""
    (n, n_heads, d), n_kv, d_v = q.shape, k.shape[1], v.shape[2]
    o = empty(n, n_heads, d_v, dtype=q.dtype, device=q.device)
    widths = {"D": max(16, triton.next_power_of_2(d)), "D_V": max(16, triton.next_power_of_2(d_v))}
    sizes = tiles(q, max(widths.values()))
    _hybrid_kernel[(triton.cdiv(n, sizes["ROWS"]), n_heads)](
        q.contiguous(), k.contiguous(), approximate.contiguous(), v.contiguous(), o, n, n_heads, n_kv, d, d_v,
        local, n_sink, scale * LOG2E, G=n_heads // n_kv, **widths, **sizes, NATIVE=native(), num_warps=8,
    )  # fmt: skip
    return o


@triton.jit
def _ahead(k, at, step, end, mask, AHEAD: tl.constexpr):
    """AHEAD tokens' keys, `step` apart from `at` on and before `end`: all asked for, none waited for."""
    keys = ()
    for t in tl.static_range(AHEAD):
        key = tl.load(k + at + t * step, mask=mask & (at + t * step < end), other=0.0)
        keys = keys + (key,)  # type: ignore[assignment]  # noqa: RUF005 (Triton knows no other way)
    return keys


@triton.jit(do_not_specialize=["n", "n_sink"])
def _encode_kernel(
    k, limit, state, approximate, changed, end, n, size, n_sink,
    HAS_STATE: tl.constexpr, CHANNELS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    mask = c < size
    threshold = tl.load(limit + c, mask=mask, other=0.0)
    n_exact = n_sink if HAS_STATE else tl.maximum(n_sink, 1)
    r = tl.load(state + c, mask=mask, other=0.0).to(tl.float32)
    at, last = c.to(tl.int64), tl.full([1], n, tl.int64) * size
    keys = _ahead(k, at, size, last, mask, AHEAD)
    for start in range(0, n, AHEAD):
        later = _ahead(k, at + AHEAD * size, size, last, mask, AHEAD)
        for t in tl.static_range(AHEAD):
            now = keys[t].to(tl.float32)
            new = (tl.abs(now - r) > threshold) | (start + t < n_exact)
            there = mask & (at < last)
            r = tl.where(new & there, now, r)
            tl.store(approximate + at, r, mask=there)
            tl.store(changed + at, new.to(tl.int8), mask=there)
            at += size
        keys = later
    tl.store(end + c, r, mask=mask)


@triton.jit(do_not_specialize=["n"])
def _runs_kernel(k, limit, ids, n, n_kv, d, D: tl.constexpr, AHEAD: tl.constexpr):
    h, c = tl.program_id(0).to(tl.int64), tl.arange(0, D)
    mask = c < d
    threshold = tl.load(limit + h * d + c, mask=mask, other=0.0)
    r = tl.load(k + h * d + c, mask=mask, other=0.0).to(tl.float32)
    current, at, step = 0, h * d + c, n_kv * d
    last = tl.full([1], n, tl.int64) * step
    keys = _ahead(k, at, step, last, mask, AHEAD)
    for start in range(0, n, AHEAD):
        later = _ahead(k, at + AHEAD * step, step, last, mask, AHEAD)
        for t in tl.static_range(AHEAD):
            now = keys[t].to(tl.float32)
            left = tl.max((tl.abs(now - r) > threshold).to(tl.int32), 0)
            r = tl.where(left > 0, now, r)
            current += left
            tl.store(ids + h * n + start + t, current, mask=start + t < n)
        at += AHEAD * step
        keys = later


@triton.jit(do_not_specialize=["width", "part", "n_parts"])
def _packed_kernel(
    q, words, first, values, tiles, v_cache, slots, o_part, m_part, scale, width, part,
    d, d_v, n_heads, n_kv, n_parts, v_s, v_h,
    G: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    b, g, p = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row, dim, dim_v, t = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, D_V), tl.arange(0, TILE)
    head = b * n_heads + g * G + row
    q_tile = load_rows(q, head, row < G, d, D)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_V], tl.float32)
    for i in range(p * part, tl.minimum((p + 1) * part, width)):
        tile = tl.load(tiles + b * width + i).to(tl.int64)
        slot = tl.load(slots + (b * width + i) * TILE + t).to(tl.int64)
        there = tl.where(tile >= 0, slot, -1) >= 0
        own = tl.maximum(tile, 0) * n_kv + g
        word = tl.load(words + own * d + dim, mask=tl.where(tile >= 0, dim, d) < d, other=0)
        begin = tl.load(first + own, mask=tile >= 0, other=0)
        # Channels are the rows: the values of a channel lie side by side, so a warp reads few lines.
        bit = ((word[:, None] >> t[None, :].to(tl.int64)) & 1).to(tl.int32)
        of_channel = tl.sum(bit, 1)
        place = (tl.cumsum(of_channel, 0) - of_channel)[:, None] + tl.cumsum(bit, 1) - 1
        k = tl.load(values + begin + place, mask=(dim < d)[:, None] & there[None, :], other=0.0)
        s = tl.where(there[None, :], dot(q_tile, k, NATIVE) * scale, float("-inf"))
        v = tl.load(
            v_cache + slot[:, None] * v_s + g.to(tl.int64) * v_h + dim_v[None, :],
            mask=there[:, None] & (dim_v < d_v)[None, :], other=0.0,
        )  # fmt: skip
        top, total, acc = softmax_step(s, v, top, total, acc, NATIVE)
    store_part(o_part, m_part, head * n_parts + p, row < G, top, total, acc, d_v, D_V)


@triton.jit
def _hybrid_step(
    start, first, q_tile, k, approximate, v, g, n, n_kv, d, d_v, local, n_sink, scale, top, total, acc,
    FAR: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    """One more block of keys, from `start`. FAR: it is so for all rows, which are behind it."""
    i, j = first + tl.arange(0, ROWS), start + tl.arange(0, BLOCK)
    row, there = j.to(tl.int64) * n_kv + g, j < n
    s = dot(q_tile, tl.trans(load_rows(approximate, row, there, d, D)), NATIVE) * scale
    if not FAR:
        exact = dot(q_tile, tl.trans(load_rows(k, row, there, d, D)), NATIVE) * scale
        s = tl.where((i[:, None] - j[None, :] < local) | (j < n_sink)[None, :], exact, s)
        s = tl.where((j[None, :] <= i[:, None]) & there[None, :], s, float("-inf"))
    return softmax_step(s, load_rows(v, row, there, d_v, D_V), top, total, acc, NATIVE)


@triton.jit(do_not_specialize=["n", "local", "n_sink"])
def _hybrid_kernel(
    q, k, approximate, v, o, n, n_heads, n_kv, d, d_v, local, n_sink, scale,
    G: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    first, head = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS, tl.program_id(1)  # the longest first
    g, i = head // G, first + tl.arange(0, ROWS)
    row = i.to(tl.int64) * n_heads + head
    q_tile = load_rows(q, row, i < n, d, D)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_V], tl.float32)
    end = tl.minimum(first + ROWS, n)
    sinks = tl.minimum(tl.cdiv(n_sink, BLOCK) * BLOCK, end)
    far = tl.maximum(tl.maximum(first - local + 1, 0) // BLOCK * BLOCK, sinks)
    for start in range(0, sinks, BLOCK):
        top, total, acc = _hybrid_step(
            start, first, q_tile, k, approximate, v, g, n, n_kv, d, d_v, local, n_sink, scale,
            top, total, acc, False, D, D_V, ROWS, BLOCK, NATIVE,
        )  # fmt: skip
    for start in range(sinks, far, BLOCK):
        top, total, acc = _hybrid_step(
            start, first, q_tile, k, approximate, v, g, n, n_kv, d, d_v, local, n_sink, scale,
            top, total, acc, True, D, D_V, ROWS, BLOCK, NATIVE,
        )  # fmt: skip
    for start in range(far, end, BLOCK):
        top, total, acc = _hybrid_step(
            start, first, q_tile, k, approximate, v, g, n, n_kv, d, d_v, local, n_sink, scale,
            top, total, acc, False, D, D_V, ROWS, BLOCK, NATIVE,
        )  # fmt: skip
    dim = tl.arange(0, D_V)
    mask = (i < n)[:, None] & (dim < d_v)[None, :]
    tl.store(o + row[:, None] * d_v + dim[None, :], acc / total[:, None], mask=mask)
