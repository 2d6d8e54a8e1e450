"""A text that is read once, exactly, and what later tokens see of it.

    prefix ──► the model ──► q, k, v of each layer ──► method ──► memory ──┐
    later tokens ──► the model, with keys and values of their own ─────────┴─► one softmax, layer by layer

Positions are the text's own throughout: a memory of 100 entries that stands for 1,000 tokens is followed by
position 1,000. Sizes are in tokens per KV head; `keep_ratio` is the share of a prefix that later tokens read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from ...errors import UsageError
from ...kernels import ems, paged
from ..model import demand_plain_layers, library
from .rotary import rotary_of


@dataclass(frozen=True, eq=False)
class Prefix:
    """What one layer computed of a text: q [n, heads, head_dim], k, v [n, kv_heads, head_dim], rotated, and
    by what, if the model tells."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scale: float
    rotary: Callable[[], ems.Rotary | None] = lambda: None
    earlier: "Prefix | None" = None
    """The same layer's of the text that this one goes on from."""
    _sums: dict[int | None, torch.Tensor] = field(default_factory=dict, repr=False)

    def attention_sums(self, window: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention that each key gets from all queries, and from the last `window`, [kv_heads, n] each: what
        `ems.column_sums` gives, remembered, since several methods ask for the same."""
        return self._global_sums(), self.local_sums(window)

    def local_sums(self, window: int) -> torch.Tensor:
        """The second of `attention_sums`, which costs little."""
        if window not in self._sums:
            self._sums[window] = self._sums_from(max(len(self.q) - window, 0))
        return self._sums[window]

    def _global_sums(self) -> torch.Tensor:
        if None not in self._sums:
            if self.earlier is None:
                self._sums[None] = self._sums_from(0)
            else:
                before, n = self.earlier._global_sums(), len(self.k)
                padded = torch.nn.functional.pad(before, (0, n - before.shape[1]))
                self._sums[None] = padded + self._sums_from(len(self.earlier.q))
        return self._sums[None]

    def _sums_from(self, first: int) -> torch.Tensor:
        """By the queries from this one on, _ROWS at a time: a long text's weights fit no memory at once."""
        n_q, n = len(self.q), len(self.k)
        sums = torch.zeros(self.k.shape[1], n, dtype=torch.promote_types(self.q.dtype, torch.float32))
        sums = sums.to(self.q.device)
        for start in range(first, n_q, _ROWS):
            end = min(start + _ROWS, n_q)
            seen = n - n_q + end
            s = _logits(self.q[start:end], self.k[:seen], self.scale)
            s += _causal(end - start, seen, s)
            sums[:, :seen] += torch.softmax(s, -1).mean(1).sum(1)
        return sums


class Memory(Protocol):
    """What is left of a prefix for later tokens."""

    @property
    def refresh(self) -> int | None:
        """After how many tokens `step` must be called; None for never."""

    @property
    def read_share(self) -> float:
        """Entries that a later token reads, of those that the prefix had; the mean over layers and heads."""

    def attend(self, layer: int, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of q [n_q, heads, head_dim] over the layer's entries: o as q, and the log-sum-exp
        [n_q, heads], float32 or wider."""

    def step(self) -> None:
        """`refresh` tokens have been read since the last time."""


class Method(Protocol):
    """Makes a memory of what the layers computed of one text."""

    def __call__(self, prefix: Sequence[Prefix]) -> Memory: ...  # noqa: D102


@dataclass(frozen=True)
class Kept:
    """A memory of fixed entries: per layer k, v [entries, kv_heads, head_dim], and mass [kv_heads, entries].

    An entry's logit is raised by ln mass; mass 0 is no entry. `mass` None is 1 everywhere.
    """

    k: Sequence[torch.Tensor]
    v: Sequence[torch.Tensor]
    scale: float
    n: int
    mass: Sequence[torch.Tensor] | None = None

    @property
    def refresh(self) -> None:
        """Never: fixed entries stay as they are."""

    @property
    def read_share(self) -> float:
        """See Memory."""
        if self.mass is None:
            return sum(len(k) for k in self.k) / len(self.k) / self.n
        return sum(float((mass > 0).double().mean(0).sum()) for mass in self.mass) / len(self.mass) / self.n

    def attend(self, layer: int, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See Memory."""
        bias = None if self.mass is None else self.mass[layer].log()[:, None]
        return attend(q, self.k[layer], self.v[layer], self.scale, bias)

    def step(self) -> None:
        """See Memory."""


class Prompt(Protocol):
    """Attention by which a text is read, if not exact."""

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """q [n_q, heads, head_dim] at the last n_q of n positions; k, v [n, kv_heads, head_dim]: o as q."""


class Reader:
    """A Hugging Face model whose attention goes through memories. The model is taken over: use it only here.

    Raises UsageError for a model whose layers keep no plain keys and values of the whole text.
    """

    def __init__(self, model: Any) -> None:
        demand_plain_layers(model.config, model.config.get_text_config().max_position_embeddings)
        self.model = model
        self._memories: Sequence[Memory] = ()
        self._prompt: Prompt | None = None
        self._transformers = library()
        self._transformers.AttentionInterface.register(_NAME, _attention)
        model.set_attn_implementation(_NAME)

    def read(
        self, ids: Sequence[int], after: Sequence[Prefix] = (), *, prompt: Prompt | None = None
    ) -> list[Prefix]:
        """What each layer computes of a text; `after`: of one that goes on where that one ended; by `prompt`
        in every layer, else exactly."""
        self._prompt = prompt
        cache = self._transformers.DynamicCache()
        for layer, each in enumerate(after):
            cache.update(*(x.transpose(0, 1)[None] for x in (each.k, each.v)), layer)
        self._read: list[Prefix] = []
        n_before = len(after[0].k) if after else 0
        self._rotary = partial(self._tables, n_before + len(ids))
        self._forward([ids], n_before, cache, logits_to_keep=1)
        read = self._read
        if not after:
            return read
        return [
            Prefix(torch.cat([old.q, new.q]), new.k, new.v, new.scale, new.rotary, old)
            for old, new in zip(after, read, strict=True)
        ]

    def tell(self, memory: Memory, ids: Sequence[int], position: int) -> torch.Tensor:
        """Logits [n, vocabulary] of a text that begins at `position`, behind the memory's.

        Token by token or at once is the same, so it is at once, unless the memory adapts.
        """
        cache, n = self._transformers.DynamicCache(), len(ids)
        chunk = memory.refresh or n
        self._memories, logits = [memory], []
        try:
            for start in range(0, n, chunk):
                logits.append(self._forward([ids[start : start + chunk]], position + start, cache)[0])
                memory.step()
        finally:
            self._memories = ()
        return torch.cat(logits)

    def greedy(
        self,
        memories: Sequence[Memory],
        ids: Sequence[int],
        position: int,
        n_new: int,
        is_over: Callable[[Sequence[int]], bool],
    ) -> list[list[int]]:
        """What the model says behind each memory and these tokens: at most `n_new` tokens, until `is_over`
        of them. All go side by side, so that many cost little more than one."""
        cache = self._transformers.DynamicCache()
        said: list[list[int]] = [[] for _ in memories]
        going, since = list(range(len(memories))), [0] * len(memories)
        chunk = min([memory.refresh or len(ids) for memory in memories], default=1)
        given, at = [list(ids[i : i + chunk]) for i in range(0, len(ids), chunk)], position
        rows = [given.pop(0)] * len(memories)
        try:
            while going:
                self._memories = [memories[i] for i in going]
                logits = self._forward(rows, at, cache, logits_to_keep=1)
                at += len(rows[0])
                for i in going:
                    since[i] += len(rows[0])
                    refresh = memories[i].refresh
                    if refresh is not None and since[i] >= refresh:
                        memories[i].step()
                        since[i] = 0
                if given:
                    rows = [given.pop(0)] * len(going)
                    continue
                for i, token in zip(going, logits[:, -1].argmax(-1).tolist(), strict=True):
                    said[i].append(token)
                on = [r for r, i in enumerate(going) if len(said[i]) < n_new and not is_over(said[i])]
                cache.batch_select_indices(torch.tensor(on, dtype=torch.long, device=logits.device))
                going = [going[r] for r in on]
                rows = [said[i][-1:] for i in going]
        finally:
            self._memories = ()
        return said

    def _tables(self, n: int) -> ems.Rotary | None:
        """Of n positions."""
        decoder = self.model.get_decoder()
        if not hasattr(decoder, "rotary_emb"):
            return None
        like = torch.zeros((), dtype=self.model.dtype, device=self.model.device)
        return rotary_of(decoder, decoder.rotary_emb(like, torch.arange(n, device=like.device)[None]))

    def _forward(self, rows: Sequence[Sequence[int]], position: int, cache: Any, **more: Any) -> torch.Tensor:
        """[rows, n, vocabulary]."""
        given = torch.tensor([list(ids) for ids in rows], device=self.model.device)
        places = torch.arange(position, position + given.shape[1], device=given.device)[None]
        with torch.inference_mode():
            logits: torch.Tensor = self.model(
                input_ids=given,
                position_ids=places,
                past_key_values=cache,
                use_cache=True,
                kv_reader=self,
                **more,
            ).logits
        return logits


def n_kept(n: int, keep_ratio: float, window: int) -> int:
    """Entries of a prefix of n tokens, rounded down. Raises UsageError if the window would fill them all."""
    if not 0 < keep_ratio <= 1:
        raise UsageError(f"keep_ratio must be in (0, 1], got {keep_ratio}. Write 0.25 to keep a quarter.")
    kept = int(n * keep_ratio)
    if kept <= window and kept < n:
        raise UsageError(
            f"A share of {keep_ratio} of {n} tokens leaves {kept} entries, and a window of {window} stays as "
            "it is: keep more, or write a smaller window."
        )
    return kept


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """o as q [n_q, heads, head_dim], log-sum-exp [n_q, heads]; bias [kv_heads or 1, n_q or 1, n]."""
    n_q, n_heads, _ = q.shape
    s = _logits(q, k, scale)
    if bias is not None:
        s = s + bias[:, None]
    p = torch.softmax(s, -1)
    o = (p.flatten(1, 2) @ v.to(s.dtype).transpose(0, 1)).view(*p.shape[:3], -1)
    lse = torch.logsumexp(s, -1)
    return o.permute(2, 0, 1, 3).reshape(n_q, n_heads, -1).to(q.dtype), lse.permute(2, 0, 1).reshape(n_q, -1)


# ---------------------------------------------------------------- details

_NAME = "abduce_kv"
_ROWS = 128  # queries whose weights are in memory at a time


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **words: Any
) -> tuple[torch.Tensor, None]:
    """query [rows, heads, n_q, head_dim] at the end of key, value [rows, kv_heads, n, head_dim]; one row
    while a text is read."""
    reader, scale = words["kv_reader"], words["scaling"]
    texts = [[x.transpose(0, 1) for x in row] for row in zip(query, key, value, strict=True)]
    if not reader._memories:
        ((q, k, v),) = texts
        reader._read.append(Prefix(q, k, v, scale, reader._rotary))
        if reader._prompt is not None:
            return reader._prompt(q, k, v, scale)[None], None
        whole = len(q) == len(k)  # PyTorch's causal attention leaves out the half that is masked
        o = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if whole else _causal(len(q), len(k), q).to(q.dtype),
            is_causal=whole,
            scale=scale,
            enable_gqa=True,
        )
        return o.transpose(1, 2), None
    causal = _causal(query.shape[2], key.shape[2], query)
    both = [
        paged.merge(*attend(q, k, v, scale, causal), *memory.attend(module.layer_idx, q))[0]
        for (q, k, v), memory in zip(texts, reader._memories, strict=True)
    ]
    return torch.stack(both), None


def _logits(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """[kv_heads, group, n_q, n], float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    grouped = q.to(wide).view(len(q), k.shape[1], -1, q.shape[2]).permute(1, 2, 0, 3)
    s = grouped.flatten(1, 2) @ k.to(wide).permute(1, 2, 0)
    return s.view(*grouped.shape[:3], -1) * scale


def _causal(n_q: int, n: int, like: torch.Tensor) -> torch.Tensor:
    return torch.full((1, n_q, n), -torch.inf, device=like.device).triu(n - n_q + 1)
