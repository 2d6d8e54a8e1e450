"""By what a Hugging Face model turns its keys, for what has to take it off again."""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from ...errors import UsageError
from ...kernels import ems


def rotary_of(part: Any, tables: Sequence[torch.Tensor], row: int = 0) -> ems.Rotary | None:
    """Of a text in a batch: `tables` as the model hands them to its layers, cos and sin [1 or rows,
    positions, 2 · half]; `part` is a module of the model's own file.

    None if channels are paired otherwise than c with c + half, which the tables do not tell.
    """
    turn = getattr(sys.modules[type(part).__module__], "rotate_half", None)
    if turn is None or turn(torch.arange(4.0)).tolist() != [-2, -3, 0, 1]:
        return None
    half = tables[0].shape[-1] // 2
    cos, sin = (table[min(row, len(table) - 1), :, :half] for table in tables)
    return ems.Rotary(cos, sin)


def demand(rotary: ems.Rotary | None) -> ems.Rotary:
    """Raises UsageError if there is none."""
    if rotary is None:
        raise UsageError(
            "EMS cannot take the positions off this model's keys: it rotates them otherwise than Llama does. "
            "Leave out unrotated."
        )
    return rotary


def demand_merged_keys(unrotated: bool, merge_keys: bool) -> None:
    """Raises UsageError if positions are to be taken off keys that are not merged."""
    if unrotated and not merge_keys:
        raise UsageError("EMS: leave out unrotated=True, which is for merged keys, or merge_keys=False.")
