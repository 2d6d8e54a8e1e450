"""What forward and backward share: tiles, softmax weights, and conjugate gradients that stream the keys."""

import triton
import triton.language as tl


@triton.jit
def mm(a, b, NATIVE: tl.constexpr):
    """a @ b in float32: half precision as such, float32 in TF32 (exactly in the interpreter).

    The products with solutions are float32 on both sides: bfloat16 loses them for small λ.
    """
    if NATIVE:
        return tl.dot(a, b, input_precision="tf32", out_dtype=tl.float32)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def load_rows(x, row, there, size, SIZE: tl.constexpr):
    """Rows of a matrix whose rows have `size` numbers, [len(row), SIZE], zero where there is nothing."""
    dim = tl.arange(0, SIZE)
    mask = there[:, None] & (dim < size)[None, :]
    return tl.load(x + row[:, None] * size + dim[None, :], mask=mask, other=0.0)


@triton.jit
def weights(q_tile, k_tile, log_sum, position, j, n, scale, window, NATIVE: tl.constexpr):
    """p, normalised softmax weights of a tile, zero for keys that a query may not see."""
    s = mm(q_tile, tl.trans(k_tile), NATIVE) * scale - log_sum[:, None]
    seen = (j[None, :] <= position[:, None]) & (position[:, None] - j[None, :] < window) & (j < n)[None, :]
    return tl.exp2(tl.where(seen, s, float("-inf")))


@triton.jit
def conjugate_gradient(
    right, q_tile, log_sum, position, k_mean, ridge, k, low, high, b, kv_head, n, n_kv, d, scale, window,
    ITERATIONS: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """x with C x = right, a row a system; rows that are done wait for the others of their tile."""
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
                wide = k_tile.to(tl.float32)
                p = weights(q_tile, k_tile, log_sum, position, j, n, scale, window, NATIVE)
                along = mm(direction, tl.trans(wide), NATIVE) - shift[:, None]
                product += mm(p * along, wide, NATIVE)
            curvature = tl.sum(direction * product, 1)
            alpha = tl.where(active, rr / (curvature + 1e-30), 0.0)
            x += alpha[:, None] * direction
            r -= alpha[:, None] * product
            new = tl.sum(r * r, 1)
            beta = new / tl.maximum(rr, 1e-30)
            direction = tl.where(active[:, None], r + beta[:, None] * direction, direction)
            rr = tl.where(active, new, rr)
    return x
