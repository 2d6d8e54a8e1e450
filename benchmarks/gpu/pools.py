"""A paged pool of keys and values, as a server holds it, for the studies of KV methods."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .base import Machine

PAGE = 64
"""Tokens that lie together; beyond them a sequence is scattered."""


@dataclass(frozen=True)
class Pool:
    """k, v [slots, kv_heads, head_dim] of sequences of n tokens; table int32 [batch, n]: where each lies."""

    k: torch.Tensor
    v: torch.Tensor
    table: torch.Tensor
    group: int

    @classmethod
    def of(cls, machine: Machine, batch: int, n: int) -> "Pool":
        """With 8 KV heads of 128 channels, each for 4 query heads, in bfloat16. Where memory is short of so
        many sequences they share slots, which are still far more than a cache holds."""
        n_kv, group, d = (2, 2, 16) if machine.small else (8, 4, 128)
        n_slots = min(batch, 64) * n
        like = {"device": machine.device, "dtype": torch.float32 if machine.small else torch.bfloat16}
        k, v = (torch.empty(n_slots, n_kv, d, **like).normal_() for _ in range(2))
        n_pages = -(-n // PAGE)
        rng = torch.Generator().manual_seed(n)
        order = torch.cat([torch.randperm(n_slots // PAGE, generator=rng) for _ in range(-(-batch // 64))])
        order = order[: batch * n_pages].view(batch, n_pages)
        table = (order[..., None] * PAGE + torch.arange(PAGE)).flatten(1)[:, :n]
        return cls(k, v, table.to(machine.device, torch.int32), group)

    def queries(self, batch: int) -> torch.Tensor:
        """[batch, heads, head_dim]."""
        _, n_kv, d = self.k.shape
        return self.k.new_empty(batch, n_kv * self.group, d).normal_()

    @property
    def scale(self) -> float:
        """Of the logits."""
        return float(self.k.shape[2] ** -0.5)

    def n_bytes(self, n_entries: int) -> int:
        """Of so many keys and values of all heads."""
        return 2 * n_entries * self.k[0].numel() * self.k.element_size()


def both(machine: Machine, call: Callable[[], Any]) -> tuple[float, str]:
    """The time of a call by a CUDA graph, which is judged, and in words that as launched by Python."""
    return machine.replayed(call), f"launched {us(machine.seconds(call))}"


def us(seconds: float) -> str:
    """In microseconds."""
    return f"{seconds * 1e6:,.0f} µs"
