"""A model's query projections as the only thing that is trained, against keys and values that stand still.

    model ── twin ──► the same weights in modules of its own ── own_queries ──► W_Q of its own, float32

The twin shares every weight with the model by view and none by name, so no gradient, optimiser or fault can
reach the model: what is thrown away is the twin. Two readings of what a span at positions t … t+k-1 sees:

    strict       columns 0 … t+k-1 of the prefill's keys and values, the span's own included
    recomputed   columns 0 … t-1 of them, and the span's as the current hidden states give them

A bfloat16 weight of size 0.02 has its next neighbour 1e-4 away, and an update of 3e-6 would be rounded
off: W_Q is held in float32, the product x W_Q^T is a float32 one, and only its result is rounded.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal, TypeAlias

import torch
from torch.nn import functional as F

from .. import engram_folder
from ..errors import UsageError
from .slots import causal

Reading: TypeAlias = Literal["strict", "recomputed"]

Kept: TypeAlias = Mapping[int, Sequence[torch.Tensor]]
"""Layer → its keys and values `[1, kv_heads, length, head_dim]`, keys rotated."""

_FUSED = ("qkv_proj",)  # query rows first; other fusings interleave the heads


def twin(model: Any) -> Any:
    """The model once more: modules of its own, weights that are views of the model's and want no gradient."""
    shared: dict[int, Any] = {id(each): each for each in model.buffers()}
    for weight in model.parameters():
        shared[id(weight)] = torch.nn.Parameter(weight.detach(), requires_grad=False)
    return copy.deepcopy(model, shared)


class OwnQuery(torch.nn.Module):  # type: ignore[misc]
    """A projection whose first `n_rows` rows are trained. `weight` [n_rows, hidden], at least float32."""

    def __init__(self, linear: Any, n_rows: int) -> None:
        super().__init__()
        exact = torch.promote_types(linear.weight.dtype, torch.float32)
        self.weight = torch.nn.Parameter(linear.weight.detach()[:n_rows].to(exact, copy=True))
        self.bias = None if linear.bias is None else linear.bias.detach()[:n_rows].to(exact)
        self.rest = None if n_rows == len(linear.weight) else linear
        self.n_rows = n_rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the projection it stands for."""
        q = F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)
        if self.rest is None:
            return q
        bias = None if self.rest.bias is None else self.rest.bias[self.n_rows :]
        return torch.cat([q, F.linear(x, self.rest.weight[self.n_rows :], bias)], -1)


def own_queries(model: Any) -> list[torch.nn.Parameter]:
    """Give a twin query projections of its own, in every layer. Returns W_Q of each.

    Raises UsageError for a model whose layers have no projection of this kind.
    """
    config = model.config.get_text_config()
    if config.model_type == engram_folder.MODEL_TYPE:
        raise UsageError("query_ttt does not train the queries of a model with Engram tables: leave it out.")
    weights = []
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if name != "q_proj" and name not in _FUSED:
                continue
            n_rows = config.num_attention_heads * parent.head_dim if name in _FUSED else len(module.weight)
            own = OwnQuery(module, n_rows)
            setattr(parent, name, own)
            weights.append(own.weight)
    if len(weights) != config.num_hidden_layers:
        raise UsageError(
            f"query_ttt found {len(weights)} query projections in the {config.num_hidden_layers} layers of "
            f"{type(model).__name__}: give a model whose layers have q_proj or qkv_proj, or leave it out."
        )
    return weights


def span_loss(
    model: Any, kept: Kept, ids: torch.Tensor, start: int, k: int, reading: Reading = "strict"
) -> torch.Tensor:
    """Mean of -ln p(x_{i+1} | x_{0..i}) over i = start … start+k-1. ids: int64 [tokens]."""
    logits = span_logits(model, kept, ids, start, k, reading)
    exact = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(exact), ids[start + 1 : start + k + 1])


def span_logits(
    model: Any, kept: Kept, ids: torch.Tensor, start: int, k: int, reading: Reading = "strict"
) -> torch.Tensor:
    """Logits [k, vocabulary] of a span against keys and values that hold at least its positions."""
    positions = torch.arange(start, start + k, device=ids.device)[None]
    view = _Strict(kept, start + k) if reading == "strict" else _Recomputed(kept, start)
    with _query_only(model, on=reading == "strict"):
        logits: torch.Tensor = model(
            input_ids=ids[None, start : start + k],
            attention_mask=causal(torch, positions, start + k, model.dtype),
            position_ids=positions,
            past_key_values=view,
            use_cache=True,
        ).logits[0]
    return logits


class _Strict:
    """A cache that is read and never written: what a layer would add is dropped."""

    is_compileable = False

    def __init__(self, kept: Kept, length: int) -> None:
        self._kept = kept
        self._length = length

    def update(self, keys: Any, values: Any, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """The first positions of a layer, whatever it offers."""
        keys, values = (tensor[:, :, : self._length] for tensor in self._kept[layer_idx])
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are given, so nothing depends on it."""
        return 0


class _Recomputed(_Strict):
    """A cache cut before the span, with the span's own behind it."""

    def update(self, keys: Any, values: Any, layer_idx: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """What is kept, and then what the layer offers."""
        before = super().update(keys, values, layer_idx)
        return torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)


# ---------------------------------------------------------------- attention with a gradient for q alone

_NAME = "abduce_query_only"


@contextmanager
def _query_only(model: Any, *, on: bool) -> Iterator[None]:
    """Have a model that attends with PyTorch's function attend with ours; one that has another keeps it."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    if not on or before != "sdpa":
        yield
        return
    import_module("transformers").AttentionInterface.register(_NAME, _attend)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *, scaling: float, **_: Any
) -> tuple[torch.Tensor, None]:
    out: torch.Tensor = QueryOnly.apply(query, key, value, attention_mask, scaling)
    return out.transpose(1, 2), None


class QueryOnly(torch.autograd.Function):  # type: ignore[misc]
    """softmax(q K^T · scaling + mask) V, and of its gradient dq alone: dK and dV are never computed.

    q [1, heads, k, head_dim], K and V [1, kv_heads, T, head_dim], mask additive [1, 1, k, T]. A key head at a
    time: no more than [heads/kv_heads · k, T] at once. The probabilities are kept for the backward as far as
    they take no more than twice the room of K and V, and computed once more of the other heads.
    """

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float) -> torch.Tensor:
        """[1, heads, k, head_dim]."""
        exact = torch.promote_types(query.dtype, torch.float32)
        out = query.new_empty(*query.shape[:3], value.shape[3], dtype=exact)
        log_total = query.new_empty(query.shape[1:3], dtype=exact)
        kept: list[torch.Tensor] = []
        room = 2 * (key.nbytes + value.nbytes)
        for heads, h in _groups(query, key):
            scores = _scores(query[0, heads], key[0, h], mask, scaling, exact)
            log_total[heads] = scores.logsumexp(-1)
            p = scores.sub_(log_total[heads, :, None]).exp_()
            out[0, heads] = p @ value[0, h].to(exact)
            if (len(kept) + 1) * p.nbytes <= room:
                kept.append(p)
        ctx.save_for_backward(query, key, value, mask, out, log_total, *kept)
        ctx.scaling = scaling
        return out.to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """dq = scaling · (p ∘ (dO V^T - rowsum(dO ∘ O))) K."""
        query, key, value, mask, out, log_total, *kept = ctx.saved_tensors
        d_out, d_query = grads[0].to(out.dtype), torch.empty_like(query)
        for heads, h in _groups(query, key):
            if h < len(kept):
                p = kept[h]
            else:
                p = _scores(query[0, heads], key[0, h], mask, ctx.scaling, out.dtype)
                p = p.sub_(log_total[heads, :, None]).exp_()
            mean = (d_out[0, heads] * out[0, heads]).sum(-1, keepdim=True)
            d_scores = (d_out[0, heads] @ value[0, h].to(out.dtype).T).sub_(mean).mul_(p)
            d_query[0, heads] = (d_scores @ key[0, h].to(out.dtype) * ctx.scaling).to(query.dtype)
        return d_query, None, None, None, None


def _groups(query: torch.Tensor, key: torch.Tensor) -> Iterator[tuple[slice, int]]:
    """The query heads of each key head."""
    size = query.shape[1] // key.shape[1]
    for h in range(key.shape[1]):
        yield slice(h * size, (h + 1) * size), h


def _scores(query: Any, key: Any, mask: Any, scaling: float, exact: torch.dtype) -> torch.Tensor:
    scores: torch.Tensor = query.to(exact) @ key.to(exact).T * scaling
    return scores if mask is None else scores + mask[0].to(exact)
