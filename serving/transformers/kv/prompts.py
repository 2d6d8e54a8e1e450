"""Texts that are read inexactly: what ActQKV and DeltaLLM do while a prompt is read, for `Reader.read`.

That changes the hidden states, so keys and values of all layers but the first are not the model's own.
"""

from dataclasses import dataclass, field

import torch

from ...kernels import actqkv, deltallm


@dataclass(frozen=True)
class Retrieving:
    """Each window of queries reads the first page, the last tokens before it, itself, and the pages that its
    probe query scores best; power 0 is InfLLM's mean query, arXiv 2402.04617."""

    n_best: int
    window: int = 64
    page: int = 16
    n_first: int = 1
    n_local: int = 32
    power: float = 1.0

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """See Prompt."""
        return actqkv.retrieve(q, k, v, scale, **vars(self))

    def read_share(self, n: int) -> float:
        """Pairs of a query and a key that are read of a text of n tokens, of those of exact attention."""
        n_read = 0
        for first in range(0, n, self.window):
            end = min(first + self.window, n)
            local = max(first - self.n_local, 0) // self.page
            n_pages = min(local, self.n_first + self.n_best)
            behind = n_pages * self.page + first - local * self.page
            n_read += (end - first) * behind + (end - first) * (end - first + 1) // 2
        return n_read / (n * (n + 1) / 2)


@dataclass(frozen=True)
class ByDifferences:
    """Keys far from the query as accumulated differences of more than theta standard deviations."""

    theta: float = 0.5
    window: int = 32
    n_sink: int = 4
    seen: list[deltallm.Sparsity] = field(default_factory=list, repr=False)
    """Shares of zeros, layer by layer."""

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """See Prompt. Of a text that is read from its start."""
        near, changed, _ = deltallm.encode(k, deltallm.thresholds(k, self.theta), self.n_sink)
        self.seen.append(deltallm.sparsity(changed, self.window, self.n_sink))
        return deltallm.hybrid_attention(q, k, near, v, self.window, self.n_sink, scale)
