"""Slots beside the paged pool, and attention over what lies here and there.

A slot of SGLang's pool is one token in all layers and heads, and may belong to several requests: it is never
written to again, nor freed, by a KV method. What a method makes of the tokens lies in slots of its own, a
pool for each layer, where slot s holds for head h whatever h keeps there.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ...kernels import paged


class Side:
    """The slots of one layer: k, v [slots, kv_heads, head_dim]; mass float32 [slots, kv_heads], how many
    tokens an entry stands for, 0 for none. It grows by doubling. `listed` is what a step last read of it."""

    def __init__(self, n_kv: int, d_k: int, d_v: int, dtype: torch.dtype, device: torch.device) -> None:
        self.k = torch.zeros(0, n_kv, d_k, dtype=dtype, device=device)
        self.v = torch.zeros(0, n_kv, d_v, dtype=dtype, device=device)
        self.mass = torch.zeros(0, n_kv, device=device)
        self.listed = Kept()
        self._free: list[int] = []

    def put(self, k: torch.Tensor, v: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
        """Write entries; mass [kv_heads, n]. Returns their slots, int64 [n]."""
        if len(self._free) < len(k):
            self._grow(len(k))
        cut = len(self._free) - len(k)
        taken = torch.tensor(self._free[cut:], dtype=torch.int64, device=self.k.device)
        del self._free[cut:]
        self.k[taken], self.v[taken] = k, v
        self.mass[taken] = mass.transpose(0, 1).to(self.mass.dtype)
        return taken

    def give(self, slots: torch.Tensor) -> None:
        """Take slots back."""
        self._free.extend(slots.tolist())

    @property
    def n_used(self) -> int:
        """Slots that hold something."""
        return len(self.k) - len(self._free)

    @property
    def n_bytes(self) -> int:
        """Memory that it holds, used or not."""
        return sum(x.numel() * x.element_size() for x in (self.k, self.v, self.mass))

    def _grow(self, n: int) -> None:
        old = len(self.k)
        new = max(2 * old, old + n)
        for name in ("k", "v", "mass"):
            x = getattr(self, name)
            setattr(self, name, torch.cat([x, x.new_zeros(new - old, *x.shape[1:])]))
        self._free.extend(range(new - 1, old - 1, -1))


class Kept:
    """What was last made of some things: made anew when they change, by identity or, of numbers, by value."""

    def __init__(self) -> None:
        self._of: list[Any] = []
        self._made: Any = None

    def __call__(self, of: Sequence[Any], make: Callable[[], Any]) -> Any:
        """`make()`, or what it gave for the same last time."""
        same = len(of) == len(self._of) and all(
            a is b or (isinstance(a, int) and a == b) for a, b in zip(of, self._of, strict=True)
        )
        if not same:
            self._of, self._made = list(of), make()
        return self._made


class Part(NamedTuple):
    """Entries to be read: slots int64 [batch, kv_heads or 1, width] of caches [slots, kv_heads, head_dim],
    negative for none. With `mass` [slots, kv_heads] an entry counts as often as it stands for tokens."""

    k: torch.Tensor
    v: torch.Tensor
    slots: torch.Tensor
    mass: torch.Tensor | None = None


def beside(side: Side, rows: Sequence[torch.Tensor], *, by_mass: bool) -> Part:
    """What rows hold in a layer's side pool; each of `rows` int64 [its entries], and the same while it holds
    the same, so that they are laid side by side once and not at each step."""
    slots = side.listed(rows, lambda: pad(rows)[:, None])
    return Part(side.k, side.v, slots, side.mass if by_mass else None)


def pad(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """int64 [batch, longest], -1 beyond a row's end."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=-1)


def attend(q: torch.Tensor, pool: Part, side: Part | None, scale: float) -> torch.Tensor:
    """One softmax over what is read of the pool and beside it: q [batch, heads, head_dim] → as q."""
    if not q.is_cuda:
        return attend_gathered(q, [pool] if side is None else [side, pool], scale)
    if side is None:
        return paged.decode(q, *pool[:3], scale)[0]
    return paged.decode_beside(q, *pool[:3], *side, scale)[0]


def attend_gathered(q: torch.Tensor, parts: Sequence[Part], scale: float) -> torch.Tensor:
    """`attend` by copying the entries side by side: what a CPU does best."""
    wide = torch.promote_types(q.dtype, torch.float32)
    batch, n_heads, _ = q.shape
    n_kv = parts[0].k.shape[1]
    grouped = q.to(wide).view(batch, n_kv, n_heads // n_kv, -1)
    logits, values = [], []
    for part in parts:
        head = torch.arange(n_kv, device=q.device)[None, :, None]
        at = part.slots.clamp_min(0)
        s = torch.einsum("bhgd,bhwd->bhgw", grouped, part.k[at, head].to(wide)) * scale
        if part.mass is not None:
            s = s + part.mass[at, head][:, :, None].to(wide).log()  # of none -inf
        logits.append(s.masked_fill((part.slots < 0)[:, :, None], -torch.inf))
        values.append(part.v[at, head].to(wide))
    p = torch.softmax(torch.cat(logits, -1), -1)
    return torch.einsum("bhgw,bhwd->bhgd", p, torch.cat(values, 2)).reshape(batch, n_heads, -1).to(q.dtype)
