"""EMS's log-sum-exp, column sums, assignment and merge in Triton.

No atomics and ties by index: it repeats bit for bit.
"""

import torch
import triton
import triton.language as tl

from ..base import empty
from ..triton_parts import LN2, LOG2E, dot, load_rows, native, tiles

_PAIRS = 16  # four tiles of unit vectors, float32, are held at once


def row_lse(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """As `reference.row_lse`, float32: one program per head and block of queries, the longest rows first."""
    (n_q, n_heads, d), (n, n_kv, _) = q.shape, k.shape
    lse = empty(n_q, n_heads, dtype=torch.float32, device=q.device)
    width = max(16, triton.next_power_of_2(d))
    sizes = tiles(q, width)
    _lse_kernel[(triton.cdiv(n_q, sizes["ROWS"]), n_heads)](
        q.contiguous(), k.contiguous(), lse, n_q, n, n_heads, n_kv, d, scale * LOG2E, LN2,
        G=n_heads // n_kv, D=width, **sizes, NATIVE=native(), num_warps=8,
    )  # fmt: skip
    return lse


def column_sums(
    q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor, window: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.column_sums`: one program per KV head and block of keys, over the queries that see it."""
    (n_q, n_heads, d), (n, n_kv, _) = q.shape, k.shape
    q, k, lse = q.contiguous(), k.contiguous(), lse.float().contiguous()
    total = empty(n_kv, n, dtype=torch.float32, device=q.device)
    local = empty(n_kv, n, dtype=torch.float32, device=q.device)
    width = max(16, triton.next_power_of_2(d))
    sizes = tiles(q, width)
    _columns_kernel[(triton.cdiv(n, sizes["ROWS"]), n_kv)](
        q, k, lse, total, local, n_q, n, n_heads, n_kv, d, window, scale * LOG2E, LOG2E,
        G=n_heads // n_kv, D=width, **sizes, NATIVE=native(), num_warps=8,
    )  # fmt: skip
    return total, local


def assign(
    k: torch.Tensor, v: torch.Tensor, centres: torch.Tensor, tokens: torch.Tensor, tau: float
) -> torch.Tensor:
    """As `reference.assign`: the similarity matrix is never written."""
    _, n_kv, d = k.shape
    m, n_tokens, d_v = centres.shape[1], tokens.shape[1], v.shape[2]
    target = empty(n_kv, n_tokens, dtype=torch.int64, device=k.device)
    if n_tokens:
        _assign_kernel[(triton.cdiv(n_tokens, _PAIRS), n_kv)](
            k.contiguous(), v.contiguous(), centres.contiguous(), tokens.contiguous(), target,
            n_tokens, m, n_kv, d, d_v, tau,
            D=max(16, triton.next_power_of_2(d)), D_V=max(16, triton.next_power_of_2(d_v)), BLOCK=_PAIRS,
            NATIVE=native(), num_stages=2,
        )  # fmt: skip
    return target


def merge(
    x: torch.Tensor, weights: torch.Tensor, centres: torch.Tensor, tokens: torch.Tensor, target: torch.Tensor,
    unit: bool,
) -> torch.Tensor:  # fmt: skip
    """As `reference.merge`: tokens sorted by class, one program per class."""
    _, n_kv, d = x.shape
    m = centres.shape[1]
    sorted_target, order = target.sort(dim=1, stable=True)
    classes = torch.arange(m + 1, device=x.device).expand(n_kv, -1).contiguous()
    first = torch.searchsorted(sorted_target.contiguous(), classes)
    out = empty(m, n_kv, d, dtype=x.dtype, device=x.device)
    _merge_kernel[(m, n_kv)](
        x.contiguous(), weights.float().contiguous(), centres.contiguous(),
        tokens.gather(1, order).contiguous(), first, out, weights.shape[1], tokens.shape[1], m, n_kv, d,
        UNIT=unit, D=triton.next_power_of_2(d), BLOCK=16,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["n_q", "n"])
def _lse_kernel(
    q, k, lse, n_q, n, n_heads, n_kv, d, scale, ln2,
    G: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    first, head = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS, tl.program_id(1)
    i = (first + tl.arange(0, ROWS)).to(tl.int64)
    q_tile = load_rows(q, i * n_heads + head, i < n_q, d, D)
    before = n - n_q  # positions whose queries are not here
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, tl.minimum(first + ROWS + before, n), BLOCK):
        j = (start + tl.arange(0, BLOCK)).to(tl.int64)
        k_tile = load_rows(k, j * n_kv + head // G, j < n, d, D)
        s = dot(q_tile, tl.trans(k_tile), NATIVE) * scale
        s = tl.where((j[None, :] <= i[:, None] + before) & (j < n)[None, :], s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))  # finite from the first block on: every query sees key 0
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(s - higher[:, None]), 1)
        top = higher
    tl.store(lse + i * n_heads + head, (top + tl.log2(total)) * ln2, mask=i < n_q)


@triton.jit(do_not_specialize=["n_q", "n", "window"])
def _columns_kernel(
    q, k, lse, total, local, n_q, n, n_heads, n_kv, d, window, scale, log2e,
    G: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    first, h = tl.program_id(0) * ROWS, tl.program_id(1)
    j = (first + tl.arange(0, ROWS)).to(tl.int64)
    k_tile = load_rows(k, j * n_kv + h, j < n, d, D)
    everyone, latest = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    before = n - n_q  # positions whose queries are not here
    # One loop over blocks of queries and, within, heads: a loop inside a loop would not be pipelined.
    for step in range(tl.maximum(first - before, 0) // BLOCK * G, tl.cdiv(n_q, BLOCK) * G):
        i, head = (step // G * BLOCK + tl.arange(0, BLOCK)).to(tl.int64), h * G + step % G
        q_tile = load_rows(q, i * n_heads + head, i < n_q, d, D)
        row = tl.load(lse + i * n_heads + head, mask=i < n_q, other=0.0) * log2e
        seen = (i < n_q)[None, :] & (i[None, :] + before >= j[:, None]) & (j < n)[:, None]
        logit = dot(k_tile, tl.trans(q_tile), NATIVE) * scale - row[None, :]
        p = tl.exp2(tl.where(seen, logit, float("-inf")))
        everyone += tl.sum(p, 1)
        latest += tl.sum(tl.where((i >= n_q - window)[None, :], p, 0.0), 1)
    tl.store(total + h * n + j, everyone / G, mask=j < n)
    tl.store(local + h * n + j, latest / G, mask=j < n)


@triton.jit
def _unit(pointer, row, there, h, n_kv, d, D: tl.constexpr):
    dim = tl.arange(0, D)
    mask = there[:, None] & (dim < d)[None, :]
    x = tl.load(pointer + (row[:, None] * n_kv + h) * d + dim[None, :], mask=mask, other=0.0).to(tl.float32)
    return x / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)[:, None]


@triton.jit(do_not_specialize=["n_tokens", "m"])
def _assign_kernel(
    k, v, centres, tokens, target, n_tokens, m, n_kv, d, d_v, tau,
    D: tl.constexpr, D_V: tl.constexpr, BLOCK: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens + h * n_tokens + at, mask=at < n_tokens, other=-1)
    k_x, v_x = _unit(k, token, token >= 0, h, n_kv, d, D), _unit(v, token, token >= 0, h, n_kv, d_v, D_V)
    best = tl.full([BLOCK], -2.0, tl.float32)
    which = tl.zeros([BLOCK], tl.int64)
    for start in range(0, m, BLOCK):
        y = start + tl.arange(0, BLOCK)
        centre = tl.load(centres + h * m + y, mask=y < m, other=0)
        k_y, v_y = _unit(k, centre, y < m, h, n_kv, d, D), _unit(v, centre, y < m, h, n_kv, d_v, D_V)
        cos_k, cos_v = dot(k_x, tl.trans(k_y), NATIVE), dot(v_x, tl.trans(v_y), NATIVE)
        r = tl.where((cos_k > 0) & (cos_v > 0) & (y < m)[None, :], cos_k * cos_v, -1.0)
        here = tl.max(r, 1)
        first = tl.argmax(r, 1, tie_break_left=True) + start
        which = tl.where(here > best, first.to(tl.int64), which)
        best = tl.maximum(best, here)
    which = tl.where((best >= tau) & (token >= 0), which, m)
    tl.store(target + h * n_tokens + at, which, mask=at < n_tokens)


@triton.jit(do_not_specialize=["n", "n_tokens", "m"])
def _merge_kernel(
    x, weights, centres, members, first, out, n, n_tokens, m, n_kv, d,
    UNIT: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    y, h, dim = tl.program_id(0), tl.program_id(1), tl.arange(0, D)
    centre = tl.load(centres + h * m + y)
    own = tl.load(x + (centre * n_kv + h) * d + dim, mask=dim < d, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(own * own, 0))
    mass = tl.load(weights + h * n + centre)
    total = own * mass / tl.maximum(length, 1e-12) if UNIT else own * mass
    start, end = tl.load(first + h * (m + 1) + y), tl.load(first + h * (m + 1) + y + 1)
    for at in range(start, end, BLOCK):
        place = at + tl.arange(0, BLOCK)
        token = tl.load(members + h * n_tokens + place, mask=place < end, other=0)
        mask = (place < end)[:, None] & (dim < d)[None, :]
        w = tl.load(weights + h * n + token, mask=place < end, other=0.0)
        row = tl.load(x + (token[:, None] * n_kv + h) * d + dim[None, :], mask=mask, other=0.0).to(tl.float32)
        if UNIT:
            row = row / tl.maximum(tl.sqrt(tl.sum(row * row, 1)), 1e-12)[:, None]
        total += tl.sum(row * w[:, None], 0)
        mass += tl.sum(w, 0)
    if UNIT:
        merged = total * (length / tl.maximum(tl.sqrt(tl.sum(total * total, 0)), 1e-12))
    else:
        merged = total / tl.where(mass > 0, mass, 1.0)
    alone = (start == end) | (mass <= 0)
    tl.store(out + (y * n_kv + h) * d + dim, tl.where(alone, own, merged), mask=dim < d)
