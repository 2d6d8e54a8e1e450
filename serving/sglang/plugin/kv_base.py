"""What a KV method is to a backend: it plans each row's step, and says in each layer what is to be read.

What a method remembers of a row is in `Row`, and gone with it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .kv_side import Kept, Part, Side


@dataclass(slots=True)
class Row:
    """A request's row of SGLang's table, and what the method remembers of it.

    `layers` holds the method's own state of each layer; `n` tokens are in the cache, the step's own included;
    `reduced`: the step leaves something out.
    """

    at: int
    generation: int
    n: int = 0
    plan: Any = None
    reduced: bool = False
    layers: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cache:
    """One layer of the paged pool, k and v [slots, kv_heads, head_dim], the table of slots [rows, positions],
    and the layer's factor of the logits."""

    layer: int
    k: torch.Tensor
    v: torch.Tensor
    table: torch.Tensor
    scale: float

    def slots(self, row: Row, first: int, end: int) -> torch.Tensor:
        """int64, of the row's positions from `first` up to `end`."""
        return self.table[row.at, first:end].long()


class Method(ABC):
    """Reads less than the whole cache. Within its budget a sequence is left to the stock backend."""

    def __init__(self) -> None:
        self.sides: dict[int, Side] = {}
        self.n_read = 0
        self.n_held = 0
        self.of_step = Kept()  # what all layers of a step share

    def concerns(self, n_longest: int) -> bool:
        """Whether it is to know of a request of this many tokens at its end."""
        return True

    @abstractmethod
    def begin(self, row: Row) -> bool:
        """Plan the row's step of `row.n` tokens. False if nothing of it is left out."""

    @abstractmethod
    def parts(self, cache: Cache, rows: Sequence[Row], q: torch.Tensor) -> tuple[Part, Part | None]:
        """What the queries q [batch, heads, head_dim] of the rows read in this layer: of the pool, and
        beside it."""

    def reads_prompt(self, n_before: int, n: int) -> bool:
        """Whether it reads a prompt's tokens from `n_before` up to `n` its own way, by `prompt`."""
        return False

    def prompt(self, cache: Cache, row: Row, q: torch.Tensor) -> torch.Tensor:
        """The attention of the last queries of `row.n` tokens, q [tokens, heads, head_dim] → as q."""
        raise NotImplementedError

    def n_done(self, row: Row) -> int:
        """How many of the row's first tokens no later step will read, asked after a step."""
        return 0

    def forget(self, row: Row) -> None:
        """Take back what the row holds beside the pool."""
        for layer, state in row.layers.items():
            if state.slots is not None:
                self.sides[layer].give(state.slots)

    def side(self, cache: Cache, d_v: int | None = None) -> Side:
        """The layer's slots beside the pool."""
        if cache.layer not in self.sides:
            _, n_kv, d = cache.k.shape
            wide = cache.v.shape[2] if d_v is None else d_v
            self.sides[cache.layer] = Side(n_kv, d, wide, cache.k.dtype, cache.k.device)
        return self.sides[cache.layer]

    def count(self, row: Row, n_read: int) -> None:
        """Note what a row read in a layer of what it holds."""
        self.n_read += n_read
        self.n_held += row.n

    def table(self) -> dict[str, Any]:
        """Counts for `/server_info`."""
        return {
            "tokens_held": self.n_held,
            "tokens_read": self.n_read,
            "side_slots": sum(side.n_used for side in self.sides.values()),
            "side_bytes": sum(side.n_bytes for side in self.sides.values()),
        }


class Watcher(Method):
    """A method that is to be shown the queries."""

    @abstractmethod
    def watch(self, cache: Cache, row: Row, q: torch.Tensor) -> None:
        """A part of the row's prompt has been read, up to `row.n` tokens; q [tokens, heads, head_dim]."""

    @abstractmethod
    def watch_step(self, cache: Cache, row: Row, q: torch.Tensor) -> None:
        """A step of the row is done, q [1, heads, head_dim]; also if nothing was left out."""
