"""Engram's hash, look-up, gate and convolution in Triton. Hashes are exact; the rest is float32 inside."""

from functools import lru_cache

import torch
import triton
import triton.language as tl

from ..base import empty
from .hashing import Layout
from .reference import EPS

_TOKENS = 64
_ROWS = 16


def hash_rows(ids: torch.Tensor, layout: Layout) -> torch.Tensor:
    """As `reference.hash_rows`."""
    n, columns = len(ids), len(layout.primes)
    rows = empty(n, columns, dtype=torch.int64, device=ids.device)
    _hash_kernel[(triton.cdiv(n, _TOKENS),)](
        ids.contiguous(), *_constants(layout, ids.device), rows, n,
        ORDERS=layout.max_order, HEADS=layout.n_heads, TOKENS=_TOKENS,
    )  # fmt: skip
    return rows


@lru_cache(maxsize=256)
def _constants(layout: Layout, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Multipliers, primes and offsets there. Kept: a copy to a GPU waits for all that it has to do."""
    constants = (layout.multipliers, layout.primes, layout.offsets)
    return tuple(torch.tensor(x, dtype=torch.int64, device=device) for x in constants)


def lookup(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """As `reference.lookup`; the table may be pinned memory of the host."""
    (n, columns), width = rows.shape, table.shape[1]
    out = empty(n, columns * width, dtype=table.dtype, device=rows.device)
    _lookup_kernel[(triton.cdiv(n * columns, _ROWS),)](
        table, rows.contiguous(), out, n * columns, width, ROWS=_ROWS, WIDTH=triton.next_power_of_2(width)
    )
    return out


def gate(h: torch.Tensor, kv: torch.Tensor, h_weight: torch.Tensor, k_weight: torch.Tensor) -> torch.Tensor:
    """As `reference.gate`: one program a token and branch."""
    n, branches, d = h.shape
    u = empty(n, branches, d, dtype=h.dtype, device=h.device)
    _gate_kernel[(n, branches)](
        h.contiguous(), kv.contiguous(), h_weight.contiguous(), k_weight.contiguous(), u, d, branches,
        d**-0.5, EPS=EPS, D=triton.next_power_of_2(d),
    )  # fmt: skip
    return u


def short_conv(
    u: torch.Tensor,
    weight: torch.Tensor,
    norm: torch.Tensor,
    dilation: int,
    before: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `reference.short_conv`: one program a token and branch."""
    n, branches, d = u.shape
    u = u.contiguous()
    y = empty(n, branches, d, dtype=u.dtype, device=u.device)
    _conv_kernel[(n, branches)](
        u, u if before is None else before.contiguous(), weight.transpose(1, 2).contiguous(),
        norm.contiguous(), y, branches, d, dilation, TAPS=weight.shape[2], HAS_PAST=before is not None,
        EPS=EPS, D=triton.next_power_of_2(d), num_warps=8,
    )  # fmt: skip
    return y


@triton.jit(do_not_specialize=["n"])
def _hash_kernel(
    ids, multipliers, primes, offsets, rows, n,
    ORDERS: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    there = t < n
    mix = tl.load(ids + t * ORDERS, mask=there, other=0) * tl.load(multipliers)
    for order in range(1, ORDERS):
        mix = mix ^ (tl.load(ids + t * ORDERS + order, mask=there, other=0) * tl.load(multipliers + order))
        for head in range(HEADS):
            column = (order - 1) * HEADS + head
            row = mix % tl.load(primes + column) + tl.load(offsets + column)
            tl.store(rows + t * ((ORDERS - 1) * HEADS) + column, row, mask=there)


@triton.jit(do_not_specialize=["n"])
def _lookup_kernel(table, rows, out, n, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    at, dim = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    row = tl.load(rows + at, mask=at < n, other=0)
    mask = (at < n)[:, None] & (dim < width)[None, :]
    tl.store(
        out + at[:, None] * width + dim[None, :],
        tl.load(table + row[:, None] * width + dim[None, :], mask=mask),
        mask=mask,
    )


@triton.jit
def _gate_kernel(h, kv, h_weight, k_weight, u, d, branches, scale, EPS: tl.constexpr, D: tl.constexpr):
    t, m, dim = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, D)
    mask = dim < d
    x = tl.load(h + (t * branches + m) * d + dim, mask=mask, other=0.0).to(tl.float32)
    k = tl.load(kv + (t * (branches + 1) + m) * d + dim, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(kv + (t * (branches + 1) + branches) * d + dim, mask=mask, other=0.0).to(tl.float32)
    both = tl.load(h_weight + m * d + dim, mask=mask, other=0.0).to(tl.float32)
    both *= tl.load(k_weight + m * d + dim, mask=mask, other=0.0).to(tl.float32)
    lengths = tl.sqrt(tl.sum(x * x, 0) / d + EPS) * tl.sqrt(tl.sum(k * k, 0) / d + EPS)
    g = tl.sum(x * k * both, 0) / lengths * scale
    root = tl.sqrt(tl.maximum(tl.abs(g), 1e-6))
    signed = tl.where(g > 0, root, tl.where(g < 0, -root, 0.0))
    alpha = 1.0 / (1.0 + tl.exp(-signed))
    tl.store(u + (t * branches + m) * d + dim, alpha * v, mask=mask)


@triton.jit
def _conv_kernel(
    u, before, weight, norm, y, branches, d, dilation,
    TAPS: tl.constexpr, HAS_PAST: tl.constexpr, EPS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    t, m, dim = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, D)
    mask = dim < d
    scale = tl.load(norm + m * d + dim, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros([D], tl.float32)
    for tap in range(TAPS):
        at = t - (TAPS - 1 - tap) * dilation + tl.zeros([D], tl.int64)
        x = tl.load(u + (at * branches + m) * d + dim, mask=mask & (at >= 0), other=0.0).to(tl.float32)
        if HAS_PAST:
            past = ((at + (TAPS - 1) * dilation) * branches + m) * d + dim
            x += tl.load(before + past, mask=mask & (at < 0), other=0.0).to(tl.float32)
        x = x / tl.sqrt(tl.sum(x * x, 0) / d + EPS) * scale
        total += x * tl.load(weight + (m * TAPS + tap) * d + dim, mask=mask, other=0.0).to(tl.float32)
    here = tl.load(u + (t * branches + m) * d + dim, mask=mask, other=0.0).to(tl.float32)
    silu = total / (1.0 + tl.exp(-total))
    tl.store(y + (t * branches + m) * d + dim, here + silu, mask=mask)
