"""ActQKV: which pages of the cache a step, or a window of a prompt, reads, by a probe query.

Formulas are in `reference.py`. Chooses Triton where it runs, else the reference.
"""

import torch

from ..base import form
from . import reference
from .prompt import retrieve
from .reference import activation_bias, effective_pages, layer_budgets, page_means, select, slots_of

__all__ = [
    "activation_bias",
    "chosen_slots",
    "effective_pages",
    "layer_budgets",
    "page_means",
    "page_scores",
    "probe_query",
    "retrieve",
    "select",
    "slots_of",
]


def probe_query(x: torch.Tensor, power: float = 1.0) -> torch.Tensor:
    """See `reference.probe_query`; x [batch, m, D]."""
    return form(x, reference).probe_query(x, power)


def page_scores(probe: torch.Tensor, means: torch.Tensor, page_table: torch.Tensor) -> torch.Tensor:
    """See `reference.page_scores`."""
    return form(probe, reference).page_scores(probe, means, page_table)


def chosen_slots(
    scores: torch.Tensor, n_tokens: torch.Tensor, k: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, *,
    page: int, width: int, n_first: int, n_last: int,
) -> torch.Tensor:  # fmt: skip
    """See `reference.chosen_slots`."""
    return form(scores, reference).chosen_slots(
        scores, n_tokens, k, table, rows, page=page, width=width, n_first=n_first, n_last=n_last
    )
