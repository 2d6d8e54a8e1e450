"""Hogwild attention in Triton: parts of all blocks run side by side and are united; a key is read once.

One program takes the queries of all workers at one KV head, over one part of each block, and turns them anew
for each.
"""

import torch
import triton
import triton.language as tl

from ..base import empty
from ..paged.kernel import parts, store_part, unite
from ..triton_parts import LOG2E, dot, load_rows, native, softmax_step

_BLOCK = 64
_LEAST, _MOST = 16, 64  # rows of queries in a tile: the least that tl.dot takes, what fits the registers


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
    (n_blocks, longest), n_kv, d_v = slots.shape, k_pool.shape[1], v_pool.shape[2]
    n_queries, group = n_workers * n_new, n_heads // n_kv
    rows = min(_MOST, max(_LEAST, triton.next_power_of_2(n_queries * group)))
    n_tiles = triton.cdiv(n_queries * group, rows)
    n_parts = parts(n_kv * n_tiles, longest, q)
    o_part = empty(n_queries, n_heads, n_parts, d_v, dtype=torch.float32, device=q.device)
    m_part = empty(n_queries, n_heads, n_parts, dtype=torch.float32, device=q.device)
    _attend_kernel[(n_parts, n_kv, n_tiles)](
        q.contiguous(), k_pool.contiguous(), v_pool.contiguous(), slots.contiguous(), loc.contiguous(),
        frequency.double().contiguous(), o_part, m_part, n_blocks, longest, n_queries, n_heads, n_kv, d // 2,
        d_v, scale * LOG2E, G=group, ROWS=rows, HALF=max(16, triton.next_power_of_2(d // 2)),
        D_V=max(16, triton.next_power_of_2(d_v)), BLOCK=_BLOCK, NATIVE=native(),
    )  # fmt: skip
    return unite(o_part, m_part, q.dtype)[0].view(n_workers, n_new, n_heads, d_v)


@triton.jit(do_not_specialize=["n_blocks", "longest", "n_queries"])
def _attend_kernel(
    q, k_pool, v_pool, slots, loc, frequency, o_part, m_part, n_blocks, longest, n_queries, n_heads, n_kv,
    half, d_v, scale,
    G: tl.constexpr, ROWS: tl.constexpr, HALF: tl.constexpr, D_V: tl.constexpr, BLOCK: tl.constexpr,
    NATIVE: tl.constexpr,
):  # fmt: skip
    part, n_parts, g = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    row, dim = tl.program_id(2) * ROWS + tl.arange(0, ROWS), tl.arange(0, HALF)
    query, there = row // G, row < n_queries * G
    head = query * n_heads + g * G + row % G
    pair = there[:, None] & (dim < half)[None, :]
    q_a = tl.load(q + head[:, None] * 2 * half + dim[None, :], mask=pair, other=0.0).to(tl.float32)
    q_b = tl.load(q + head[:, None] * 2 * half + half + dim[None, :], mask=pair, other=0.0).to(tl.float32)
    radians = tl.load(frequency + dim, mask=dim < half, other=0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D_V], tl.float32)
    turn = tl.full([1, 1], 6.283185307179586, tl.float64)  # an argument would be float32
    for f in range(n_blocks):
        place = tl.load(loc + f * n_queries + query, mask=there, other=-1)
        seen = tl.minimum(tl.max(place, 0) + 1, longest)
        size = tl.cdiv(tl.cdiv(seen, n_parts), BLOCK) * BLOCK
        mine = (part + 5 * f) % n_parts  # of short blocks only the first parts hold keys
        if mine * size < seen:
            # In float32 large positions lose their angle, so whole turns are taken off before.
            angle = place.to(tl.float64)[:, None] * radians[None, :]
            angle = (angle - tl.floor(angle / turn) * turn).to(tl.float32)
            c, s_ = tl.cos(angle), tl.sin(angle)
            turned_a, turned_b = q_a * c - q_b * s_, q_b * c + q_a * s_
            high_a, high_b = turned_a.to(k_pool.dtype.element_ty), turned_b.to(k_pool.dtype.element_ty)
            low_a = (turned_a - high_a.to(tl.float32)).to(k_pool.dtype.element_ty)
            low_b = (turned_b - high_b.to(tl.float32)).to(k_pool.dtype.element_ty)
            for start in range(mine * size, tl.minimum((mine + 1) * size, seen), BLOCK):
                j = start + tl.arange(0, BLOCK)
                slot = tl.load(slots + f * longest + j, mask=j < longest, other=-1).to(tl.int64)
                base = (slot[None, :] * n_kv + g) * 2 * half
                mask = (slot >= 0)[None, :] & (dim < half)[:, None]
                k_a = tl.load(k_pool + base + dim[:, None], mask=mask, other=0.0)
                k_b = tl.load(k_pool + base + half + dim[:, None], mask=mask, other=0.0)
                s = dot(high_a, k_a, NATIVE) + dot(high_b, k_b, NATIVE)
                if k_a.dtype != tl.float32:  # what rounding takes from a query, all keys would miss alike
                    s += dot(low_a, k_a, NATIVE) + dot(low_b, k_b, NATIVE)
                s = tl.where((j[None, :] <= place[:, None]) & (slot >= 0)[None, :], s * scale, float("-inf"))
                v = load_rows(v_pool, slot * n_kv + g, slot >= 0, d_v, D_V)
                top, total, acc = softmax_step(s, v, top, total, acc, NATIVE)
    store_part(o_part, m_part, head * n_parts + part, there, top, total, acc, d_v, D_V)
