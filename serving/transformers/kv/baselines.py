"""What the methods are measured beside, written plainly: keep some tokens of a prefix, forget the others.

Sources: "Efficient Streaming Language Models with Attention Sinks" (StreamingLLM), arXiv 2309.17453; "SnapKV:
LLM Knows What You are Looking for Before Generation", arXiv 2404.14469; "H2O: Heavy-Hitter Oracle", arXiv
2306.14048. SnapKV and H2O choose for each KV head, by the mean attention of its query heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .reading import Kept, Prefix, n_kept


@dataclass(frozen=True)
class FullCache:
    """Everything."""

    def __call__(self, prefix: Sequence[Prefix]) -> Kept:
        """See Method."""
        return Kept([x.k for x in prefix], [x.v for x in prefix], prefix[0].scale, len(prefix[0].k))


@dataclass(frozen=True)
class Int8Keys:
    """Everything, keys rounded to 255 steps between the bounds of each token and head: half of the keys'
    bytes in half precision, and a scale."""

    def __call__(self, prefix: Sequence[Prefix]) -> Kept:
        """See Method."""
        k = []
        for each in prefix:
            step = each.k.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
            k.append((each.k / step).round() * step)
        return Kept(k, [x.v for x in prefix], prefix[0].scale, len(prefix[0].k))


@dataclass(frozen=True)
class StreamingLLM:
    """The first tokens and the last."""

    keep_ratio: float
    n_sink: int = 4

    def __call__(self, prefix: Sequence[Prefix]) -> Kept:
        """See Method."""
        n = len(prefix[0].k)
        kept = n_kept(n, self.keep_ratio, self.n_sink)
        there = torch.cat([torch.arange(self.n_sink), torch.arange(n - kept + self.n_sink, n)])
        return _keep(prefix, lambda each: there.to(each.k.device).expand(each.k.shape[1], -1))


@dataclass(frozen=True)
class SnapKV:
    """The last `window` tokens, and those that they look at, neighbours included by a mean over `kernel`."""

    keep_ratio: float
    window: int = 32
    kernel: int = 5

    def __call__(self, prefix: Sequence[Prefix]) -> Kept:
        """See Method."""

        def best(each: Prefix) -> torch.Tensor:
            _, local = each.attention_sums(self.window)
            pooled = torch.nn.functional.avg_pool1d(
                local[:, : -self.window], self.kernel, stride=1, padding=self.kernel // 2
            )
            return _best_and_last(pooled, len(each.k), self.keep_ratio, self.window)

        return _keep(prefix, best)


@dataclass(frozen=True)
class H2O:
    """Half of what is kept are the last tokens, the other half those that all queries looked at most."""

    keep_ratio: float

    def __call__(self, prefix: Sequence[Prefix]) -> Kept:
        """See Method."""
        n = len(prefix[0].k)
        recent = n_kept(n, self.keep_ratio, 1) // 2
        return _keep(
            prefix,
            lambda each: _best_and_last(
                each.attention_sums(32)[0][:, : n - recent], n, self.keep_ratio, recent
            ),
        )


def _best_and_last(s: torch.Tensor, n: int, keep_ratio: float, last: int) -> torch.Tensor:
    """Positions [kv_heads, kept], ascending: the best by s [kv_heads, n - last], and the last."""
    best = s.topk(n_kept(n, keep_ratio, last) - last).indices.sort().values
    return torch.cat([best, torch.arange(n - last, n, device=s.device).expand(len(s), -1)], 1)


def _keep(prefix: Sequence[Prefix], choose: Callable[[Prefix], torch.Tensor]) -> Kept:
    k, v = [], []
    for each in prefix:
        there = choose(each).transpose(0, 1)
        heads = torch.arange(there.shape[1], device=there.device)
        k.append(each.k[there, heads])
        v.append(each.v[there, heads])
    return Kept(k, v, prefix[0].scale, len(prefix[0].k))
