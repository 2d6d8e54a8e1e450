"""Local linear attention in Triton: softmax statistics, conjugate gradients that stream the keys, the output.

No d × d matrix and no n × n one is formed: C x = Σ_j p_j (k_j·x - k̄·x) k_j + λ x, the scalar subtracted
before the weighted sum is rounded. The backward solves C u = τ the same way; formulas in README.md.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from ..base import empty
from ..triton_parts import LOG2E, load_rows
from .decode_kernel import decode
from .parts import add_mm, conjugate_gradient, load_tile, mm, precision, seen_by, weights

__all__ = ["decode", "flash_lla"]

_ITERATIONS = 32
_NUMBERS = ["n_q", "n", "n_heads", "n_kv", "window", "iterations"]  # one compilation for all


def flash_lla(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lam: torch.Tensor,
    scale: float,
    window: int = 0,
    *,
    iterations: int = _ITERATIONS,
) -> torch.Tensor:
    """As `reference.flash_lla`, differentiable by q, k, v and lam; each solve takes at most `iterations`."""
    ridge = lam.float().expand(q.shape[:3])
    out: torch.Tensor = _FlashLLA.apply(q, k, v, ridge, scale, window, iterations)
    return out


class _FlashLLA(torch.autograd.Function):  # type: ignore[misc,unused-ignore]
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        lam: torch.Tensor,
        scale: float,
        window: int,
        iterations: int,
    ) -> torch.Tensor:
        q, k, v, lam = (x.contiguous() for x in (q, k, v, lam))
        rows, sizes = q.shape[:3], _sizes(q, k, v, scale, window, iterations)
        o = empty(*rows, v.shape[3], dtype=q.dtype, device=q.device)
        lse = empty(*rows, dtype=torch.float32, device=q.device)
        mean, eta = (empty(*q.shape, dtype=torch.float32, device=q.device) for _ in range(2))
        _forward[_grid(q, sizes["M"])](q, k, v, lam, o, lse, mean, eta, **sizes)
        ctx.save_for_backward(q, k, v, lam, lse, mean, eta)
        ctx.sizes = sizes
        return o

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, lam, lse, mean, eta = ctx.saved_tensors
        sizes = ctx.sizes
        dq, dk, dv, dlam = (empty(*x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, lam))
        u = empty(*q.shape, dtype=torch.float32, device=q.device)
        of_rows = empty(4, *lam.shape, dtype=torch.float32, device=q.device)
        given = (q, k, v, lam, lse, eta, g.contiguous(), u, of_rows)
        _backward_rows[_grid(q, sizes["M"])](*given, mean, dq, dlam, lam.numel(), **sizes)
        _backward_columns[_grid(k, sizes["N"])](*given, dk, dv, lam.numel(), **sizes)
        return dq, dk, dv, dlam, None, None, None


def _grid(x: torch.Tensor, tile: int) -> tuple[int, int, int]:
    return triton.cdiv(x.shape[1], tile), x.shape[2], x.shape[0]


def _sizes(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int, iterations: int
) -> dict[str, Any]:
    (_, n_q, n_heads, d), (_, n, n_kv, d_v) = q.shape, v.shape
    wide = max(d, d_v)
    tile = (64 if q.dtype == torch.bfloat16 else 32) // (1 if wide <= 128 else 2)  # what registers hold
    return {
        "n_q": n_q, "n": n, "n_heads": n_heads, "n_kv": n_kv, "d": d, "d_v": d_v, "scale": scale * LOG2E,
        "c": scale, "window": window if window else n, "iterations": iterations, "G": n_heads // n_kv,
        "D": max(16, triton.next_power_of_2(d)), "D_V": max(16, triton.next_power_of_2(d_v)),
        "M": tile, "N": tile, "PRECISION": precision(), "num_warps": 4 if wide <= 64 else 8,
        "num_stages": 2,
    }  # fmt: skip


@triton.jit(do_not_specialize=_NUMBERS)
def _forward(
    q, k, v, lam, o, lse, mean, eta, n_q, n, n_heads, n_kv, d, d_v, scale, c, window, iterations,
    G: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * M  # what takes longest begins first
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = first + tl.arange(0, M)
    row = (b * n_q + i) * n_heads + h
    q_tile = load_tile(q, row, i < n_q, d, D)
    position = i + n - n_q
    low = tl.maximum(first + n - n_q - window + 1, 0) // N * N
    high = tl.minimum(first + M + n - n_q, n)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    k_mean = tl.zeros([M, D], tl.float32)
    for start in range(low, high, N):
        j = start + tl.arange(0, N)
        k_tile = load_tile(k, (b * n + j) * n_kv + h // G, j < n, d, D)
        s = mm(q_tile, tl.trans(k_tile), PRECISION) * scale
        s = tl.where(seen_by(position, j, window), s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        w = tl.exp2(s - base[:, None])
        fade = tl.exp2(top - base)
        k_mean = add_mm(k_mean * fade[:, None], w, k_tile, PRECISION)
        total = total * fade + tl.sum(w, 1)
        top = new_top
    safe = tl.where(total > 0, total, 1.0)
    log_sum = tl.where(total > 0, top, 0.0) + tl.log2(safe)
    k_mean = k_mean / safe[:, None]
    ridge = tl.load(lam + row, mask=i < n_q, other=1.0)
    right = tl.where((i < n_q)[:, None], k_mean - q_tile.to(tl.float32), 0.0)
    solution = conjugate_gradient(
        right, q_tile, log_sum, position, k_mean, ridge, k, low, high, b, h // G, n, n_kv, d, scale, window,
        iterations, D, M, N, PRECISION,
    )  # fmt: skip
    shift = tl.sum(k_mean * solution, 1)
    out = tl.zeros([M, D_V], tl.float32)
    for start in range(low, high, N):
        j = start + tl.arange(0, N)
        k_tile = load_tile(k, (b * n + j) * n_kv + h // G, j < n, d, D)
        v_tile = load_tile(v, (b * n + j) * n_kv + h // G, j < n, d_v, D_V)
        p = weights(q_tile, k_tile, log_sum, position, j, scale, window, True, PRECISION)
        a = add_mm(tl.zeros([M, N], tl.float32), solution, tl.trans(k_tile), PRECISION) - shift[:, None]
        out += mm((p * (1 - a)).to(v_tile.dtype), v_tile, PRECISION)
    dim, dim_v = tl.arange(0, D), tl.arange(0, D_V)
    there = (i < n_q)[:, None]
    tl.store(o + row[:, None] * d_v + dim_v[None, :], out, mask=there & (dim_v < d_v)[None, :])
    tl.store(lse + row, log_sum, mask=i < n_q)
    tl.store(mean + row[:, None] * d + dim[None, :], k_mean, mask=there & (dim < d)[None, :])
    tl.store(eta + row[:, None] * d + dim[None, :], solution, mask=there & (dim < d)[None, :])


@triton.jit(do_not_specialize=[*_NUMBERS, "n_rows"])
def _backward_rows(
    q, k, v, lam, lse, eta, g, u, of_rows, mean, dq, dlam, n_rows,
    n_q, n, n_heads, n_kv, d, d_v, scale, c, window, iterations,
    G: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * M  # what takes longest begins first
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = first + tl.arange(0, M)
    row = (b * n_q + i) * n_heads + h
    there = i < n_q
    q_tile, g_tile = load_tile(q, row, there, d, D), load_tile(g, row, there, d_v, D_V)
    k_mean = load_rows(mean, row, there, d, D)
    log_sum = tl.load(lse + row, mask=there, other=0.0)
    ridge = tl.load(lam + row, mask=there, other=1.0)
    position = i + n - n_q
    low = tl.maximum(first + n - n_q - window + 1, 0) // N * N
    high = tl.minimum(first + M + n - n_q, n)
    middle = tl.zeros([M], tl.float32)  # c̄
    for start in range(low, high, N):
        j = start + tl.arange(0, N)
        k_tile = load_tile(k, (b * n + j) * n_kv + h // G, j < n, d, D)
        v_tile = load_tile(v, (b * n + j) * n_kv + h // G, j < n, d_v, D_V)
        p = weights(q_tile, k_tile, log_sum, position, j, scale, window, True, PRECISION)
        middle += tl.sum(p * mm(g_tile, tl.trans(v_tile), PRECISION), 1)
    tau, over = tl.zeros([M, D], tl.float32), tl.zeros([M], tl.float32)
    for start in range(low, high, N):
        j = start + tl.arange(0, N)
        k_tile = load_tile(k, (b * n + j) * n_kv + h // G, j < n, d, D)
        v_tile = load_tile(v, (b * n + j) * n_kv + h // G, j < n, d_v, D_V)
        p = weights(q_tile, k_tile, log_sum, position, j, scale, window, True, PRECISION)
        off = p * (mm(g_tile, tl.trans(v_tile), PRECISION) - middle[:, None])
        tau = add_mm(tau, off, k_tile, PRECISION)
        over += tl.sum(off, 1)
    solved = conjugate_gradient(
        tau - over[:, None] * k_mean, q_tile, log_sum, position, k_mean, ridge, k, low, high, b, h // G, n,
        n_kv, d, scale, window, iterations, D, M, N, PRECISION,
    )  # fmt: skip
    solution = load_rows(eta, row, there, d, D)
    a_shift, b_shift = tl.sum(k_mean * solution, 1), tl.sum(k_mean * solved, 1)
    slope = tl.zeros([M], tl.float32)  # Σ_j p_j e_j
    against = tl.zeros([M, D], tl.float32)  # Σ_j p_j e_j k_j
    for start in range(low, high, N):
        j = start + tl.arange(0, N)
        k_tile = load_tile(k, (b * n + j) * n_kv + h // G, j < n, d, D)
        v_tile = load_tile(v, (b * n + j) * n_kv + h // G, j < n, d_v, D_V)
        p = weights(q_tile, k_tile, log_sum, position, j, scale, window, True, PRECISION)
        c_ij = mm(g_tile, tl.trans(v_tile), PRECISION)
        zero = tl.zeros([M, N], tl.float32)
        a = add_mm(zero, solution, tl.trans(k_tile), PRECISION) - a_shift[:, None]
        beside = add_mm(zero, solved, tl.trans(k_tile), PRECISION) - b_shift[:, None]
        pe = p * (c_ij - (c_ij - middle[:, None]) * a - beside + a * beside)
        slope += tl.sum(pe, 1)
        against = add_mm(against, pe, k_tile, PRECISION)
    grad = c * (against - slope[:, None] * k_mean) + solved
    dim = tl.arange(0, D)
    mask = there[:, None] & (dim < d)[None, :]
    tl.store(dq + row[:, None] * d + dim[None, :], grad, mask=mask)
    tl.store(u + row[:, None] * d + dim[None, :], solved, mask=mask)
    tl.store(dlam + row, tl.sum(solved * solution, 1), mask=there)
    tl.store(of_rows + row, middle, mask=there)
    tl.store(of_rows + n_rows + row, slope, mask=there)
    tl.store(of_rows + 2 * n_rows + row, a_shift, mask=there)
    tl.store(of_rows + 3 * n_rows + row, b_shift, mask=there)


@triton.jit(do_not_specialize=[*_NUMBERS, "n_rows"])
def _backward_columns(
    q, k, v, lam, lse, eta, g, u, of_rows, dk, dv, n_rows,
    n_q, n, n_heads, n_kv, d, d_v, scale, c, window, iterations,
    G: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first, kv_head, b = tl.program_id(0) * N, tl.program_id(1), tl.program_id(2).to(tl.int64)
    j = first + tl.arange(0, N)
    column = (b * n + j) * n_kv + kv_head
    k_tile, v_tile = load_tile(k, column, j < n, d, D), load_tile(v, column, j < n, d_v, D_V)
    k_grad, v_grad = tl.zeros([N, D], tl.float32), tl.zeros([N, D_V], tl.float32)
    low = tl.maximum(first - (n - n_q), 0) // M * M
    high = tl.minimum(first + N - 1 + window - (n - n_q), n_q)
    for head in range(G):
        h = kv_head * G + head
        for start in range(low, high, M):
            i = start + tl.arange(0, M)
            there = i < n_q
            row = (b * n_q + i) * n_heads + h
            q_tile, g_tile = load_tile(q, row, there, d, D), load_tile(g, row, there, d_v, D_V)
            solution, solved = load_rows(eta, row, there, d, D), load_rows(u, row, there, d, D)
            log_sum = tl.load(lse + row, mask=there, other=0.0)
            middle = tl.load(of_rows + row, mask=there, other=0.0)
            slope = tl.load(of_rows + n_rows + row, mask=there, other=0.0)
            a_shift = tl.load(of_rows + 2 * n_rows + row, mask=there, other=0.0)
            b_shift = tl.load(of_rows + 3 * n_rows + row, mask=there, other=0.0)
            p = weights(q_tile, k_tile, log_sum, i + n - n_q, j, scale, window, True, PRECISION)
            p = tl.where(there[:, None], p, 0.0)
            away = mm(g_tile, tl.trans(v_tile), PRECISION) - middle[:, None]
            zero = tl.zeros([M, N], tl.float32)
            a = add_mm(zero, solution, tl.trans(k_tile), PRECISION) - a_shift[:, None]
            beside = add_mm(zero, solved, tl.trans(k_tile), PRECISION) - b_shift[:, None]
            kind: tl.constexpr = k_tile.dtype  # each product is its own term here: rounded as outputs are
            ds = c * p * (away + middle[:, None] - away * a - beside + a * beside - slope[:, None])
            rest = (p * (1 - a)).to(kind)
            k_grad += mm(tl.trans(ds.to(kind)), q_tile, PRECISION)
            k_grad += mm(tl.trans((p * (beside - away)).to(kind)), solution.to(kind), PRECISION)
            k_grad -= mm(tl.trans(rest), solved.to(kind), PRECISION)
            v_grad += mm(tl.trans(rest), g_tile, PRECISION)
    dim, dim_v = tl.arange(0, D), tl.arange(0, D_V)
    tl.store(dk + column[:, None] * d + dim[None, :], k_grad, mask=(j < n)[:, None] & (dim < d)[None, :])
    tl.store(
        dv + column[:, None] * d_v + dim_v[None, :], v_grad, mask=(j < n)[:, None] & (dim_v < d_v)[None, :]
    )
