"""LocalLeap in plain PyTorch: which masked positions of a diffusion language model's block are committed.

    A = {i ∈ M : c_i ≥ κ}                                   anchors
    commit i ∈ M  iff  c_i ≥ κ,  or  c_i ≥ τ and |i - a| ≤ W for some a ∈ A,  or  i = argmax_M c

c_i is the probability of the token predicted at i; M are the masked positions of the block. Each forward
commits at least one. W = 0 or τ = κ is threshold decoding, κ > 1 the sequential order. Source: "Accelerating
Diffusion LLM Inference via Local Determinism Propagation", arXiv 2510.07081.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Config:
    """The paper's values for LLaDA-8B-Instruct. Raises ValueError for a setting without sense."""

    anchor_threshold: float = 0.9  # κ
    relaxed_threshold: float = 0.75  # τ
    radius: int = 4  # W

    def __post_init__(self) -> None:
        if not 0 < self.relaxed_threshold <= self.anchor_threshold:
            raise ValueError(
                "LocalLeap: write 0 < relaxed_threshold <= anchor_threshold, got "
                f"{self.relaxed_threshold} and {self.anchor_threshold}"
            )
        if self.radius < 0:
            raise ValueError(f"LocalLeap: radius must be 0 or more, got {self.radius}")


def predict(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first most likely token, int64 [rows], and its probability; logits [rows, vocabulary].

    Half precision is not enough near κ: the probability is float32 or wider.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    highest, token = wide.max(-1)
    return token, torch.exp(highest - torch.logsumexp(wide, -1))


def commits(confidence: torch.Tensor, masked: torch.Tensor, config: Config) -> torch.Tensor:
    """Which positions to commit, bool [batch, block]; confidence and masked [batch, block]."""
    out = torch.zeros_like(masked)
    for b in range(len(masked)):
        places = [i for i in range(masked.shape[1]) if masked[b, i]]
        anchors = [i for i in places if confidence[b, i] >= config.anchor_threshold]
        for i in places:
            near = any(abs(i - a) <= config.radius for a in anchors)
            bar = config.relaxed_threshold if near else config.anchor_threshold
            out[b, i] = bool(confidence[b, i] >= bar)
        if places:
            out[b, max(places, key=lambda i: (confidence[b, i], -i))] = True
    return out
