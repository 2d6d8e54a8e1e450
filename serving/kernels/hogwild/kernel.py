"""Hogwild attention in Triton: one program a worker and KV head, the query turned anew for each block."""

import torch
import triton
import triton.language as tl

from ..base import empty
from ..triton_parts import LOG2E, dot, native, softmax_step

_BLOCK = 64


def attend(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor,
    loc: torch.Tensor,
    frequency: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """As `reference.attend`."""
    n_workers, n_new, n_heads, d = q.shape
    n_kv, d_v = k_pool.shape[1], v_pool.shape[2]
    group = n_heads // n_kv
    angle = loc.double()[..., None] * frequency.double()  # in float32 large positions lose their angle
    o = empty(n_workers, n_new, n_heads, d_v, dtype=q.dtype, device=q.device)
    _attend_kernel[(n_workers, n_kv)](
        q.contiguous(), k_pool.contiguous(), v_pool.contiguous(), slots.contiguous(), loc.contiguous(),
        angle.cos().float().contiguous(), angle.sin().float().contiguous(), o,
        len(slots), slots.shape[1], n_workers, n_heads, n_kv, d // 2, d_v, scale * LOG2E,
        G=group, S=n_new, ROWS=max(16, triton.next_power_of_2(group * n_new)),
        HALF=max(16, triton.next_power_of_2(d // 2)), D_V=max(16, triton.next_power_of_2(d_v)),
        BLOCK=_BLOCK, NATIVE=native(),
    )  # fmt: skip
    return o


@triton.jit
def _attend_kernel(
    q, k_pool, v_pool, slots, loc, cos, sin, o, n_blocks, longest, n_workers, n_heads, n_kv, half, d_v, scale,
    G: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr, D_V: tl.constexpr,
    BLOCK: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    w, g = tl.program_id(0), tl.program_id(1)
    row, dim, dim_v = tl.arange(0, ROWS), tl.arange(0, HALF), tl.arange(0, D_V)
    new, there = row // G, row < G * S
    at = ((w * S + new) * n_heads + g * G + row % G) * 2 * half
    pair = there[:, None] & (dim < half)[None, :]
    q_a = tl.load(q + at[:, None] + dim[None, :], mask=pair, other=0.0)
    q_b = tl.load(q + at[:, None] + half + dim[None, :], mask=pair, other=0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_V], tl.float32)
    for f in range(n_blocks):
        view = (f * n_workers + w) * S + new
        place = tl.load(loc + view, mask=there, other=-1)
        c = tl.load(cos + view[:, None] * half + dim[None, :], mask=pair, other=0.0)
        s_ = tl.load(sin + view[:, None] * half + dim[None, :], mask=pair, other=0.0)
        turned_a = (q_a.to(tl.float32) * c - q_b.to(tl.float32) * s_).to(q_a.dtype)
        turned_b = (q_b.to(tl.float32) * c + q_a.to(tl.float32) * s_).to(q_a.dtype)
        for start in range(0, tl.minimum(tl.max(place, 0) + 1, longest), BLOCK):
            j = start + tl.arange(0, BLOCK)
            slot = tl.load(slots + f * longest + j, mask=j < longest, other=-1).to(tl.int64)
            base = (slot[None, :] * n_kv + g) * 2 * half
            mask = (slot >= 0)[None, :] & (dim < half)[:, None]
            k_a = tl.load(k_pool + base + dim[:, None], mask=mask, other=0.0)
            k_b = tl.load(k_pool + base + half + dim[:, None], mask=mask, other=0.0)
            s = (dot(turned_a, k_a, NATIVE) + dot(turned_b, k_b, NATIVE)) * scale
            s = tl.where((j[None, :] <= place[:, None]) & (slot >= 0)[None, :], s, float("-inf"))
            v_mask = (slot >= 0)[:, None] & (dim_v < d_v)[None, :]
            v = tl.load(v_pool + (slot[:, None] * n_kv + g) * d_v + dim_v[None, :], mask=v_mask, other=0.0)
            top, total, acc = softmax_step(s, v, top, total, acc, NATIVE)
    out = ((w * S + new) * n_heads + g * G + row % G) * d_v
    mean = acc / tl.where(total == 0, 1.0, total)[:, None]
    tl.store(o + out[:, None] + dim_v[None, :], mean, mask=there[:, None] & (dim_v < d_v)[None, :])
