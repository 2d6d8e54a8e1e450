"""EMS, DeltaLLM and ActQKV as memories of a prefix; what they compute is in serving/kernels.

EMS and DeltaLLM keep fewer entries: their keep ratio is of memory and of what is read. ActQKV keeps all and
reads few: its keep ratio is of what is read only. PackedDeltaLLM keeps and reads all, in fewer bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...errors import UsageError
from ...kernels import actqkv, deltallm, ems
from .reading import Kept, Prefix, attend, n_kept
from .rotary import demand, demand_merged_keys


@dataclass(frozen=True)
class EMS:
    """Per KV head: centres by the global-local score, similar tokens merged into them, the last ones exact.

    tau above 1 merges nothing: eviction by the same scores. `unrotated` merges keys as they were before
    their positions were rotated in.
    """

    keep_ratio: float
    window: int = 32
    tau: float = 0.5
    merge_keys: bool = True
    mass_bias: bool = False
    pool: int = 1
    unrotated: bool = False

    def __post_init__(self) -> None:
        demand_merged_keys(self.unrotated, self.merge_keys)

    def __call__(self, prefix: Sequence[Prefix]) -> Kept:
        """See Method."""
        n = len(prefix[0].k)
        budget = n_kept(n, self.keep_ratio, self.window)
        config = ems.Config(budget, self.window, tau=self.tau, merge_keys=self.merge_keys)
        if self.tau > 1:  # no two tokens are that similar: look for none to merge
            config = replace(config, rho=1)
        kept = []
        for each in prefix:
            s = ems.pooled(ems.global_local_score(*each.attention_sums(self.window), n), self.pool)
            rotary = demand(each.rotary()) if self.unrotated else None
            kept.append(ems.compress(each.k, each.v, s, config, rotary=rotary))
        mass = [entries.mass for entries in kept] if self.mass_bias else None
        return Kept([x.k for x in kept], [x.v for x in kept], prefix[0].scale, n, mass)


@dataclass(frozen=True)
class DeltaLLM:
    """Runs of tokens that stay within Θ, with their mean values; the first and the last tokens are exact.

    One factor θ (Θ = θ standard deviations of each channel) for the whole prefix, found by bisection so that
    sinks, runs and window together are the share `keep_ratio` of the entries, over all layers and heads.
    """

    keep_ratio: float
    window: int = 32
    n_sink: int = 4

    def __call__(self, prefix: Sequence[Prefix]) -> Kept:
        """See Method."""
        n, n_kv = len(prefix[0].k), prefix[0].k.shape[1]
        exact = self.n_sink + self.window
        wanted = (n_kept(n, self.keep_ratio, exact) - exact) * n_kv * len(prefix)
        far = slice(self.n_sink, n - self.window)
        # heads are independent of each other, so all layers go through the encoder as one
        together = torch.cat([each.k[far] for each in prefix], 1)
        ids = self._run_ids(together, wanted)
        one = together.new_ones(n_kv, 1)
        k, v, mass = [], [], []
        for each, run_of in zip(prefix, ids.split(n_kv), strict=True):
            runs = deltallm.gather_runs(each.k[far], each.v[far], run_of)
            first, last = slice(0, self.n_sink), slice(n - self.window, n)
            k.append(torch.cat([each.k[first], runs.k, each.k[last]]))
            v.append(torch.cat([each.v[first], runs.v, each.v[last]]))
            mass.append(torch.cat([one.expand(-1, self.n_sink), runs.mass, one.expand(-1, self.window)], 1))
        return Kept(k, v, prefix[0].scale, n, mass)

    def _run_ids(self, k: torch.Tensor, wanted: int) -> torch.Tensor:
        """int32 [all heads, n]: at most `wanted` runs, by the least θ that gives so few."""
        unit = deltallm.thresholds(k, 1.0)
        low, high = 0.0, 16.0  # at 16 deviations a head is one run
        best = deltallm.run_ids(k, unit * low)
        if _n_runs(best) <= wanted:
            return best
        best = torch.zeros_like(best)
        for _ in range(12):
            theta = (low + high) / 2
            ids = deltallm.run_ids(k, unit * theta)
            if _n_runs(ids) <= wanted:
                high, best = theta, ids
            else:
                low = theta
        return best


@dataclass(frozen=True)
class PackedDeltaLLM:
    """All tokens: keys as differences of more than Θ = theta standard deviations, packed, and whole values;
    the first and the last tokens are exact. What is saved is bytes."""

    theta: float = 0.5
    window: int = 32
    n_sink: int = 4

    def __call__(self, prefix: Sequence[Prefix]) -> Kept:
        """See Method."""
        n, half = len(prefix[0].k), 2  # bytes: what is served is in half precision, whatever measures it
        place = torch.arange(n, device=prefix[0].k.device)
        near = (place < self.n_sink) | (place >= n - self.window)
        keys, n_bytes, n_whole = [], 0, 0
        for each in prefix:
            limit = deltallm.thresholds(each.k, self.theta)
            packed = deltallm.pack(*deltallm.encode(each.k, limit, self.n_sink)[:2])
            n_bytes += packed.n_bytes + packed.values.numel() * (half - packed.values.element_size())
            n_bytes += (each.k[near].numel() + each.v.numel()) * half
            n_whole += (each.k.numel() + each.v.numel()) * half
            keys.append(torch.where(near[:, None, None], each.k, deltallm.unpack(packed)[:n]))
        return _InBytes(keys, [x.v for x in prefix], prefix[0].scale, n, share=n_bytes / n_whole)


@dataclass(frozen=True)
class _InBytes(Kept):
    """A memory of all tokens in fewer bytes: `share` of those of keys and values."""

    share: float = 1.0

    @property
    def read_share(self) -> float:
        """See Memory; of bytes."""
        return self.share


@dataclass(frozen=True)
class ActQKV:
    """Each later token reads the first page, the last ones, and those that its own query scores best.

    How many, of the same sum, is decided anew every `refresh` tokens from how widely each layer's scores are
    spread; at first by the probe query of the prefix's last `probe` tokens.
    """

    keep_ratio: float
    page: int = 16
    n_first: int = 1
    window: int = 32
    probe: int = 64
    power: float = 1.0
    k_min: int = 1
    refresh: int = 8

    def __call__(self, prefix: Sequence[Prefix]) -> "Pages":
        """See Method."""
        return Pages(prefix, self)


class Pages:
    """ActQKV's memory: every page of the prefix, and how many each layer reads at present."""

    def __init__(self, prefix: Sequence[Prefix], method: ActQKV) -> None:
        n, self._method, self._prefix = len(prefix[0].k), method, prefix
        self.refresh: int | None = method.refresh
        self._n_pages = -(-n // method.page)
        self._n_last = -(-method.window // method.page)
        fixed = method.n_first + self._n_last
        kept = n_kept(n, method.keep_ratio, fixed * method.page)
        self._k = (self._n_pages if kept == n else kept // method.page) - fixed
        if self._k < method.k_min:
            raise UsageError(
                f"ActQKV: a share of {method.keep_ratio} of {n} tokens leaves no page to choose beside the "
                f"{fixed} fixed ones of {method.page} tokens. Keep more, or write a smaller page."
            )
        self._table = torch.arange(self._n_pages, device=prefix[0].k.device)[None]
        self._means = [self._means_of(each.k) for each in prefix]
        self._effective = torch.stack(
            [
                self._effective_of(means, actqkv.probe_query(x.q[-method.probe :].flatten(1), method.power))
                for means, x in zip(self._means, prefix, strict=True)
            ]
        )
        self._n_read = self._n_asked = 0
        self.step()

    @property
    def read_share(self) -> float:
        """See Memory; of the tokens asked so far."""
        return self._n_read / max(self._n_asked, 1)

    def attend(self, layer: int, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Memory."""
        method, each, n = self._method, self._prefix[layer], len(self._prefix[layer].k)
        n_q = len(q)
        scores = actqkv.page_scores(q, self._means[layer], self._table.expand(n_q, -1))
        self._effective[layer] = actqkv.effective_pages(scores[-1], q.shape[1], q.shape[2])
        count = torch.full((n_q,), self._n_pages, device=q.device)
        selected = actqkv.select(
            scores,
            count,
            self._budgets[layer].expand(n_q),
            width=self._n_pages,
            n_first=method.n_first,
            n_last=self._n_last,
        )
        # page i of the table is page i of the prefix, so a slot is a position
        slots = actqkv.slots_of(selected, self._table.expand(n_q, -1), torch.full_like(count, n), method.page)
        chosen = slots.new_zeros(n_q, n + 1, dtype=torch.bool)
        chosen = chosen.scatter(1, torch.where(slots[:, 0] >= 0, slots[:, 0], n), True)[:, :n]
        self._n_read += int(chosen.sum())
        self._n_asked += n * n_q
        bias = torch.where(chosen, 0.0, -torch.inf)[None]
        return attend(q, each.k, each.v, each.scale, bias)

    def step(self) -> None:
        """See Memory."""
        most = min(2 * self._k, self._n_pages - self._method.n_first - self._n_last)
        self._budgets = actqkv.layer_budgets(self._effective, self._k, self._method.k_min, most)

    def _means_of(self, k: torch.Tensor) -> torch.Tensor:
        page = self._method.page
        padded = torch.nn.functional.pad(k, (0, 0, 0, 0, 0, -len(k) % page))
        pages = padded.view(self._n_pages, page, *k.shape[1:])
        filled = (len(k) - self._table[0] * page).clamp_max(page)
        return actqkv.page_means(pages, filled)

    def _effective_of(self, means: torch.Tensor, probe: torch.Tensor) -> torch.Tensor:
        n_heads, d = self._prefix[0].q.shape[1:]
        scores = actqkv.page_scores(probe.view(1, n_heads, d), means, self._table)
        return actqkv.effective_pages(scores[0], n_heads, d)


def _n_runs(ids: torch.Tensor) -> int:
    return int((ids[:, -1] + 1).sum())
