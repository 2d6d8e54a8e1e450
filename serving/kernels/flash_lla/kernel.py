"""Local linear attention in Triton: softmax statistics, conjugate gradients that stream the keys, the output.

No d × d matrix and no n × n one is formed: C x = Σ_j p_j (k_j·x - k̄·x) k_j + λ x, the scalar subtracted
before the weighted sum is rounded. Keys are taken from their mean, which changes C and o by nothing but
rounding. The backward solves C u = τ the same way; formulas in README.md.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from ..base import empty
from ..triton_parts import LOG2E
from .decode_kernel import decode
from .parts import conjugate_gradient, load_centre, load_rows, mm, precision, weights

__all__ = ["decode", "flash_lla"]

_ITERATIONS = 32
_M, _N = 32, 32  # rows of queries and of keys in a tile: what is kept for a row then fits the registers


def flash_lla(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lam: torch.Tensor, scale: float, window: int = 0
) -> torch.Tensor:
    """As `reference.flash_lla`, differentiable by q, k, v and lam."""
    ridge = lam.float().expand(q.shape[:3])
    out: torch.Tensor = _FlashLLA.apply(q, k, v, ridge, scale, window)
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
    ) -> torch.Tensor:
        q, k, v, lam = (x.contiguous() for x in (q, k, v, lam))
        rows = q.shape[:3]
        o = empty(*rows, v.shape[3], dtype=q.dtype, device=q.device)
        lse = empty(*rows, dtype=torch.float32, device=q.device)
        mean, eta = (empty(*q.shape, dtype=torch.float32, device=q.device) for _ in range(2))
        centre = k.mean(1, dtype=torch.float32)
        _forward[_grid(q)](q, k, v, lam, centre, o, lse, mean, eta, **_sizes(q, k, v, scale, window))
        ctx.save_for_backward(q, k, v, lam, centre, lse, mean, eta)
        ctx.scale, ctx.window = scale, window
        return o

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, lam, centre, lse, mean, eta = ctx.saved_tensors
        g = g.contiguous()
        sizes = _sizes(q, k, v, ctx.scale, ctx.window)
        dq, dlam = (
            empty(*q.shape, dtype=q.dtype, device=q.device),
            empty(*lam.shape, dtype=lam.dtype, device=q.device),
        )
        dk, dv = (empty(*x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
        u = empty(*q.shape, dtype=torch.float32, device=q.device)
        c_mean, e_mean = (empty(*lam.shape, dtype=torch.float32, device=q.device) for _ in range(2))
        saved = (q, k, v, lam, centre, lse, mean, eta, g, u, c_mean, e_mean)
        _backward_rows[_grid(q)](*saved, dq, dlam, **sizes)
        _backward_columns[(triton.cdiv(k.shape[1], _N), k.shape[2], len(k))](*saved, dk, dv, **sizes)
        return dq, dk, dv, dlam, None, None


def _grid(q: torch.Tensor) -> tuple[int, int, int]:
    return triton.cdiv(q.shape[1], _M), q.shape[2], q.shape[0]


def _sizes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, window: int) -> dict[str, Any]:
    (_, n_q, n_heads, d), (_, n, n_kv, d_v) = q.shape, v.shape
    return {
        "n_q": n_q, "n": n, "n_heads": n_heads, "n_kv": n_kv, "d": d, "d_v": d_v, "scale": scale * LOG2E,
        "c": scale, "window": window if window else n, "ITERATIONS": _ITERATIONS, "G": n_heads // n_kv,
        "D": max(16, triton.next_power_of_2(d)), "D_V": max(16, triton.next_power_of_2(d_v)),
        "M": _M, "N": _N, "PRECISION": precision(q), "num_warps": 4 if max(d, d_v) <= 64 else 8,
        "num_stages": 2,
    }  # fmt: skip


@triton.jit
def _forward(
    q, k, v, lam, centre, o, lse, mean, eta, n_q, n, n_heads, n_kv, d, d_v, scale, c, window,
    ITERATIONS: tl.constexpr, G: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first, h, b = tl.program_id(0) * M, tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = first + tl.arange(0, M)
    row = (b * n_q + i) * n_heads + h
    q_tile = load_rows(q, row, i < n_q, d, D)
    k_centre = load_centre(centre, b, h // G, n_kv, d, D)
    position = i + n - n_q
    low = tl.maximum(first + n - n_q - window + 1, 0) // N * N
    high = tl.minimum(first + M + n - n_q, n)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    k_mean = tl.zeros([M, D], tl.float32)
    for start in range(low, high, N):
        j = start + tl.arange(0, N)
        k_tile = load_rows(k, (b * n + j) * n_kv + h // G, j < n, d, D)
        s = mm(q_tile, tl.trans(k_tile), PRECISION) * scale
        seen = (
            (j[None, :] <= position[:, None]) & (position[:, None] - j[None, :] < window) & (j < n)[None, :]
        )
        s = tl.where(seen, s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        w = tl.exp2(s - base[:, None])
        fade = tl.exp2(top - base)
        k_mean = k_mean * fade[:, None] + mm(w, k_tile.to(tl.float32) - k_centre[None, :], PRECISION)
        total = total * fade + tl.sum(w, 1)
        top = new_top
    safe = tl.where(total > 0, total, 1.0)
    log_sum = tl.where(total > 0, top, 0.0) + tl.log2(safe)
    k_mean = k_mean / safe[:, None]
    ridge = tl.load(lam + row, mask=i < n_q, other=1.0)
    right = k_mean + k_centre[None, :] - q_tile.to(tl.float32)
    right = tl.where((i < n_q)[:, None], right, 0.0)
    solution = conjugate_gradient(
        right, q_tile, log_sum, position, k_mean, k_centre, ridge, k, low, high, b, h // G, n, n_kv, d, scale,
        window, ITERATIONS, D, M, N, PRECISION,
    )  # fmt: skip
    shift = tl.sum(k_mean * solution, 1)
    out = tl.zeros([M, D_V], tl.float32)
    for start in range(low, high, N):
        j = start + tl.arange(0, N)
        k_tile = load_rows(k, (b * n + j) * n_kv + h // G, j < n, d, D)
        v_tile = load_rows(v, (b * n + j) * n_kv + h // G, j < n, d_v, D_V)
        p = weights(q_tile, k_tile, log_sum, position, j, n, scale, window, PRECISION)
        wide = k_tile.to(tl.float32) - k_centre[None, :]
        a = mm(solution, tl.trans(wide), PRECISION) - shift[:, None]
        out += mm((p * (1 - a)).to(v_tile.dtype), v_tile, PRECISION)
    dim, dim_v = tl.arange(0, D), tl.arange(0, D_V)
    there = (i < n_q)[:, None]
    tl.store(o + row[:, None] * d_v + dim_v[None, :], out, mask=there & (dim_v < d_v)[None, :])
    tl.store(lse + row, log_sum, mask=i < n_q)
    tl.store(mean + row[:, None] * d + dim[None, :], k_mean, mask=there & (dim < d)[None, :])
    tl.store(eta + row[:, None] * d + dim[None, :], solution, mask=there & (dim < d)[None, :])


@triton.jit
def _backward_rows(
    q, k, v, lam, centre, lse, mean, eta, g, u, c_mean, e_mean, dq, dlam,
    n_q, n, n_heads, n_kv, d, d_v, scale, c, window,
    ITERATIONS: tl.constexpr, G: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first, h, b = tl.program_id(0) * M, tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = first + tl.arange(0, M)
    row = (b * n_q + i) * n_heads + h
    there = i < n_q
    q_tile, g_tile = load_rows(q, row, there, d, D), load_rows(g, row, there, d_v, D_V)
    k_mean, solution = load_rows(mean, row, there, d, D), load_rows(eta, row, there, d, D)
    k_centre = load_centre(centre, b, h // G, n_kv, d, D)
    log_sum = tl.load(lse + row, mask=there, other=0.0)
    ridge = tl.load(lam + row, mask=there, other=1.0)
    position = i + n - n_q
    low = tl.maximum(first + n - n_q - window + 1, 0) // N * N
    high = tl.minimum(first + M + n - n_q, n)
    middle = tl.zeros([M], tl.float32)
    for start in range(low, high, N):
        j = start + tl.arange(0, N)
        k_tile = load_rows(k, (b * n + j) * n_kv + h // G, j < n, d, D)
        v_tile = load_rows(v, (b * n + j) * n_kv + h // G, j < n, d_v, D_V)
        p = weights(q_tile, k_tile, log_sum, position, j, n, scale, window, PRECISION)
        middle += tl.sum(p * mm(g_tile, tl.trans(v_tile), PRECISION), 1)
    tau = tl.zeros([M, D], tl.float32)
    for start in range(low, high, N):
        j = start + tl.arange(0, N)
        k_tile = load_rows(k, (b * n + j) * n_kv + h // G, j < n, d, D)
        v_tile = load_rows(v, (b * n + j) * n_kv + h // G, j < n, d_v, D_V)
        p = weights(q_tile, k_tile, log_sum, position, j, n, scale, window, PRECISION)
        off = p * (mm(g_tile, tl.trans(v_tile), PRECISION) - middle[:, None])
        tau += mm(off, k_tile.to(tl.float32) - k_centre[None, :], PRECISION)
    solved = conjugate_gradient(
        tau, q_tile, log_sum, position, k_mean, k_centre, ridge, k, low, high, b, h // G, n, n_kv, d, scale,
        window, ITERATIONS, D, M, N, PRECISION,
    )  # fmt: skip
    a_shift, b_shift = tl.sum(k_mean * solution, 1), tl.sum(k_mean * solved, 1)
    slope = tl.zeros([M], tl.float32)  # Σ_j p_j e_j
    against = tl.zeros([M, D], tl.float32)  # Σ_j p_j e_j k_j
    for start in range(low, high, N):
        j = start + tl.arange(0, N)
        k_tile = load_rows(k, (b * n + j) * n_kv + h // G, j < n, d, D)
        v_tile = load_rows(v, (b * n + j) * n_kv + h // G, j < n, d_v, D_V)
        p = weights(q_tile, k_tile, log_sum, position, j, n, scale, window, PRECISION)
        c_ij = mm(g_tile, tl.trans(v_tile), PRECISION)
        wide = k_tile.to(tl.float32) - k_centre[None, :]
        a = mm(solution, tl.trans(wide), PRECISION) - a_shift[:, None]
        beside = mm(solved, tl.trans(wide), PRECISION) - b_shift[:, None]
        pe = p * (c_ij - (c_ij - middle[:, None]) * a - beside + a * beside)
        slope += tl.sum(pe, 1)
        against += mm(pe, wide, PRECISION)
    grad = c * (against - slope[:, None] * k_mean) + solved
    dim = tl.arange(0, D)
    mask = there[:, None] & (dim < d)[None, :]
    tl.store(dq + row[:, None] * d + dim[None, :], grad, mask=mask)
    tl.store(u + row[:, None] * d + dim[None, :], solved, mask=mask)
    tl.store(dlam + row, tl.sum(solved * solution, 1), mask=there)
    tl.store(c_mean + row, middle, mask=there)
    tl.store(e_mean + row, slope, mask=there)


@triton.jit
def _backward_columns(
    q, k, v, lam, centre, lse, mean, eta, g, u, c_mean, e_mean, dk, dv,
    n_q, n, n_heads, n_kv, d, d_v, scale, c, window,
    ITERATIONS: tl.constexpr, G: tl.constexpr, D: tl.constexpr, D_V: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first, kv_head, b = tl.program_id(0) * N, tl.program_id(1), tl.program_id(2).to(tl.int64)
    j = first + tl.arange(0, N)
    column = (b * n + j) * n_kv + kv_head
    k_tile, v_tile = load_rows(k, column, j < n, d, D), load_rows(v, column, j < n, d_v, D_V)
    wide = k_tile.to(tl.float32) - load_centre(centre, b, kv_head, n_kv, d, D)[None, :]
    k_grad, v_grad = tl.zeros([N, D], tl.float32), tl.zeros([N, D_V], tl.float32)
    low = tl.maximum(first - (n - n_q), 0) // M * M
    high = tl.minimum(first + N - 1 + window - (n - n_q), n_q)
    for head in range(G):
        h = kv_head * G + head
        for start in range(low, high, M):
            i = start + tl.arange(0, M)
            there = i < n_q
            row = (b * n_q + i) * n_heads + h
            q_tile, g_tile = load_rows(q, row, there, d, D), load_rows(g, row, there, d_v, D_V)
            k_mean, solution = load_rows(mean, row, there, d, D), load_rows(eta, row, there, d, D)
            solved = load_rows(u, row, there, d, D)
            log_sum = tl.load(lse + row, mask=there, other=0.0)
            middle = tl.load(c_mean + row, mask=there, other=0.0)
            slope = tl.load(e_mean + row, mask=there, other=0.0)
            p = weights(q_tile, k_tile, log_sum, i + n - n_q, j, n, scale, window, PRECISION)
            p = tl.where(there[:, None], p, 0.0)
            c_ij = mm(g_tile, tl.trans(v_tile), PRECISION)
            a = mm(solution, tl.trans(wide), PRECISION) - tl.sum(k_mean * solution, 1)[:, None]
            beside = mm(solved, tl.trans(wide), PRECISION) - tl.sum(k_mean * solved, 1)[:, None]
            away = c_ij - middle[:, None]
            ds = p * (c_ij - away * a - beside + a * beside - slope[:, None])
            k_grad += c * mm(tl.trans(ds), q_tile.to(tl.float32), PRECISION)
            k_grad += mm(tl.trans(p * (beside - away)), solution, PRECISION)
            k_grad += mm(tl.trans(p * (a - 1)), solved, PRECISION)
            v_grad += mm(tl.trans(p * (1 - a)), g_tile.to(tl.float32), PRECISION)
    dim, dim_v = tl.arange(0, D), tl.arange(0, D_V)
    tl.store(dk + column[:, None] * d + dim[None, :], k_grad, mask=(j < n)[:, None] & (dim < d)[None, :])
    tl.store(
        dv + column[:, None] * d_v + dim_v[None, :], v_grad, mask=(j < n)[:, None] & (dim_v < d_v)[None, :]
    )
