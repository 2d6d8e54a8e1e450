"""Engram as a layer: between two blocks of a transformer, before the attention of the second.

    rows = addresses of the tokens      (ids alone: before the forward, or while it runs)
    h ← h + conv(gate(h, W e)),  e = table[rows]

The table is a parameter here, or elsewhere (`host_table.py`), which then gives e.
"""

import torch
from torch import nn

from . import gate, hash_rows, lookup, predecessors, reference, short_conv
from .hashing import Layout

TAPS = 4
INIT = 0.02  # small: a row that no text has trained says little


class Addresses(nn.Module):  # type: ignore[misc]
    """Token ids to rows of several layers' tables; keeps the map P, and so goes with the tokeniser.

    token_map int64 [vocabulary], as `hashing.token_map` makes it; `pad`: the token before a text.
    """

    token_map: torch.Tensor

    def __init__(self, token_map: torch.Tensor, layouts: tuple[Layout, ...], *, pad: int) -> None:
        super().__init__()
        self.register_buffer("token_map", token_map)
        self.layouts, self.pad = layouts, pad

    def forward(self, ids: torch.Tensor, history: torch.Tensor | None = None) -> list[torch.Tensor]:
        """For each layout the rows, int64 [batch, tokens, columns], of ids [batch, tokens].

        history [batch, N - 1]: the tokens before, the latest last; without it the ids begin a text.
        """
        batch, n = ids.shape
        before = None if history is None else self.token_map[history]
        padding, order = int(self.token_map[self.pad]), self.layouts[0].max_order
        near = predecessors(self.token_map[ids].flatten(), [n] * batch, order, padding, before)
        return [hash_rows(near, layout).view(batch, n, -1) for layout in self.layouts]

    def of(self, near: torch.Tensor) -> list[torch.Tensor]:
        """For each layout the rows, int64 [tokens, columns], of each token with those before it, int64
        [tokens, N], column s the s-th before; -1 before the text."""
        mapped = self.token_map[near.clamp_min(0)]
        mapped = torch.where(near < 0, self.token_map[self.pad], mapped)
        return [hash_rows(mapped, layout) for layout in self.layouts]


class Engram(nn.Module):  # type: ignore[misc]
    """One layer's memory. `d_head`: width of a row; `branches` of the residual stream; `convolve`: whether
    the short convolution is there, which a server must keep state for. `own_table=False`: e is given."""

    def __init__(
        self,
        layout: Layout,
        d: int,
        d_head: int,
        *,
        branches: int = 1,
        convolve: bool = True,
        own_table: bool = True,
    ) -> None:
        super().__init__()
        self.layout, self.d, self.branches = layout, d, branches
        d_mem = len(layout.primes) * d_head
        self.table = nn.Parameter(torch.randn(layout.n_rows, d_head) * INIT) if own_table else None
        self.project = nn.Linear(d_mem, (branches + 1) * d, bias=False)
        self.h_norm = nn.Parameter(torch.ones(branches, d))
        self.k_norm = nn.Parameter(torch.ones(branches, d))
        # Zeros: at first the convolution is the identity.
        self.conv = nn.Parameter(torch.zeros(branches, d, TAPS)) if convolve else None
        self.conv_norm = nn.Parameter(torch.ones(branches, d)) if convolve else None

    def forward(
        self, h: torch.Tensor, rows: torch.Tensor | None, e: torch.Tensor | None = None
    ) -> torch.Tensor:
        """h [batch, tokens, branches, d], or [batch, tokens, d] with one branch, with what is remembered
        added. rows [batch, tokens, columns]; e [batch, tokens, columns · d_head] in place of both."""
        shape = h.shape
        h = h.reshape(*shape[:2], self.branches, self.d)
        # The kernels have no backward.
        learns = torch.is_grad_enabled()
        if e is None:
            assert self.table is not None and rows is not None, "this Engram has no table: give e"
            e = (reference.lookup if learns else lookup)(self.table, rows.flatten(0, 1))
        kv = self.project(e.reshape(-1, e.shape[-1]))
        u = (reference.gate if learns else gate)(h.flatten(0, 1), kv, self.h_norm, self.k_norm).view_as(h)
        return (h + self._convolved(u, learns)).view(shape)

    def alpha(self, h: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The gates, [batch, tokens, branches], for those who want to see them."""
        shape = h.shape[:2]
        h = h.reshape(-1, self.branches, self.d)
        assert self.table is not None, "this Engram has no table"
        kv = self.project(reference.lookup(self.table, rows.flatten(0, 1)))
        kv = torch.cat([kv[:, : self.branches * self.d], torch.ones_like(kv[:, : self.d])], 1)
        return reference.gate(h, kv, self.h_norm, self.k_norm)[..., 0].view(*shape, self.branches)

    def _convolved(self, u: torch.Tensor, learns: bool) -> torch.Tensor:
        if self.conv is None or self.conv_norm is None:
            return u
        # A convolution is of one text: texts stand beside each other as branches do.
        batch, n = u.shape[:2]
        beside = u.transpose(0, 1).reshape(n, batch * self.branches, self.d)
        weight, norm = self.conv.repeat(batch, 1, 1), self.conv_norm.repeat(batch, 1)
        y = (reference.short_conv if learns else short_conv)(beside, weight, norm, self.layout.max_order)
        return y.view(n, batch, self.branches, self.d).transpose(0, 1)
