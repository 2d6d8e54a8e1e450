"""Decode attention over listed slots, in Triton: parts of the list run side by side and are united.

One program takes the G query heads of a KV head over one part of the list, so each key and value is read
once.
"""

import torch
import triton
import triton.language as tl

from ..base import empty
from ..triton_parts import LN2, LOG2E, dot, native, softmax_step

_BLOCK = 64
_ROWS = 16  # the least that tl.dot takes


def decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.decode`."""
    batch, n_heads, d = q.shape
    n_kv, d_v, width = k_cache.shape[1], v_cache.shape[2], slots.shape[2]
    q, slots = q.contiguous(), slots.contiguous()
    weighed = q if bias is None else bias.float().contiguous()  # something to point to
    n_parts = parts(batch * n_kv, width, q)
    part = triton.cdiv(triton.cdiv(width, n_parts), _BLOCK) * _BLOCK
    o_part = empty(batch, n_heads, n_parts, d_v, dtype=torch.float32, device=q.device)
    m_part = empty(batch, n_heads, n_parts, dtype=torch.float32, device=q.device)
    group = n_heads // n_kv
    dims = {"D": triton.next_power_of_2(d), "D_V": triton.next_power_of_2(d_v)}
    _parts_kernel[(batch, n_kv, n_parts)](
        q, k_cache, v_cache, slots, weighed, o_part, m_part, scale * LOG2E, LOG2E, width, part,
        slots.stride(0), slots.stride(1) if slots.shape[1] > 1 else 0,
        k_cache.stride(0), k_cache.stride(1), v_cache.stride(0), v_cache.stride(1),
        d, d_v, n_heads, n_parts,
        G=group, ROWS=max(_ROWS, triton.next_power_of_2(group)), BLOCK=_BLOCK, NATIVE=native(),
        BIAS=bias is not None, **dims,
    )  # fmt: skip
    return unite(o_part, m_part, q.dtype)


def unite(
    o_part: torch.Tensor, m_part: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over all parts from that over each: o_part [batch, heads, parts, head_dim], and the log2 of
    the sum of exponentials, m_part [batch, heads, parts]. Returns o, and the natural log-sum-exp."""
    batch, n_heads, n_parts, d_v = o_part.shape
    o = empty(batch, n_heads, d_v, dtype=dtype, device=o_part.device)
    lse = empty(batch, n_heads, dtype=torch.float32, device=o_part.device)
    _unite_kernel[(batch, n_heads)](
        o_part, m_part, o, lse, n_parts, d_v, n_heads, LN2,
        PARTS=triton.next_power_of_2(n_parts), D_V=triton.next_power_of_2(d_v),
    )  # fmt: skip
    return o, lse


def parts(n_rows: int, width: int, q: torch.Tensor) -> int:
    """In how many parts each of `n_rows` lists of `width` is read: enough programs to fill the device, and no
    part shorter than four blocks."""
    n_units = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 4
    return max(1, min(triton.cdiv(width, 4 * _BLOCK), triton.cdiv(2 * n_units, n_rows), 128))


@triton.jit
def _parts_kernel(
    q, k_cache, v_cache, slots, bias, o_part, m_part, scale, log2e, width, part,
    slots_b, slots_h, k_s, k_h, v_s, v_h, d, d_v, n_heads, n_parts,
    G: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    NATIVE: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    b, g, p = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, dim, dim_v = tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, D_V)
    head = g * G + row
    q_tile = tl.load(
        q + (b * n_heads + head[:, None]) * d + dim[None, :],
        mask=(row < G)[:, None] & (dim < d)[None, :], other=0.0,
    )  # fmt: skip
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_V], tl.float32)
    for start in range(p * part, tl.minimum((p + 1) * part, width), BLOCK):
        at = start + tl.arange(0, BLOCK)
        slot = tl.load(slots + b * slots_b + g * slots_h + at, mask=at < width, other=-1).to(tl.int64)
        there = slot >= 0
        k = tl.load(
            k_cache + slot[:, None] * k_s + g * k_h + dim[None, :],
            mask=there[:, None] & (dim < d)[None, :], other=0.0,
        )  # fmt: skip
        s = dot(q_tile, tl.trans(k), NATIVE) * scale
        if BIAS:
            add = tl.load(bias + b * slots_b + g * slots_h + at, mask=there & (at < width), other=0.0)
            s += add[None, :] * log2e
        s = tl.where(there[None, :], s, float("-inf"))
        v = tl.load(
            v_cache + slot[:, None] * v_s + g * v_h + dim_v[None, :],
            mask=there[:, None] & (dim_v < d_v)[None, :], other=0.0,
        )  # fmt: skip
        top, total, acc = softmax_step(s, v, top, total, acc, NATIVE)
    out = (b * n_heads + head) * n_parts + p
    store_part(o_part, m_part, out, row < G, top, total, acc, d_v, D_V)


@triton.jit
def store_part(o_part, m_part, at, there, top, total, acc, d_v, D_V: tl.constexpr):
    """What `unite` takes, of rows that went through `softmax_step`, at the places `at`."""
    dim = tl.arange(0, D_V)
    safe = tl.where(total == 0, 1.0, total)
    tl.store(m_part + at, top + tl.log2(safe), mask=there)
    tl.store(
        o_part + at[:, None] * d_v + dim[None, :], acc / safe[:, None],
        mask=there[:, None] & (dim < d_v)[None, :],
    )  # fmt: skip


@triton.jit
def _unite_kernel(o_part, m_part, o, lse, n_parts, d_v, n_heads, ln2, PARTS: tl.constexpr, D_V: tl.constexpr):
    at = tl.program_id(0) * n_heads + tl.program_id(1)
    part, dim = tl.arange(0, PARTS), tl.arange(0, D_V)
    m = tl.load(m_part + at * n_parts + part, mask=part < n_parts, other=float("-inf"))
    top = tl.max(m, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    w = tl.exp2(m - base)
    total = tl.sum(w, 0)
    os = tl.load(
        o_part + (at * n_parts + part[:, None]) * d_v + dim[None, :],
        mask=(part < n_parts)[:, None] & (dim < d_v)[None, :], other=0.0,
    )  # fmt: skip
    safe = tl.where(total == 0, 1.0, total)
    tl.store(o + at * d_v + dim, tl.sum(os * w[:, None], 0) / safe, mask=dim < d_v)
    tl.store(lse + at, (top + tl.log2(safe)) * ln2)
