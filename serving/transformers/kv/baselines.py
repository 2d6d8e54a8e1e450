"""What the methods are measured beside, written plainly: keep some tokens of a prefix, forget the others.

Sources: "Efficient Streaming Language Models with Attention Sinks" (StreamingLLM), arXiv 2309.17453; "SnapKV:
LLM Knows What You are Looking for Before Generation", arXiv 2404.14469; "H2O: Heavy-Hitter Oracle", arXiv
2306.14048; "Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference", arXiv 2406.10774; merging
as kvpress 0.5.5's MergingPress does. SnapKV and H2O choose for each KV head, by the mean attention of its
query heads, Quest by the sum of their bounds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .reading import Kept, Prefix, attend, n_kept


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
        return _keep(prefix, self.chosen)

    def chosen(self, each: Prefix) -> torch.Tensor:
        """Positions [kv_heads, kept] of one layer, ascending."""
        local = each.local_sums(self.window)
        pooled = torch.nn.functional.avg_pool1d(
            local[:, : -self.window], self.kernel, stride=1, padding=self.kernel // 2
        )
        return _best_and_last(pooled, len(each.k), self.keep_ratio, self.window)


@dataclass(frozen=True)
class MergedSnapKV(SnapKV):
    """SnapKV, and the value of each token that it forgets goes into the one that it keeps with the most
    similar key, by cosine and norm. Keys stay."""

    def __call__(self, prefix: Sequence[Prefix]) -> Kept:
        """See Method."""
        kept = [self._merged(each) for each in prefix]
        return Kept([k for k, _ in kept], [v for _, v in kept], prefix[0].scale, len(prefix[0].k))

    def _merged(self, each: Prefix) -> tuple[torch.Tensor, torch.Tensor]:
        there = self.chosen(each)
        n_heads, n = len(there), len(each.k)
        goes = torch.ones(n_heads, n, dtype=torch.bool, device=there.device).scatter(1, there, False)
        gone = goes.nonzero()[:, 1].view(n_heads, -1)
        heads = torch.arange(n_heads, device=there.device)[:, None]
        k, v = each.k.transpose(0, 1), each.v.transpose(0, 1)
        kept_k, kept_v, gone_v = k[heads, there], v[heads, there], v[heads, gone]
        if gone.shape[1]:
            unit = torch.nn.functional.normalize(k.to(torch.promote_types(k.dtype, torch.float32)), dim=-1)
            near, target = (unit[heads, gone] @ unit[heads, there].transpose(1, 2)).max(-1)
            norm, into = gone_v.norm(dim=-1), kept_v.norm(dim=-1).gather(1, target)
            weight = near.clamp_min(0) * norm / (norm + into + 1e-6)
            total = torch.ones_like(kept_v[..., 0]).scatter_add(1, target, weight.to(v.dtype))
            spread = target[..., None].expand_as(gone_v)
            summed = kept_v.scatter_add(1, spread, (weight[..., None] * gone_v).to(v.dtype))
            kept_v = summed / total[..., None]
        return kept_k.transpose(0, 1), kept_v.transpose(0, 1)


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


@dataclass(frozen=True)
class Quest:
    """Each later token reads, for each KV head, the pages whose bounds allow the largest logits. The first
    page and the last ones are always read, as with ActQKV, and count."""

    keep_ratio: float
    page: int = 16
    n_first: int = 1
    window: int = 32

    def __call__(self, prefix: Sequence[Prefix]) -> "BoundedPages":
        """See Method."""
        return BoundedPages(prefix, self)


class BoundedPages:
    """Quest's memory: every page, with the least and the largest of each channel of its keys."""

    refresh = None

    def __init__(self, prefix: Sequence[Prefix], method: Quest) -> None:
        n = len(prefix[0].k)
        self._prefix, self._method = prefix, method
        self._n_pages, n_last = -(-n // method.page), -(-method.window // method.page)
        kept = n_kept(n, method.keep_ratio, (method.n_first + n_last) * method.page)
        self._n_chosen = self._n_pages if kept == n else kept // method.page
        self._fixed = torch.zeros(self._n_pages, device=prefix[0].k.device)
        self._fixed[: method.n_first] = self._fixed[self._n_pages - n_last :] = torch.inf
        self._bounds = [self._bounds_of(each.k) for each in prefix]
        self._n_read = self._n_asked = 0

    @property
    def read_share(self) -> float:
        """See Memory; of the tokens asked so far."""
        return self._n_read / max(self._n_asked, 1)

    def attend(self, layer: int, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Memory."""
        each, (low, high) = self._prefix[layer], self._bounds[layer]
        n, n_kv = each.k.shape[:2]
        grouped = q.view(len(q), n_kv, -1, q.shape[2]).transpose(0, 1)
        largest = grouped.clamp_min(0).sum(2) @ high + grouped.clamp_max(0).sum(2) @ low
        best = (largest + self._fixed).topk(self._n_chosen).indices
        chosen = torch.zeros_like(largest, dtype=torch.bool).scatter(2, best, True)
        tokens = chosen.repeat_interleave(self._method.page, 2)[..., :n]
        self._n_read += int(tokens.sum())
        self._n_asked += tokens.numel()
        return attend(q, each.k, each.v, each.scale, torch.where(tokens, 0.0, -torch.inf))

    def step(self) -> None:
        """See Memory."""

    def _bounds_of(self, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[kv_heads, head_dim, pages] each."""
        page = self._method.page
        last = k[-1:].expand(-len(k) % page, -1, -1)  # bounds of a page in part: of the tokens that it has
        pages = torch.cat([k, last]).unflatten(0, (self._n_pages, page))
        return pages.amin(1).permute(1, 2, 0), pages.amax(1).permute(1, 2, 0)


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
