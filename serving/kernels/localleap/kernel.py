"""LocalLeap's prediction in one pass over the logits, in Triton: maximum, its place, and the log-sum-exp."""

import torch
import triton
import triton.language as tl

from ..base import empty
from ..triton_parts import LOG2E

_BLOCK = 4096  # three reductions a block, so that reading and not they take the time


def predict(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.predict`."""
    rows, vocabulary = logits.shape
    token = empty(rows, dtype=torch.int64, device=logits.device)
    confidence = empty(rows, dtype=torch.float32, device=logits.device)
    _predict_kernel[(rows,)](
        logits.contiguous(), token, confidence, vocabulary, LOG2E, BLOCK=_BLOCK, num_warps=8
    )
    return token, confidence


@triton.jit
def _predict_kernel(logits, token, confidence, vocabulary, log2e, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    best, place, total = float("-inf"), tl.zeros([], tl.int64), 0.0
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * vocabulary + at, mask=at < vocabulary, other=float("-inf")).to(tl.float32)
        here = tl.max(x, 0)
        first = (tl.argmax(x, 0, tie_break_left=True) + start).to(tl.int64)
        place = tl.where(here > best, first, place)
        highest = tl.maximum(best, here)
        base = tl.where(highest == float("-inf"), 0.0, highest)
        total = total * tl.exp2((best - base) * log2e) + tl.sum(tl.exp2((x - base) * log2e), 0)
        best = highest
    tl.store(token + row, place)
    tl.store(confidence + row, 1.0 / total)
