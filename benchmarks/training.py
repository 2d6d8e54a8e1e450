"""One step of training, as all models that are trained here take it."""

import torch
from torch import nn


def step(
    model: nn.Module,
    loss: torch.Tensor,
    optimiser: torch.optim.Optimizer,
    rate: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Downhill, with the gradient's norm at most 1; then the next rate."""
    optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    rate.step()
