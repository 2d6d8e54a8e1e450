"""The three KV methods as a decoding step sees them: what each sequence reads, layer by layer.

A step first plans each row (`begin`: does this method leave anything out of a sequence this long?), then asks
in each layer for the parts to be read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...kernels import actqkv, deltallm, ems
from .kv_base import Cache, Method, Row, Watcher
from .kv_config import ActQKV, Config, DeltaLLM, Ems
from .kv_side import Part, Side, beside, pad


def method_of(config: Config, rotary: Callable[[], ems.Rotary] | None = None) -> Method:
    """The method of these sizes, for a model whose keys are turned by `rotary`."""
    if isinstance(config, Ems):
        return EmsReading(config, rotary)
    return ActQKVReading(config) if isinstance(config, ActQKV) else DeltaLLMReading(config)


# ---------------------------------------------------------------- EMS


@dataclass(slots=True)
class _Watched:
    """An EMS layer. `total` [kv_heads, n]: the attention that the prompt's keys got from the `n_queries` that
    were computed; `queries` the last `window` of them."""

    total: torch.Tensor | None = None
    n_queries: int = 0
    queries: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    position: torch.Tensor | None = None
    weight: torch.Tensor | None = None


@dataclass(slots=True)
class _Squeeze:
    """A row's plan: `covered` tokens are in entries; at this step those from `before` on join them."""

    covered: int = 0
    before: int = -1


class EmsReading(Watcher):
    """Entries for the past and the tokens since. The prompt is compressed at the first step, the tokens since
    after every `tail` of them.

    What is generated is scored by the last `window` queries when it is compressed, and an entry's weight
    fades by (1 - 1/window) a step: the running mean of the source, taken at once.
    """

    def __init__(self, config: Ems, rotary: Callable[[], ems.Rotary] | None) -> None:
        super().__init__()
        sizes = {name: size for name, size in vars(config).items() if name not in ("unrotated", "release")}
        self.config = ems.Config(**sizes)
        self.release = config.release
        assert rotary or not config.unrotated, "refused at the start"
        self.rotary = rotary if config.unrotated else None
        self.n_partial = 0

    def concerns(self, n_longest: int) -> bool:
        """Beyond the budget."""
        return n_longest > self.config.budget

    def begin(self, row: Row) -> bool:
        """When more than the budget is past."""
        row.plan = row.plan or _Squeeze()
        plan, past = row.plan, row.n - 1
        plan.before = -1
        due = past - plan.covered >= self.config.tail if plan.covered else past > self.config.budget
        if due:
            plan.before, plan.covered = plan.covered, past
        return bool(plan.covered)

    def n_done(self, row: Row) -> int:
        """What is in entries, once the step that put it there is over."""
        return row.plan.covered if self.release and row.plan else 0

    def watch(self, cache: Cache, row: Row, q: torch.Tensor) -> None:
        """Add up the attention that each key gets."""
        state = row.layers.setdefault(cache.layer, _Watched())
        k = cache.k[cache.slots(row, 0, row.n)].to(q.dtype)
        total, _ = ems.column_sums(q, k, len(q), cache.scale)
        if state.total is not None:
            total[:, : state.total.shape[1]] += state.total
        state.total, state.n_queries = total, state.n_queries + len(q)
        state.queries = self._last(state.queries, q)

    def watch_step(self, cache: Cache, row: Row, q: torch.Tensor) -> None:
        """Keep the last queries."""
        state = row.layers.setdefault(cache.layer, _Watched())
        state.queries = self._last(state.queries, q)

    def parts(self, cache: Cache, rows: Sequence[Row], q: torch.Tensor) -> tuple[Part, Part]:
        """The tokens since, and the entries."""
        held = []
        for row in rows:
            state = row.layers.setdefault(cache.layer, _Watched())
            if row.plan.before >= 0:
                self._compress(cache, row, state)
            held.append(state.slots)
            self.count(row, self.config.budget + row.n - row.plan.covered)
        since = self.of_step(
            [x for row in rows for x in (row, row.n, row.plan.covered)],
            lambda: pad([cache.slots(row, row.plan.covered, row.n) for row in rows])[:, None],
        )
        return Part(cache.k, cache.v, since), beside(self.side(cache), held, by_mass=self.config.mass_bias)

    def table(self) -> dict[str, Any]:
        """Besides, `partial`: prompts of which a cached beginning was not seen being read."""
        return {**super().table(), "partial": self.n_partial}

    def _last(self, queries: torch.Tensor | None, q: torch.Tensor) -> torch.Tensor:
        kept = q[-self.config.window :]
        if queries is None or len(kept) == self.config.window:
            return kept.clone()
        return torch.cat([queries, kept])[-self.config.window :]

    def _compress(self, cache: Cache, row: Row, state: _Watched) -> None:
        tail = cache.slots(row, row.plan.before, row.plan.covered)
        k, v = cache.k[tail], cache.v[tail]
        position = torch.arange(row.plan.before, row.plan.covered, device=k.device).expand(k.shape[1], -1)
        mass = torch.ones(k.shape[1], len(k), device=k.device)
        side, old = self.side(cache), state.slots
        if old is not None:
            assert state.position is not None, "entries without positions"
            k, v = torch.cat([side.k[old], k]), torch.cat([side.v[old], v])
            position = torch.cat([state.position, position], 1)
            mass = torch.cat([side.mass[old].transpose(0, 1), mass], 1)
        s = self._score(state, k, len(tail), cache.scale)
        self.n_partial += old is None and state.n_queries < len(k) and cache.layer == min(row.layers)
        rotary = self.rotary() if self.rotary else None
        entries = ems.compress(k, v, s, self.config, position=position, mass=mass, rotary=rotary)
        if old is not None:
            side.give(old)
        state.slots = side.put(entries.k, entries.v, entries.mass)
        state.position, state.weight, state.total = entries.position, entries.weight, None

    def _score(self, state: _Watched, k: torch.Tensor, n_new: int, scale: float) -> torch.Tensor:
        n, queries = len(k), state.queries
        if queries is None:  # nothing was seen: the latest stay
            return torch.zeros(k.shape[1], n, device=k.device)
        pool = self.config.pool
        _, local = ems.column_sums(queries, k.to(queries.dtype), self.config.window, scale)
        if state.weight is not None:
            faded = state.weight * (1 - 1 / self.config.window) ** n_new
            return torch.maximum(local, torch.nn.functional.pad(faded, (0, n_new)).to(local.dtype))
        if state.total is None:
            return ems.pooled(local, pool)
        total = torch.nn.functional.pad(state.total, (0, n - state.total.shape[1]))
        return ems.pooled(ems.global_local_score(total, local, state.n_queries), pool)


# ---------------------------------------------------------------- ActQKV


@dataclass(slots=True)
class _Pages:
    """An ActQKV layer: the slots of the mean keys of its full pages, its share of the budget, and how many
    pages it looked at last."""

    slots: torch.Tensor | None = None
    k: int = 0
    effective: torch.Tensor | None = None


class ActQKVReading(Method):
    """The first pages, the last, and those between that score best by the step's own query.

    A page is `page` positions of a row, whatever the pages of the pool; its mean key is kept with the row,
    and depends on the page's own keys alone. The budget is divided over the layers by what the steps before
    looked at; the first step gives each layer the same.
    """

    def __init__(self, config: ActQKV) -> None:
        super().__init__()
        self.config = config
        self.k_min, self.k_max = min(config.k_min, config.k), 2 * config.k

    def reads_prompt(self, n_before: int, n: int) -> bool:
        """Where the last window has more pages behind it than it reads."""
        config, window = self.config, self.config.prefill
        if not window:
            return False
        behind = max(n_before, (n - 1) // window * window) - config.last
        return behind // config.page > config.n_first + config.k

    def prompt(self, cache: Cache, row: Row, q: torch.Tensor) -> torch.Tensor:
        """By windows of `prefill` queries, each with what its probe finds."""
        config, slots = self.config, cache.slots(row, 0, row.n)
        sizes = {"window": config.prefill, "page": config.page, "n_best": config.k}
        k, v = (x[slots].to(q.dtype) for x in (cache.k, cache.v))
        return actqkv.retrieve(q, k, v, cache.scale, **sizes, n_first=config.n_first, n_local=config.last)

    def begin(self, row: Row) -> bool:
        """At more pages than are always read and chosen."""
        config = self.config
        if -(-row.n // config.page) <= config.n_first + config.k + config.n_last:
            return False
        row.plan = (row.plan or 0) + 1
        if row.plan > 1 and (row.plan - 2) % config.refresh == 0:
            states = list(row.layers.values())
            looked = torch.stack([state.effective for state in states]).cpu()
            for state, k in zip(
                states,
                actqkv.layer_budgets(looked, config.k, self.k_min, self.k_max).tolist(),
                strict=True,
            ):
                state.k = k
        return True

    def parts(self, cache: Cache, rows: Sequence[Row], q: torch.Tensor) -> tuple[Part, None]:
        """The slots of the selected pages."""
        config, side = self.config, self.side(cache, d_v=0)
        states = [self._means(cache, side, row) for row in rows]
        at, n_tokens = self.of_step(
            [x for row in rows for x in (row, row.n)],
            lambda: torch.tensor([(row.at, row.n) for row in rows], device=q.device).T.contiguous(),
        )
        k = torch.tensor([state.k for state in states], device=q.device)
        # The last page is always read, so its score does not matter, nor that it has none when not full.
        slots = [state.slots for state in states]
        table = side.listed(slots, lambda: torch.nn.functional.pad(pad(slots), (0, 1), value=-1))
        scores = actqkv.page_scores(q, side.k, table)
        for b, (row, state) in enumerate(zip(rows, states, strict=True)):
            if row.plan % config.refresh == 1 or config.refresh == 1:
                end = -(-row.n // config.page) - config.n_last
                state.effective = actqkv.effective_pages(
                    scores[b, config.n_first : end], q.shape[1], q.shape[2]
                )
        width = config.n_first + config.n_last + max(state.k for state in states)
        chosen = actqkv.chosen_slots(
            scores, n_tokens, k, cache.table, at,
            page=config.page, width=width, n_first=config.n_first, n_last=config.n_last,
        )  # fmt: skip
        return Part(cache.k, cache.v, chosen), None

    def _means(self, cache: Cache, side: Side, row: Row) -> _Pages:
        config = self.config
        state: _Pages = row.layers.setdefault(cache.layer, _Pages(k=config.k))
        done = 0 if state.slots is None else len(state.slots)
        full = row.n // config.page
        if full > done:
            k = cache.k[cache.slots(row, done * config.page, full * config.page)]
            pages = k.view(full - done, config.page, *k.shape[1:])
            means = actqkv.page_means(pages, torch.full((full - done,), config.page, device=k.device))
            new = side.put(means, means[..., :0], torch.ones(k.shape[1], full - done, device=k.device))
            state.slots = new if state.slots is None else torch.cat([state.slots, new])
        n_pages = -(-row.n // config.page)
        read = min(n_pages, config.n_first + state.k + config.n_last)
        self.count(row, read * config.page - (n_pages * config.page - row.n))
        return state


# ---------------------------------------------------------------- DeltaLLM


@dataclass(slots=True)
class _Encoded:
    """A DeltaLLM layer: Θ [kv_heads, head_dim], how many tokens are in runs, and the runs' slots."""

    limit: torch.Tensor
    done: int
    slots: torch.Tensor | None = None


class DeltaLLMReading(Method):
    """Exact keys for the first tokens and the window; runs for what has left the window, `block` tokens at a
    time, so that what is in runs depends on the length alone. Θ is taken from the keys of the first step."""

    def __init__(self, config: DeltaLLM) -> None:
        super().__init__()
        self.config = config
        self.n_runs = 0
        self.n_encoded = 0

    def begin(self, row: Row) -> bool:
        """When a block has left the window."""
        config = self.config
        row.plan = config.sink + max(0, row.n - config.local - config.sink) // config.block * config.block
        return bool(row.plan > config.sink)

    def reads_prompt(self, n_before: int, n: int) -> bool:
        """If it is told to, beyond the window."""
        return self.config.prefill > 0 and n > self.config.local

    def prompt(self, cache: Cache, row: Row, q: torch.Tensor) -> torch.Tensor:
        """Far keys as accumulated differences, Θ from the keys so far. Computed dense: this form is for what
        it does to the text."""
        config = self.config
        slots = cache.slots(row, 0, row.n)
        k, v = cache.k[slots], cache.v[slots]
        near, _, _ = deltallm.encode(k, deltallm.thresholds(k, config.prefill), config.sink)
        every = torch.cat([q.new_zeros(row.n - len(q), *q.shape[1:]), q])
        out = deltallm.hybrid_attention(every, k, near, v, config.local, config.sink, cache.scale)
        return out[row.n - len(q) :]

    def parts(self, cache: Cache, rows: Sequence[Row], q: torch.Tensor) -> tuple[Part, Part]:
        """The first tokens and the window; the runs, by how many tokens they are."""
        side, sink, runs = self.side(cache), self.config.sink, []
        for row in rows:
            state = self._encode(cache, side, row)
            assert state.slots is not None, "a step that reads runs, and none were made"
            runs.append(state.slots)
            self.count(row, len(runs[-1]) + sink + row.n - row.plan)

        def exact(row: Row) -> torch.Tensor:
            return torch.cat([cache.slots(row, 0, sink), cache.slots(row, row.plan, row.n)])

        of = [x for row in rows for x in (row, row.n, row.plan)]
        listed = self.of_step(of, lambda: pad([exact(row) for row in rows])[:, None])
        return Part(cache.k, cache.v, listed), beside(side, runs, by_mass=True)

    def table(self) -> dict[str, Any]:
        """Besides, how many runs the encoded tokens were, over heads."""
        return {**super().table(), "tokens_encoded": self.n_encoded, "runs": self.n_runs}

    def _encode(self, cache: Cache, side: Side, row: Row) -> _Encoded:
        config = self.config
        state: _Encoded | None = row.layers.get(cache.layer)
        if state is None:
            k = cache.k[cache.slots(row, 0, row.n)]
            state = _Encoded(deltallm.thresholds(k, config.theta), config.sink)
            row.layers[cache.layer] = state
        if row.plan == state.done:
            return state
        new = cache.slots(row, state.done, row.plan)
        k, v = cache.k[new], cache.v[new]
        n_before = 0
        if state.slots is None:
            runs = deltallm.gather_runs(k, v, deltallm.run_ids(k, state.limit))
        else:
            old = state.slots
            so_far = deltallm.Runs(side.k[old], side.v[old], side.mass[old].transpose(0, 1))
            n_before = int((so_far.mass > 0).sum())
            runs = deltallm.extend_runs(so_far, k, v, state.limit)
            side.give(old)
        state.slots = side.put(runs.k, runs.v, runs.mass)
        state.done = row.plan
        self.n_runs += int((runs.mass > 0).sum()) - n_before
        self.n_encoded += len(new) * k.shape[1]
        return state
