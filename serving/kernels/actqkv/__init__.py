"""ActQKV: which pages of the cache a step reads, by a probe query; formulas in `reference.py`.

Chooses Triton where it runs, else the reference.
"""

from importlib.util import find_spec

import torch

from . import reference
from .reference import activation_bias, effective_pages, layer_budgets, page_means, select, slots_of

__all__ = [
    "activation_bias",
    "effective_pages",
    "layer_budgets",
    "page_means",
    "page_scores",
    "probe_query",
    "select",
    "slots_of",
]


def probe_query(x: torch.Tensor, power: float = 1.0) -> torch.Tensor:
    """See `reference.probe_query`; x [batch, m, D]."""
    if x.is_cuda and find_spec("triton"):
        from . import kernel

        return kernel.probe_query(x, power)
    return reference.probe_query(x, power)


def page_scores(probe: torch.Tensor, means: torch.Tensor, page_table: torch.Tensor) -> torch.Tensor:
    """See `reference.page_scores`."""
    if probe.is_cuda and find_spec("triton"):
        from . import kernel

        return kernel.page_scores(probe, means, page_table)
    return reference.page_scores(probe, means, page_table)
