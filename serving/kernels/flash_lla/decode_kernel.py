"""Decode of local linear attention in one pass over the keys: moments by parts of the list, a small solve.

Per part: the maximum, ω = Σ w, Σ w k, Σ w v, Σ w k kᵀ and Σ w v kᵀ, with keys shifted by one of them, which
keeps the covariance from cancelling. Conjugate gradients would read the keys once an iteration. The second
moments are formed by three products of TF32: one alone (a relative 2⁻¹¹ of k kᵀ) can outweigh a small ridge.
"""

import torch
import triton
import triton.language as tl

from ..base import empty
from ..triton_parts import LOG2E, native
from .parts import load_rows, mm

_BLOCK = 32


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
    slots, device = slots.contiguous(), q.device
    n_parts = _n_parts(batch * n_heads, width, device)
    first = torch.where(slots >= 0, slots, torch.iinfo(slots.dtype).max).amin(2) if width else slots.sum(2)
    first = torch.where(first < k_cache.shape[0], first, 0).expand(batch, n_kv).contiguous()
    parts = (batch, n_heads, n_parts)
    top, omega = (empty(*parts, dtype=torch.float32, device=device) for _ in range(2))
    k1, v1 = (empty(*parts, size, dtype=torch.float32, device=device) for size in (d, d_v))
    kk, vk = (empty(*parts, size, d, dtype=torch.float32, device=device) for size in (d, d_v))
    _moments[(n_parts, n_heads, batch)](
        q.contiguous(), k_cache.contiguous(), v_cache.contiguous(), slots, first, top, omega, k1, v1, kk, vk,
        width, slots.stride(0), slots.stride(1) if slots.shape[1] > 1 else 0, n_heads, n_kv, d, d_v,
        scale * LOG2E, triton.cdiv(triton.cdiv(width, n_parts), _BLOCK) * _BLOCK, G=n_heads // n_kv,
        D=max(16, triton.next_power_of_2(d)), D_V=max(16, triton.next_power_of_2(d_v)), N=_BLOCK,
        PRECISION="tf32x3" if native() else "ieee", num_warps=4 if max(d, d_v) <= 64 else 8,
    )  # fmt: skip
    highest = top.amax(2, keepdim=True)
    fade = torch.where(torch.isneginf(top), 0.0, torch.exp2(top - highest.clamp_min(-1e30)))
    total = (fade * omega).sum(2)
    share = fade / total.clamp_min(1e-30)[..., None]
    k_mean, v_mean = (torch.einsum("bhs,bhsc->bhc", share, x) for x in (k1, v1))
    k_second, v_second = (torch.einsum("bhs,bhsce->bhce", share, x) for x in (kk, vk))
    covariance = k_second - k_mean[..., :, None] * k_mean[..., None, :]
    covariance = covariance + lam.float()[None, :, None, None] * torch.eye(d, device=device)
    heads = torch.arange(n_kv, device=device).repeat_interleave(n_heads // n_kv)
    shift = k_cache[first[:, heads].long(), heads].float()
    eta, _ = torch.linalg.solve_ex(covariance, k_mean + shift - q.float())  # never waits for the device
    cross = v_second - v_mean[..., :, None] * k_mean[..., None, :]
    o = v_mean - torch.einsum("bhce,bhe->bhc", cross, eta)
    return torch.where(total[..., None] > 0, o, 0.0).to(q.dtype)


def _n_parts(n_rows: int, width: int, device: torch.device) -> int:
    """Enough programs to fill the device; a part writes 2 d² numbers, so it reads eight blocks at least."""
    n_units = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
    return max(1, min(triton.cdiv(width, 8 * _BLOCK), triton.cdiv(2 * n_units, n_rows)))


@triton.jit
def _moments(
    q, k_cache, v_cache, slots, first, top, omega, k1, v1, kk, vk,
    width, slots_b, slots_h, n_heads, n_kv, d, d_v, scale, size,
    G: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    part, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    g, dim, dim_v = h // G, tl.arange(0, D), tl.arange(0, D_V)
    query = tl.load(q + (b * n_heads + h) * d + dim, mask=dim < d, other=0.0).to(tl.float32)
    start_slot = tl.load(first + b * n_kv + g).to(tl.int64)
    shift = tl.load(k_cache + (start_slot * n_kv + g) * d + dim, mask=dim < d, other=0.0).to(tl.float32)
    highest, total = float("-inf"), 0.0
    k_sum, v_sum = tl.zeros([D], tl.float32), tl.zeros([D_V], tl.float32)
    k_second, v_second = tl.zeros([D, D], tl.float32), tl.zeros([D_V, D], tl.float32)
    for start in range(part * size, tl.minimum((part + 1) * size, width), N):
        at = start + tl.arange(0, N)
        slot = tl.load(slots + b * slots_b + g * slots_h + at, mask=at < width, other=-1).to(tl.int64)
        key = load_rows(k_cache, slot * n_kv + g, slot >= 0, d, D).to(tl.float32)
        value = load_rows(v_cache, slot * n_kv + g, slot >= 0, d_v, D_V).to(tl.float32)
        s = tl.where(slot >= 0, tl.sum(key * query[None, :], 1) * scale, float("-inf"))
        new = tl.maximum(highest, tl.max(s, 0))
        base = tl.where(new == float("-inf"), 0.0, new)
        w, fade = tl.exp2(s - base), tl.exp2(highest - base)
        key = tl.where((slot >= 0)[:, None], key - shift[None, :], 0.0)
        weighed = key * w[:, None]
        k_sum = k_sum * fade + tl.sum(weighed, 0)
        v_sum = v_sum * fade + tl.sum(value * w[:, None], 0)
        k_second = k_second * fade + mm(tl.trans(key), weighed, PRECISION)
        v_second = v_second * fade + mm(tl.trans(value), weighed, PRECISION)
        total = total * fade + tl.sum(w, 0)
        highest = new
    out = (b * n_heads + h) * tl.num_programs(0) + part
    tl.store(top + out, highest)
    tl.store(omega + out, total)
    tl.store(k1 + out * d + dim, k_sum, mask=dim < d)
    tl.store(v1 + out * d_v + dim_v, v_sum, mask=dim_v < d_v)
    square = (dim < d)[:, None] & (dim < d)[None, :]
    tl.store(kk + out * d * d + dim[:, None] * d + dim[None, :], k_second, mask=square)
    cross = (dim_v < d_v)[:, None] & (dim < d)[None, :]
    tl.store(vk + out * d_v * d + dim_v[:, None] * d + dim[None, :], v_second, mask=cross)
