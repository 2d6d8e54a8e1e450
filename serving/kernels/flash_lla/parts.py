"""What forward and backward share: tiles, softmax weights, and conjugate gradients that stream the keys."""

import torch
import triton
import triton.language as tl

from ..triton_parts import native


def precision(x: torch.Tensor) -> str:
    """How products of float32 are formed where `x` comes in: TF32 is enough beside half precision."""
    if not native():
        return "ieee"
    return "tf32x3" if x.dtype == torch.float32 else "tf32"


@triton.jit
def mm(a, b, PRECISION: tl.constexpr):
    """a @ b in float32: half precision as such, float32 by `PRECISION`.

    The products with solutions are float32 on both sides: bfloat16 loses them for small λ.
    """
    if PRECISION == "ieee":  # the interpreter, which reads bfloat16 as integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee", out_dtype=tl.float32)
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def load_rows(x, row, there, size, SIZE: tl.constexpr):
    """Rows of a matrix whose rows have `size` numbers, [len(row), SIZE], zero where there is nothing."""
    dim = tl.arange(0, SIZE)
    mask = there[:, None] & (dim < size)[None, :]
    return tl.load(x + row[:, None] * size + dim[None, :], mask=mask, other=0.0)


@triton.jit
def load_centre(centre, b, kv_head, n_kv, d, D: tl.constexpr):
    """The mean key of a head: keys are taken from it, since what all share would cancel, but for rounding."""
    dim = tl.arange(0, D)
    return tl.load(centre + (b * n_kv + kv_head) * d + dim, mask=dim < d, other=0.0)


@triton.jit
def weights(q_tile, k_tile, log_sum, position, j, n, scale, window, PRECISION: tl.constexpr):
    """p, normalised softmax weights of a tile, zero for keys that a query may not see."""
    s = mm(q_tile, tl.trans(k_tile), PRECISION) * scale - log_sum[:, None]
    seen = (j[None, :] <= position[:, None]) & (position[:, None] - j[None, :] < window) & (j < n)[None, :]
    return tl.exp2(tl.where(seen, s, float("-inf")))


@triton.jit
def conjugate_gradient(
    right, q_tile, log_sum, position, k_mean, k_centre, ridge, k, low, high, b, kv_head, n, n_kv, d, scale,
    window,
    ITERATIONS: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x with C x = right, a row a system; rows that are done wait for the others of their tile.

    xᵀ C x ≥ λ xᵀ x: a direction where that fails is one of rounding, and the row keeps what it has.
    """
    x = tl.zeros([M, D], tl.float32)
    r, direction = right, right
    rr = tl.sum(r * r, 1)
    enough = 1e-12 * tl.maximum(rr, 1e-12)
    for _ in range(ITERATIONS):
        active = rr > enough
        if tl.max(active.to(tl.int32), 0) > 0:
            shift = tl.sum(k_mean * direction, 1)
            product = ridge[:, None] * direction
            for start in range(low, high, N):
                j = start + tl.arange(0, N)
                k_tile = load_rows(k, (b * n + j) * n_kv + kv_head, j < n, d, D)
                wide = k_tile.to(tl.float32) - k_centre[None, :]
                p = weights(q_tile, k_tile, log_sum, position, j, n, scale, window, PRECISION)
                along = mm(direction, tl.trans(wide), PRECISION) - shift[:, None]
                product += mm(p * along, wide, PRECISION)
            least = ridge * tl.sum(direction * direction, 1)
            curvature = tl.sum(direction * product, 1)
            moves = active & (curvature > 0.9 * least)
            alpha = tl.where(moves, rr / (tl.maximum(curvature, least) + 1e-30), 0.0)
            x += alpha[:, None] * direction
            r -= alpha[:, None] * product
            new = tl.sum(r * r, 1)
            beta = new / tl.maximum(rr, 1e-30)
            direction = tl.where(moves[:, None], r + beta[:, None] * direction, direction)
            rr = tl.where(moves, new, 0.0)
    return x
