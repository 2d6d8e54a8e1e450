"""What a method's specification asks of a GPU: steps of several kernels, timed beside what they replace.

A study is a function `parts(machine)` that yields calls, each of which gives a `Bar` for each of its points:
a part that fails takes no other's figures along. A step whose result is wrong has no time: `right` is asked
before `Machine.seconds`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch


class Bar(NamedTuple):
    """One point: what is asked, what was measured, and whether that meets it (None: printed only)."""

    point: str
    asked: str
    measured: str
    met: bool | None


Part: TypeAlias = Callable[[], Iterable[Bar]]


@dataclass(frozen=True)
class Machine:
    """Where a study runs, and what this machine can do at best.

    `small` asks for sizes that Triton's interpreter can do: then times say nothing, and no bar is met or
    missed. `copy` is in bytes a second, `product` in bfloat16 multiply-adds × 2 a second.
    """

    device: torch.device
    small: bool
    copy: float
    product: float
    seconds: Callable[[Callable[[], Any]], float]
    """The median time of a call, launched as it is."""
    replayed: Callable[[Callable[[], Any]], float]
    """The median time of a call captured in a CUDA graph: what the GPU needs, without Python's launches."""

    def floor(self, n_bytes: float, flops: float = 0.0) -> float:
        """The least time that so much work takes here, in seconds."""
        return max(n_bytes / self.copy, flops / self.product)

    def verdict(self, met: bool) -> bool | None:
        """Whether a bar of time is met, which an interpreter cannot say."""
        return None if self.small else met


def right(got: torch.Tensor, should: torch.Tensor, tolerance: float) -> None:
    """Raises ArithmeticError where an element is off by more than a share `tolerance` of the largest."""
    off = (got.double() - should.double()).abs().max() / should.double().abs().max()
    if not bool(off <= tolerance):
        raise ArithmeticError(
            f"the step is wrong: off by {float(off):.2g} of the largest, at most {tolerance} is right"
        )
