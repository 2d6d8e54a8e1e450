"""The token of each slot of SGLang's pool, from which the tokens before any new token are read.

    tokens [slots]     written with each forward's new tokens, at the slots of their keys and values
    before by s        tokens[req_to_token[row, position - s]]

A token lives and dies with its slot: what the prefix cache shares, what a prompt read in parts left behind
and what is drafted are all found the same way, and no request has a state of its own.
"""

import torch


class SlotTokens:
    """`n` slots. SGLang's scheduler writes rows and slots before a forward; here they are only read."""

    def __init__(self, n: int, device: torch.device | str) -> None:
        self.tokens = torch.full((n,), -1, dtype=torch.int32, device=device)

    def write(self, slots: torch.Tensor, ids: torch.Tensor) -> None:
        """New tokens, each at its slot."""
        self.tokens[slots.long()] = ids.to(torch.int32)

    def move(self, targets: torch.Tensor, sources: torch.Tensor) -> None:
        """As keys and values are moved when drafts are accepted."""
        self.tokens[targets.long()] = self.tokens[sources.long()]

    def near(self, table: torch.Tensor, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """int64 [tokens, N]: what stands at `places` [tokens, N] of the rows [tokens] of the table of slots
        [rows, length]; -1 where a place is below zero."""
        slots = table[rows.long()[:, None], places.clamp_min(0)].long()
        return self.tokens[slots].long().masked_fill(places < 0, -1)


def in_line(positions: torch.Tensor, order: int) -> torch.Tensor:
    """The places of tokens and the `order` - 1 before each, int64 [tokens, order]."""
    return positions.long()[:, None] - torch.arange(order, device=positions.device)


def in_trees(
    masks: torch.Tensor, positions: torch.Tensor, n_before: torch.Tensor, order: int
) -> torch.Tensor:
    """The same for nodes of trees, which lie behind the row's `n_before` [trees] tokens in their own order.

    masks bool [trees, n, n], true where the column's node is the row's ancestor or itself; positions [trees,
    n]. The parent of a node stands at the place of its parent, not before it.
    """
    depth = positions - n_before[:, None]
    places = positions.long()[..., None] - torch.arange(order, device=positions.device)
    wanted = depth.long()[..., None] - torch.arange(order, device=positions.device)  # [trees, n, order]
    same = masks[:, :, None] & (depth[:, None, None] == wanted[..., None])  # one node of an ancestor's depth
    node = n_before.long()[:, None, None] + same.int().argmax(-1)
    return torch.where(wanted >= 0, node, places).flatten(0, 1)
