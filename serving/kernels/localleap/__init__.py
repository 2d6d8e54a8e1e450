"""LocalLeap: several tokens a forward from a diffusion language model, near those it is sure of.

The rule and its source are in `reference.py`; here it is in whole tensors, with the same outcome.
"""

import torch

from ..base import form
from . import reference
from .reference import Config

__all__ = ["Config", "commits", "predict"]


def predict(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.predict`; in Triton where it runs."""
    token, confidence = form(logits, reference).predict(logits)
    return token, confidence


def commits(confidence: torch.Tensor, masked: torch.Tensor, config: Config) -> torch.Tensor:
    """See `reference.commits`. Nothing is read by the host."""
    c = confidence.masked_fill(~masked, -1.0)
    anchor = c >= config.anchor_threshold
    near = torch.nn.functional.max_pool1d(
        anchor.float().unsqueeze(1), 2 * config.radius + 1, stride=1, padding=config.radius
    ).squeeze(1)
    chosen = anchor | ((near > 0) & (c >= config.relaxed_threshold))
    return (chosen | torch.zeros_like(masked).scatter(1, c.argmax(1, keepdim=True), True)) & masked
