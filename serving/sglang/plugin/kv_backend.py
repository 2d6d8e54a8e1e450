"""The attention backends `abduce_ems`, `abduce_actqkv`, `abduce_deltallm`: stock, but for what a method reads
while decoding.

    prompt   stock and exact, unless the method is told otherwise; EMS is shown its queries
    step     sequences within the method's budget, and requests that ask for it: stock, bit for bit
             others: one softmax over what the method says is to be read

The stock backend is torch_native on a CPU, Triton's on a GPU. The paged pool and the table of slots are read
and never written, but for the step's own key and value.
"""

from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from .kv_base import Cache, Row, Watcher
from .kv_config import Config, Ems, namespace, text_of
from .kv_methods import method_of
from .kv_rotary import rotary_of
from .kv_side import Kept, attend

REQUESTS: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Request id → request, of those that a forward has seen."""

EXACT = "abduce_exact"
"""An attribute of requests: how many of the row's tokens came before the first step that left something
out."""


def wants(request: Any) -> bool:
    """Whether a request is served by the method: it decodes, and does not ask for exact attention. The turns
    of a session, which hand their rows on, are exact, and so are beams, which share theirs."""
    named = request.sampling_params.custom_params
    exact = isinstance(named, dict) and named.get("abduce_kv") == "exact"
    n_new = request.sampling_params.max_new_tokens  # None until it is scheduled: as many as there is room for
    alone = request.session is None and request.beam_group is None
    return not exact and alone and (n_new is None or n_new > 1)


class _Part(NamedTuple):
    """A prompt's tokens that are read now: `begin` to `end` of the batch's; `n_before` came before them."""

    row: Row
    n_before: int
    begin: int
    end: int


class KVReading:
    """What the backends add to a stock one, which comes after it among the base classes."""

    token_to_kv_pool: Any
    req_to_token_pool: Any

    def start(self, config: Config, runner: Any) -> None:
        """Before the first forward."""
        self.config = config
        turns_back = isinstance(config, Ems) and config.unrotated
        self.method = method_of(config, rotary_of(runner.model) if turns_back else None)
        self._reads_prompts = isinstance(self.method, Watcher) or namespace(config) is not None
        self.n_steps = 0
        self.n_reduced = 0
        self.n_widest = 0
        self._rows: dict[int, Row] = {}
        self._step: list[tuple[int, Row]] = []  # of the batch, those under the method
        self._rids: list[str] = []  # their requests
        self._reduced: list[int] = []  # of them, those that do not read all

    def state(self) -> dict[str, Any]:
        """For `/server_info`. `steps` counts each sequence's for itself; `reduced` those of them in which
        something was left out; `widest`: sequences of one step, at most."""
        counts = {
            "steps": self.n_steps,
            "reduced": self.n_reduced,
            "widest": self.n_widest,
            "rows": len(self._rows),
        }
        return {"method": text_of(self.config), **counts, **self.method.table()}

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """The stock backend's, and the plan of a step."""
        super().init_forward_metadata(forward_batch)  # type: ignore[misc]
        mode = forward_batch.forward_mode
        if mode.is_decode():
            self._begin(forward_batch)
        elif mode.is_extend():
            self._sweep()

    def _begin(self, forward_batch: Any) -> None:
        self._step, self._rids, self._reduced = [], [], []
        self.method.of_step = Kept()  # what is kept of a step is gone with it
        rows, lengths = forward_batch.req_pool_indices.tolist(), forward_batch.seq_lens.tolist()
        self.n_steps += len(rows)
        self.n_widest = max(self.n_widest, len(rows))
        # Rows beyond the requests are their beams', which are exact.
        for i, (at, n, rid) in enumerate(zip(rows, lengths, forward_batch.rids, strict=False)):
            request = REQUESTS.get(rid)
            if request is None or not self._concerns(request):
                continue
            row = self._row(at)
            if row.n != n or row.plan is None:
                row.n = n
                row.reduced = self.method.begin(row)
            self._step.append((i, row))
            self._rids.append(rid)
            if row.reduced:
                setattr(request, EXACT, min(n - 1, getattr(request, EXACT, n)))
                self._reduced.append(len(self._step) - 1)
        self.n_reduced += len(self._reduced)

    def n_done(self) -> list[tuple[Any, int]]:
        """Requests of the last step, and how many of their first tokens no later step will read."""
        rows = ((REQUESTS.get(rid), row) for rid, (_, row) in zip(self._rids, self._step, strict=True))
        done = [(request, self.method.n_done(row)) for request, row in rows if request is not None]
        self._rids, self._step = [], []
        return [(request, n) for request, n in done if n]

    def forward_decode(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **more: Any
    ) -> Any:
        """Attention of one token a sequence, q [batch, heads · head_dim] → [batch, heads · v_head_dim]."""
        reduced = [self._step[i] for i in self._reduced]
        if len(reduced) < forward_batch.batch_size:
            stock = super().forward_decode  # type: ignore[misc]
            out = stock(q, k, v, layer, forward_batch, save_kv_cache, **more)
        else:
            if save_kv_cache:
                place = KVWriteLoc.for_batch(forward_batch)
                self.token_to_kv_pool.set_kv_buffer(layer, place, k, v)
            out = q.new_empty(len(q), layer.tp_q_head_num * layer.v_head_dim)
        cache, queries = self._cache(layer), q.reshape(len(q), layer.tp_q_head_num, layer.qk_head_dim)
        if reduced:
            at = torch.tensor([i for i, _ in reduced], device=q.device)
            pool, side = self.method.parts(cache, [row for _, row in reduced], queries[at])
            out[at] = attend(queries[at], pool, side, layer.scaling).flatten(1)
        if isinstance(self.method, Watcher):
            for i, row in self._step:
                self.method.watch_step(cache, row, queries[i : i + 1])
        return out

    def forward_extend(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True, **more: Any
    ) -> Any:
        """Attention of the batch's new tokens: the stock backend's, and where a method reads prompts its own
        way, that."""
        parts = self._parts(forward_batch) if self._reads_prompts else []
        own = [part for part in parts if self.method.reads_prompt(part.n_before, part.row.n)]
        if own and len(own) == forward_batch.batch_size:
            if save_kv_cache:
                place = KVWriteLoc.for_batch(forward_batch)
                self.token_to_kv_pool.set_kv_buffer(layer, place, k, v)
            out = q.new_empty(len(q), layer.tp_q_head_num * layer.v_head_dim)
        else:
            stock = super().forward_extend  # type: ignore[misc]
            out = stock(q, k, v, layer, forward_batch, save_kv_cache, **more)
        cache = self._cache(layer)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        if isinstance(self.method, Watcher):
            for part in parts:
                self.method.watch(cache, part.row, queries[part.begin : part.end])
        for part in own:
            read = self.method.prompt(cache, part.row, queries[part.begin : part.end])
            out[part.begin : part.end] = read.flatten(1)
        return out

    def _parts(self, forward_batch: Any) -> list["_Part"]:
        """What is read now of the prompts that concern the method."""
        if forward_batch.extend_seq_lens_cpu is None:
            return []
        begin, parts, lengths = 0, [], forward_batch.extend_seq_lens_cpu
        rows, prefixes = forward_batch.req_pool_indices.tolist(), forward_batch.extend_prefix_lens_cpu
        for at, rid, n_before, n_new in zip(rows, forward_batch.rids, prefixes, lengths, strict=False):
            request = REQUESTS.get(rid)
            if request is not None and self._concerns(request):
                row = self._row(at) if isinstance(self.method, Watcher) else Row(at, 0)
                row.n = n_before + n_new
                parts.append(_Part(row, n_before, begin, begin + n_new))
            begin += n_new
        return parts

    def _concerns(self, request: Any) -> bool:
        n_longest = len(request.origin_input_ids) + int(request.sampling_params.max_new_tokens)
        return wants(request) and self.method.concerns(n_longest)

    def _cache(self, layer: Any) -> Cache:
        pool = self.token_to_kv_pool
        return Cache(
            layer.layer_id,
            pool.get_key_buffer(layer.layer_id),
            pool.get_value_buffer(layer.layer_id),
            self.req_to_token_pool.req_to_token,
            layer.scaling,
        )

    def _row(self, at: int) -> Row:
        """The row of SGLang's table; a new one if the place has been given to another request."""
        generation = int(self.req_to_token_pool.req_generation[at])
        row = self._rows.get(at)
        if row is None or row.generation != generation:
            self._forget(at)
            row = self._rows[at] = Row(at, generation)
        return row

    def _sweep(self) -> None:
        """Forget the rows of requests that have ended."""
        pool = self.req_to_token_pool
        free, generations = set(pool.free_slots), pool.req_generation.tolist()
        for at, row in list(self._rows.items()):
            if at in free or row.generation != generations[at]:
                self._forget(at)

    def _forget(self, at: int) -> None:
        if (row := self._rows.pop(at, None)) is not None:
            self.method.forget(row)


class OnCPU(KVReading, TorchNativeAttnBackend):
    """Over torch_native."""


def backend(runner: Any, config: Config) -> Any:
    """The backend for the runner's device."""
    kind: Any = OnCPU if runner.device == "cpu" else _on_gpu()
    made = kind(runner)
    made.start(config, runner)
    return made


def _on_gpu() -> type:
    from sglang.srt.layers.attention.triton_backend import TritonAttnBackend

    class OnGPU(KVReading, TritonAttnBackend):
        """Over Triton's."""

    return OnGPU
