"""Decode of local linear attention in one pass over the keys: moments by parts of the list, a small solve.

Per part: the maximum, ω = Σ w, Σ w k, Σ w v, Σ w k kᵀ and Σ w k vᵀ. Conjugate gradients on the keys would
read them once an iteration; on the covariance, formed once, they run in registers. Rounding of Σ w k kᵀ can
outweigh a small ridge: bfloat16 enters it in two parts, and keys in float32 are taken from one of them,
which keeps the covariance from cancelling.
"""

import torch
import triton
import triton.language as tl

from ..base import empty
from ..triton_parts import LOG2E
from .parts import add_mm, load_tile, mm, precision

_SCAN = 4096  # slots of a list that are looked at together, for where it ends


def decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    lam: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """As `reference.decode`."""
    (batch, n_heads, d), n_kv, d_v, width = q.shape, k_cache.shape[1], v_cache.shape[2], slots.shape[2]
    q, slots, device = q.contiguous(), slots.contiguous(), q.device
    wide = max(d, d_v) * k_cache.element_size()  # what registers and shared memory hold
    block = 64 if k_cache.dtype == torch.bfloat16 and wide <= 128 else 32 if wide <= 512 else 16
    n_parts = _n_parts(batch * n_heads, width, block, device)
    part = triton.cdiv(triton.cdiv(width, n_parts), block) * block
    moments = [
        empty(batch, n_heads, n_parts, *size, dtype=torch.float32, device=device)
        for size in ((), (), (d,), (d_v,), (d, d), (d, d_v))
    ]
    shift = empty(batch, n_heads, d, dtype=torch.float32, device=device)
    sizes = {
        "D": max(16, triton.next_power_of_2(d)), "D_V": max(16, triton.next_power_of_2(d_v)),
        "num_warps": 4 if max(d, d_v) <= 64 else 8,
    }  # fmt: skip
    _moments[(n_heads, n_parts, batch)](
        q, k_cache.contiguous(), v_cache.contiguous(), slots, *moments, shift, width,
        slots.stride(0), slots.stride(1) if slots.shape[1] > 1 else 0, n_kv, d, d_v, scale * LOG2E, part,
        G=n_heads // n_kv, N=block, SCAN=min(_SCAN, triton.next_power_of_2(part)), PRECISION=precision(),
        **sizes,
    )  # fmt: skip
    o = empty(batch, n_heads, d_v, dtype=q.dtype, device=device)
    _solve[(n_heads, batch)](
        q, lam.float().contiguous(), *moments, shift, o, n_parts, d, d_v,
        PARTS=triton.next_power_of_2(n_parts), **sizes,
    )  # fmt: skip
    return o


def _n_parts(n_rows: int, width: int, block: int, device: torch.device) -> int:
    """Enough programs to fill the device, for lists of unequal lengths; a part writes 2 d² numbers, so it
    reads eight blocks at least."""
    n_units = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    return max(1, min(triton.cdiv(width, 8 * block), triton.cdiv(4 * n_units, n_rows)))


@triton.jit(do_not_specialize=["width", "size"])
def _moments(
    q, k_cache, v_cache, slots, top, omega, k1, v1, kk, kv, shift,
    width, slots_b, slots_h, n_kv, d, d_v, scale, size,
    G: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, N: tl.constexpr, SCAN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    # Heads come first, so that those which read the same keys run together, and one of them brings the keys.
    h, part, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    n_heads, n_parts = tl.num_programs(0), tl.num_programs(1)
    g, dim, dim_v = h // G, tl.arange(0, D), tl.arange(0, D_V)
    query = tl.load(q + (b * n_heads + h) * d + dim, mask=dim < d, other=0.0).to(tl.float32)
    mine = slots + b * slots_b + g * slots_h
    begin, end = part * size, part * size
    for start in range(part * size, tl.minimum((part + 1) * size, width), SCAN):
        at = start + tl.arange(0, SCAN)
        slot = tl.load(mine + at, mask=at < tl.minimum((part + 1) * size, width), other=-1)
        end = tl.maximum(end, tl.max(tl.where(slot >= 0, at + 1, 0), 0))
    from_key = tl.zeros([D], tl.float32)
    if k_cache.dtype.element_ty != tl.bfloat16:
        one = tl.load(mine + 0 * dim, mask=0 * dim < width, other=-1).to(tl.int64)
        from_key = tl.load(
            k_cache + (one * n_kv + g) * d + dim, mask=(dim < d) & (one >= 0), other=0.0
        ).to(tl.float32)  # fmt: skip
    highest, total = float("-inf"), 0.0
    k_sum, v_sum = tl.zeros([D], tl.float32), tl.zeros([D_V], tl.float32)
    k_second, cross = tl.zeros([D, D], tl.float32), tl.zeros([D, D_V], tl.float32)
    for start in range(begin, end, N):
        at = start + tl.arange(0, N)
        slot = tl.load(mine + at, mask=at < end, other=-1).to(tl.int64)
        key = load_tile(k_cache, slot * n_kv + g, slot >= 0, d, D)
        value = load_tile(v_cache, slot * n_kv + g, slot >= 0, d_v, D_V)
        s = tl.sum(key.to(tl.float32) * query[None, :], 1) * scale
        s = tl.where(slot >= 0, s, float("-inf"))
        new = tl.maximum(highest, tl.max(s, 0))
        base = tl.where(new == float("-inf"), 0.0, new)
        w, fade = tl.exp2(s - base), tl.exp2(highest - base)
        if key.dtype == tl.float32:
            key = tl.where((slot >= 0)[:, None], key - from_key[None, :], 0.0)
        weighed = key.to(tl.float32) * w[:, None]
        k_sum = k_sum * fade + tl.sum(weighed, 0)
        v_sum = v_sum * fade + tl.sum(value.to(tl.float32) * w[:, None], 0)
        k_second = add_mm(k_second * fade, tl.trans(weighed), key, PRECISION)
        cross = cross * fade + mm(tl.trans(weighed.to(value.dtype)), value, PRECISION)
        total = total * fade + tl.sum(w, 0)
        highest = new
    out = (b * n_heads + h) * n_parts + part
    tl.store(top + out, highest)
    tl.store(omega + out, total)
    tl.store(k1 + out * d + dim, k_sum, mask=dim < d)
    tl.store(v1 + out * d_v + dim_v, v_sum, mask=dim_v < d_v)
    tl.store(
        kk + out * d * d + dim[:, None] * d + dim[None, :], k_second,
        mask=(dim < d)[:, None] & (dim < d)[None, :],
    )  # fmt: skip
    tl.store(
        kv + out * d * d_v + dim[:, None] * d_v + dim_v[None, :], cross,
        mask=(dim < d)[:, None] & (dim_v < d_v)[None, :],
    )  # fmt: skip
    if part == 0:
        tl.store(shift + (b * n_heads + h) * d + dim, from_key, mask=dim < d)


@triton.jit(do_not_specialize=["n_parts"])
def _solve(
    q, lam, top, omega, k1, v1, kk, kv, shift, o, n_parts, d, d_v,
    PARTS: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
):  # fmt: skip
    h, row = tl.program_id(0), tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    part, dim, dim_v = tl.arange(0, PARTS), tl.arange(0, D), tl.arange(0, D_V)
    tops = tl.load(top + row * n_parts + part, mask=part < n_parts, other=float("-inf"))
    highest = tl.maximum(tl.max(tops, 0), -1e30)
    omegas = tl.load(omega + row * n_parts + part, mask=part < n_parts, other=0.0)
    total = tl.sum(omegas * tl.exp2(tops - highest), 0)
    safe = tl.where(total > 0, total, 1.0)
    k_mean, v_mean = tl.zeros([D], tl.float32), tl.zeros([D_V], tl.float32)
    c = tl.zeros([D, D], tl.float32)
    for p in range(n_parts):
        at = row * n_parts + p
        share = tl.exp2(tl.load(top + at) - highest) / safe
        k_mean += share * tl.load(k1 + at * d + dim, mask=dim < d, other=0.0)
        v_mean += share * tl.load(v1 + at * d_v + dim_v, mask=dim_v < d_v, other=0.0)
        c += share * tl.load(
            kk + at * d * d + dim[:, None] * d + dim[None, :],
            mask=(dim < d)[:, None] & (dim < d)[None, :], other=0.0,
        )  # fmt: skip
    ridge = tl.load(lam + h)
    c -= k_mean[:, None] * k_mean[None, :]
    c += tl.where(dim[:, None] == dim[None, :], ridge, 0.0)
    away = tl.load(shift + row * d + dim, mask=dim < d, other=0.0)
    away -= tl.load(q + row * d + dim, mask=dim < d, other=0.0).to(tl.float32)
    eta, r = tl.zeros([D], tl.float32), k_mean + away
    direction, rr = r, tl.sum(r * r, 0)
    enough = 1e-13 * tl.maximum(rr, 1e-12)
    for _ in range(4 * D):
        if rr > enough:
            product = tl.sum(c * direction[None, :], 1)
            least = ridge * tl.sum(direction * direction, 0)
            alpha = rr / (tl.maximum(tl.sum(direction * product, 0), least) + 1e-30)
            eta += alpha * direction
            r -= alpha * product
            new = tl.sum(r * r, 0)
            direction = r + new / rr * direction
            rr = new
    out = v_mean * (1 + tl.sum(k_mean * eta, 0))
    for p in range(n_parts):
        at = row * n_parts + p
        share = tl.exp2(tl.load(top + at) - highest) / safe
        cross = tl.load(
            kv + at * d * d_v + dim[:, None] * d_v + dim_v[None, :],
            mask=(dim < d)[:, None] & (dim_v < d_v)[None, :], other=0.0,
        )  # fmt: skip
        out -= share * tl.sum(cross * eta[:, None], 0)
    tl.store(o + row * d_v + dim_v, tl.where(total > 0, out, 0.0), mask=dim_v < d_v)
