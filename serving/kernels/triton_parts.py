"""Parts of Triton kernels that several methods use, and where Triton can run.

On a CPU kernels run in Triton's interpreter, if `TRITON_INTERPRET=1` was set before triton was imported.
"""

import triton
import triton.language as tl
from triton import knobs

LN2 = 0.6931471805599453
LOG2E = 1.4426950408889634


def native() -> bool:
    """Whether `dot` may multiply half precision as such: the interpreter reads bfloat16 as integers."""
    return not knobs.runtime.interpret


@triton.jit
def dot(a, b, NATIVE: tl.constexpr):
    """a @ b in float32: half precision as such, float32 by three products of TF32, which lose little."""
    if NATIVE:
        return tl.dot(a, b, input_precision="tf32x3", out_dtype=tl.float32)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee", out_dtype=tl.float32)
