"""Decode attention over listed slots, in Triton: parts of the lists run side by side and are united.

One program takes the G query heads of a KV head over one part of the list, so each key and value is read
once.
"""

from typing import TypeAlias

import torch
import triton
import triton.language as tl

from ..base import empty
from ..triton_parts import LN2, LOG2E, dot, native, softmax_step

_BLOCK = 64
_ROWS = 16  # the least that tl.dot takes
_LENGTHS = ["width", "part", "slots_b", "slots_h", "side_width", "side_part", "side_b", "side_h", "n_parts"]
"""Arguments that change from step to step: Triton would compile for 1, for multiples of 16 and for others."""


def decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.decode`."""
    return _attend(q, (k_cache, v_cache, slots), None, scale, bias, None)


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
    """As `reference.decode_beside`: a program goes through its part of one list, then of the other."""
    return _attend(q, (k_cache, v_cache, slots), (k_side, v_side, side_slots), scale, None, mass)


_List: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _attend(
    q: torch.Tensor, cache: _List, side: _List | None, scale: float, bias: torch.Tensor | None,
    mass: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    (batch, n_heads, d), (_, n_kv, d_v) = q.shape, cache[1].shape
    q = q.contiguous()
    width = sum(x[2].shape[2] for x in (cache, side) if x)
    # A union takes the time of reading some blocks more. One part needs none: it is what is returned.
    n_parts = parts(batch * n_kv, width, q) if width > 8 * _BLOCK else 1
    o_dtype, unit = (q.dtype, LN2) if n_parts == 1 else (torch.float32, 1.0)
    o_part = empty(batch, n_heads, n_parts, d_v, dtype=o_dtype, device=q.device)
    m_part = empty(batch, n_heads, n_parts, dtype=torch.float32, device=q.device)
    group = n_heads // n_kv
    _parts_kernel[(batch, n_kv, n_parts)](
        q, *_listed(cache, n_parts), *_listed(side or cache, n_parts),
        q if bias is None else bias.float().contiguous(),  # something to point to
        q if mass is None else mass.float().contiguous(),
        o_part, m_part, scale * LOG2E, LOG2E, unit, d, d_v, n_heads, n_kv, n_parts,
        G=group, ROWS=max(_ROWS, triton.next_power_of_2(group)), BLOCK=_BLOCK,
        D=max(16, triton.next_power_of_2(d)), D_V=max(16, triton.next_power_of_2(d_v)), NATIVE=native(),
        BIAS=bias is not None, SIDE=side is not None, MASS=mass is not None,
        num_stages=_stages(q, d + d_v, mass is not None),
    )  # fmt: skip
    return (o_part[:, :, 0], m_part[:, :, 0]) if n_parts == 1 else unite(o_part, m_part, q.dtype)


def _stages(q: torch.Tensor, channels: int, by_mass: bool) -> int:
    """How far the loads run ahead: a key waits for its slot, and where there are masses for that too. Where
    there is room, keys are two blocks ahead."""
    if by_mass:
        return 4
    return 5 if _BLOCK * triton.next_power_of_2(channels) * q.element_size() <= 2**16 else 3


def _listed(cache: _List, n_parts: int) -> tuple[torch.Tensor | int, ...]:
    """What the kernel is told of a list: where it lies, how long it and each part of it is, and strides."""
    k, v, slots = cache
    width = slots.shape[2]
    part = triton.cdiv(triton.cdiv(width, n_parts), _BLOCK) * _BLOCK
    slots = slots.contiguous()
    slots_h = slots.stride(1) if slots.shape[1] > 1 else 0
    return (
        k, v, slots, width, part, slots.stride(0), slots_h,
        k.stride(0), k.stride(1), v.stride(0), v.stride(1),
    )  # fmt: skip


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
    part shorter than two blocks."""
    n_units = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 4
    return max(1, min(triton.cdiv(width, 2 * _BLOCK), triton.cdiv(2 * n_units, n_rows), 128))


@triton.jit(do_not_specialize=_LENGTHS)
def _parts_kernel(
    q,
    k_cache, v_cache, slots, width, part, slots_b, slots_h, k_s, k_h, v_s, v_h,
    k_side, v_side, side_slots, side_width, side_part, side_b, side_h, k_side_s, k_side_h, v_side_s, v_side_h,
    bias, mass, o_part, m_part, scale, log2e, unit, d, d_v, n_heads, n_kv, n_parts,
    G: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    NATIVE: tl.constexpr, BIAS: tl.constexpr, SIDE: tl.constexpr, MASS: tl.constexpr,
):  # fmt: skip
    b, g, p = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    row, dim = tl.arange(0, ROWS), tl.arange(0, D)
    head = g * G + row
    q_tile = tl.load(
        q + (b * n_heads + head[:, None]) * d + dim[None, :],
        mask=(row < G)[:, None] & (dim < d)[None, :], other=0.0,
    )  # fmt: skip
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_V], tl.float32)
    if SIDE:
        own = b * side_b + g * side_h
        top, total, acc = _read(
            top, total, acc, q_tile, k_side + g * k_side_h, v_side + g * v_side_h, side_slots + own, bias,
            mass + g, p * side_part, tl.minimum((p + 1) * side_part, side_width), scale, log2e,
            k_side_s, v_side_s, n_kv, d, d_v, BLOCK, D, D_V, NATIVE, False, MASS,
        )  # fmt: skip
    own = b * slots_b + g * slots_h
    top, total, acc = _read(
        top, total, acc, q_tile, k_cache + g * k_h, v_cache + g * v_h, slots + own, bias + own, mass,
        p * part, tl.minimum((p + 1) * part, width), scale, log2e, k_s, v_s, n_kv, d, d_v,
        BLOCK, D, D_V, NATIVE, BIAS, False,
    )  # fmt: skip
    out = (b * n_heads + head) * n_parts + p
    store_part(o_part, m_part, out, row < G, top, total, acc, d_v, D_V, unit)


@triton.jit
def _read(
    top, total, acc, q_tile, k, v, slots, bias, mass, first, end, scale, log2e, k_s, v_s, mass_s, d, d_v,
    BLOCK: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, NATIVE: tl.constexpr, BIAS: tl.constexpr,
    MASS: tl.constexpr,
):  # fmt: skip
    """The softmax goes on with the slots of a KV head's list from `first` up to `end`."""
    dim, dim_v = tl.arange(0, D), tl.arange(0, D_V)
    for start in range(first, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        slot = tl.load(slots + at, mask=at < end, other=-1).to(tl.int64)
        there = slot >= 0
        if MASS:
            m = tl.load(mass + slot * mass_s, mask=there, other=0.0)
            there = m > 0
        k_tile = tl.load(
            k + slot[:, None] * k_s + dim[None, :], mask=there[:, None] & (dim < d)[None, :], other=0.0
        )
        s = dot(q_tile, tl.trans(k_tile), NATIVE) * scale
        if BIAS:
            s += tl.load(bias + at, mask=there & (at < end), other=0.0)[None, :] * log2e
        if MASS:
            s += tl.log2(tl.where(there, m, 1.0))[None, :]
        s = tl.where(there[None, :], s, float("-inf"))
        v_tile = tl.load(
            v + slot[:, None] * v_s + dim_v[None, :], mask=there[:, None] & (dim_v < d_v)[None, :], other=0.0
        )
        top, total, acc = softmax_step(s, v_tile, top, total, acc, NATIVE)
    return top, total, acc


@triton.jit
def store_part(o_part, m_part, at, there, top, total, acc, d_v, D_V: tl.constexpr, unit=1.0):
    """What `unite` takes, of rows that went through `softmax_step`, at the places `at`. The logarithm is
    multiplied by `unit`."""
    dim = tl.arange(0, D_V)
    safe = tl.where(total == 0, 1.0, total)
    tl.store(m_part + at, (top + tl.log2(safe)) * unit, mask=there)
    tl.store(
        o_part + at[:, None] * d_v + dim[None, :], acc / safe[:, None],
        mask=there[:, None] & (dim < d_v)[None, :],
    )  # fmt: skip


@triton.jit(do_not_specialize=["n_parts"])
def _unite_kernel(o_part, m_part, o, lse, n_parts, d_v, n_heads, ln2, PARTS: tl.constexpr, D_V: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * n_heads + tl.program_id(1)
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
