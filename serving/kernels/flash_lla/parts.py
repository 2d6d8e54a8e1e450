"""What forward and backward share: tiles, softmax weights, and conjugate gradients that stream the keys.

Beside bfloat16, numbers that are float32 here enter products in two parts of bfloat16, high and low, which
keep 16 bits of them: twice the products, and less is lost than by TF32, at the same cost or less.
"""

import triton
import triton.language as tl

from ..triton_parts import load_rows, native


def precision() -> str:
    """How products of float32 are formed."""
    return "tf32x3" if native() else "ieee"


@triton.jit
def load_tile(x, row, there, size, SIZE: tl.constexpr):
    """As `load_rows`. float16 has too few exponents for weights and gradients, and is read as float32."""
    tile = load_rows(x, row, there, size, SIZE)
    if tile.dtype == tl.float16:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def mm(a, b, PRECISION: tl.constexpr):
    """a @ b in float32, of two of a kind: bfloat16 as such, float32 by `PRECISION`."""
    if PRECISION == "ieee":  # the interpreter, which reads bfloat16 as integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee", out_dtype=tl.float32)
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def add_mm(total, a, b, PRECISION: tl.constexpr):
    """total + a @ b, of a float32 a and a b as it came: a is not rounded to b's kind, but taken in parts."""
    if b.dtype == tl.bfloat16:
        high = (a.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)  # cheaper than rounded
        total += mm(high.to(tl.bfloat16), b, PRECISION)
        total += mm((a - high).to(tl.bfloat16), b, PRECISION)
    else:
        total += mm(a, b, PRECISION)
    return total


@triton.jit
def seen_by(position, j, window):
    """Which keys j a query at each position sees: j ≤ position < j + window, as one comparison."""
    return (position[:, None] - j[None, :]).to(tl.uint32) < tl.cast(window, tl.uint32)


@triton.jit
def weights(q_tile, k_tile, log_sum, position, j, scale, window, EDGE: tl.constexpr, PRECISION: tl.constexpr):
    """p, normalised softmax weights of a tile, zero for keys that a query may not see: at an EDGE there are
    some."""
    s = mm(q_tile, tl.trans(k_tile), PRECISION) * scale - log_sum[:, None]
    if EDGE:
        s = tl.where(seen_by(position, j, window), s, float("-inf"))
    return tl.exp2(s)


@triton.jit
def _covaried(
    product, over, ahead, shift, q_tile, log_sum, position, k, start, b, kv_head, n, n_kv, d, scale, window,
    EDGE: tl.constexpr, D: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add Σ_j p_j (k_j·direction - shift) k_j of a tile of keys to the product, and the sum without k_j."""
    j = start + tl.arange(0, N)
    k_tile = load_tile(k, (b * n + j) * n_kv + kv_head, j < n, d, D)
    p = weights(q_tile, k_tile, log_sum, position, j, scale, window, EDGE, PRECISION)
    p = p * (mm(ahead, tl.trans(k_tile), PRECISION) - shift[:, None])
    return add_mm(product, p, k_tile, PRECISION), over + tl.sum(p, 1)


@triton.jit
def conjugate_gradient(
    right, q_tile, log_sum, position, k_mean, ridge, k, low, high, b, kv_head, n, n_kv, d, scale, window,
    iterations, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x with C x = right, a row a system; rows that are done wait for the others of their tile.

    A direction is rounded to the kind of the keys *before* it is used, and then is what it is: its products
    with keys are exact, and steps along it take off the residual what they add to x. Each is of length one,
    and made conjugate to the last. Where xᵀ C x ≥ λ xᵀ x fails, rounding has won: the row keeps what it has.
    """
    x = tl.zeros([M, D], tl.float32)
    first = tl.min(position, 0)
    inner = tl.cdiv(tl.maximum(first + M - window, 0), N) * N  # from here all rows see all keys,
    outer = tl.maximum((first + 1) // N * N, inner)  # to here
    r = right
    rr = tl.sum(r * r, 1)
    enough = 1e-12 * tl.maximum(rr, 1e-12)
    along = r
    for _ in range(iterations):
        active = rr > enough
        if tl.max(active.to(tl.int32), 0) > 0:
            size = tl.sum(along * along, 1)
            ahead = (along / tl.sqrt(tl.maximum(size, 1e-30))[:, None]).to(q_tile.dtype)
            direction = ahead.to(tl.float32)
            shift = tl.sum(k_mean * direction, 1)
            product = tl.zeros([M, D], tl.float32)
            over = tl.zeros([M], tl.float32)  # Σ_j p_j (k_j - k̄)·direction, which rounding alone keeps from 0
            for start in range(inner, outer, N):
                product, over = _covaried(
                    product, over, ahead, shift, q_tile, log_sum, position, k, start, b, kv_head, n, n_kv, d,
                    scale, window, False, D, N, PRECISION,
                )  # fmt: skip
            for edge in range(low, high - (outer - inner), N):
                start = tl.where(edge < inner, edge, edge + (outer - inner))
                product, over = _covaried(
                    product, over, ahead, shift, q_tile, log_sum, position, k, start, b, kv_head, n, n_kv, d,
                    scale, window, True, D, N, PRECISION,
                )  # fmt: skip
            product += ridge[:, None] * direction - over[:, None] * k_mean
            least = ridge * tl.sum(direction * direction, 1)
            curvature = tl.sum(direction * product, 1)
            moves = active & (curvature > 0.9 * least)
            curvature = tl.maximum(curvature, least) + 1e-30
            alpha = tl.where(moves, tl.sum(r * direction, 1) / curvature, 0.0)
            x += alpha[:, None] * direction
            r -= alpha[:, None] * product
            along = r - (tl.sum(r * product, 1) / curvature)[:, None] * direction
            rr = tl.where(moves, tl.sum(r * r, 1), 0.0)
    return x
