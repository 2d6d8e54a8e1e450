"""Parts of Triton kernels that several methods use, and where Triton can run.

On a CPU kernels run in Triton's interpreter, if `TRITON_INTERPRET=1` was set before triton was imported.
"""

import torch
import triton
import triton.language as tl
from triton import knobs

LN2 = 0.6931471805599453
LOG2E = 1.4426950408889634


def native() -> bool:
    """Whether `dot` may multiply half precision as such: the interpreter reads bfloat16 as integers."""
    return not knobs.runtime.interpret


def tiles(x: torch.Tensor, size: int) -> dict[str, int]:
    """How many rows of `size` numbers like x's stream by at a time (BLOCK), and how many are held (ROWS).

    Three tiles of them, three times each, fit a multiprocessor's memory. The more, the less is read.
    """
    block = max(16, min(64, 2**14 // (size * x.element_size())))
    return {"ROWS": 2 * block, "BLOCK": block}


@triton.jit
def dot(a, b, NATIVE: tl.constexpr):
    """a @ b in float32: half precision as such, float32 by three products of TF32, which lose little."""
    if NATIVE:
        return tl.dot(a, b, input_precision="tf32x3", out_dtype=tl.float32)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def load_rows(x, row, there, size, SIZE: tl.constexpr):
    """Rows of a matrix whose rows have `size` numbers, [len(row), SIZE], zero where there is nothing.

    `row` is int64: caches have more than 2³¹ numbers.
    """
    dim = tl.arange(0, SIZE)
    mask = there[:, None] & (dim < size)[None, :]
    return tl.load(x + row[:, None] * size + dim[None, :], mask=mask, other=0.0)


@triton.jit
def softmax_step(s, v, top, total, acc, NATIVE: tl.constexpr):
    """A softmax over rows that goes on with a block of keys: their logits s [rows, block] to the base 2, -inf
    for none, and values v [block, head_dim].

    top, total and acc are the highest logit so far, the sum of exponentials over it, and the values weighed
    by these: at first -inf, 0 and 0. Returns them anew. At the end acc / total is the attention.
    """
    new_top = tl.maximum(top, tl.max(s, 1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)
    w = tl.exp2(s - base[:, None])
    fade = tl.exp2(top - base)
    return new_top, total * fade + tl.sum(w, 1), acc * fade[:, None] + dot(w.to(v.dtype), v, NATIVE)
