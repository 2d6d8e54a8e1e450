"""The probe: two layers over features of a question, what it was trained for, and the proof that it fits.

d = softmax((W₂ ReLU(W₁ (h − μ)/σ + b₁) + b₂) / T)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ...serving.errors import MissingExtra
from .features import Kind

Weights: TypeAlias = Any
"""A float32 array of numpy, which is imported when it is first used."""

SAME = 0.999  # cosine of two states of one model; a bf16 forward against another engine reaches it


def numeric() -> Any:
    """numpy. Raises MissingExtra where it is not installed."""
    try:
        import numpy
    except ImportError:
        raise MissingExtra("numpy, which reads probes,", "probe") from None
    return numpy


@dataclass(frozen=True)
class Signature:
    """How features were taken. A probe reads no others.

    `layout` is a digest of the prompt around the question, `modes` one of the ways to answer, `reference` the
    state of a fixed question: it changes with the model, its revision and quantisation, the layer, the norm,
    the chat template and the tokeniser, whatever these are called. Empty for features of the text.
    """

    kind: Kind
    layout: str
    modes: str
    reference: tuple[float, ...] = ()

    def differences(self, other: "Signature") -> list[str]:
        """What keeps a probe of this signature from reading as `other` says, in words."""
        told = []
        if self.layout != other.layout:
            told.append("the prompt around the question is another")
        if self.modes != other.modes:
            told.append("the modes are others")
        ours, theirs = self.reference, other.reference
        if len(ours) != len(theirs):
            told.append(f"the model's states have {len(theirs)} numbers, not {len(ours)}")
        elif ours and (near := cosine(ours, theirs)) < SAME:
            told.append(f"the model, or how its states are taken, is another (cosine {near:.4f})")
        return told


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Of the angle between two vectors; 0 where one has no direction."""
    lengths = math.hypot(*a) * math.hypot(*b)
    if not 0 < lengths < math.inf:
        return 0.0
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / lengths


@dataclass(frozen=True, eq=False)
class Probe:
    """A trained probe. Weights are float32; it computes in float64.

    `temperature` is T, `tau` the least confidence at which it is believed. `report` tells how it was trained:
    thresholds, labels, reliability, entropy by difficulty.
    """

    classes: tuple[str, ...]
    w1: Weights  # [width, features]
    b1: Weights
    w2: Weights  # [classes, width]
    b2: Weights
    mean: Weights
    std: Weights
    signature: Signature
    temperature: float = 1.0
    tau: float = 0.5
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_features(self) -> int:
        """How many numbers it reads."""
        return int(self.w1.shape[1])

    def __call__(self, features: Sequence[float]) -> tuple[float, ...]:
        """The probability of each class."""
        np = numeric()
        z = self.logits(np.asarray([features], dtype=np.float64))[0] / self.temperature
        weights = np.exp(z - z.max())
        return tuple(float(d) for d in weights / weights.sum())

    def logits(self, rows: Any) -> Any:
        """Float64 [n, classes] of features [n, features]."""
        np = numeric()
        h = (rows - self.mean.astype(np.float64)) / self.std.astype(np.float64)
        hidden = np.maximum(h @ self.w1.T.astype(np.float64) + self.b1, 0.0)
        return hidden @ self.w2.T.astype(np.float64) + self.b2
