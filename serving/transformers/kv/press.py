"""EMS on the cache of a Hugging Face model, with the interface of kvpress and without kvpress.

    with EMSPress(compression_ratio=0.75)(model):
        answer = model.generate(**inputs)

When a text has been read into an empty cache, each layer's keys and values are replaced by the compressed
ones, before anything is generated. Positions go on from the text's own length: `generate` sees to that, and a
loop of your own gives `position_ids`. A second part of a text, and what is generated, is not compressed.

`compression_ratio` is the share that goes; `score` and `compress` have kvpress's arguments. What keys and
values alone cannot say, logits raised by the size of a class, is left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...errors import UsageError
from ...kernels import ems
from ..model import demand_plain_layers
from .reading import n_kept
from .rotary import demand, demand_merged_keys, rotary_of


@dataclass
class EMSPress:
    """Batches without padding only: rows of one length."""

    compression_ratio: float = 0.0
    window_size: int = 32
    tau: float = 0.5
    gamma: float = 0.98
    rho: int = 8
    merge_keys: bool = True
    pool: int = 1
    unrotated: bool = False  # keys are merged as they were before their positions were rotated in

    def __post_init__(self) -> None:
        if not 0 <= self.compression_ratio < 1:
            raise UsageError(
                f"compression_ratio must be in [0, 1), got {self.compression_ratio}. "
                "Write 0.75 to keep a quarter."
            )
        demand_merged_keys(self.unrotated, self.merge_keys)

    @contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        """Inside, texts that `model` reads from their start are compressed.

        Raises UsageError for a model without plain full attention.
        """
        demand_plain_layers(model.config, model.config.get_text_config().max_position_embeddings)
        layers = model.get_decoder().layers
        hooks = [each.self_attn.register_forward_hook(self.forward_hook, with_kwargs=True) for each in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def forward_hook(self, module: Any, inputs: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """After an attention layer: compress what its cache holds, if it holds just what was read now."""
        cache = kwargs.get("past_key_values")
        hidden = kwargs["hidden_states"]
        if cache is None or self.compression_ratio == 0:
            return output
        layer = cache.layers[module.layer_idx]
        if layer.keys.shape[2] == hidden.shape[1] > 1:
            layer.keys, layer.values = self.compress(
                module, hidden, layer.keys, layer.values, output[1], kwargs
            )
        return output

    def score(
        self,
        module: Any,
        hidden_states: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attentions: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """The global-local score [batch, kv_heads, n] of keys [batch, kv_heads, n, head_dim]; the queries are
        computed anew from hidden_states [batch, n_q, hidden], the last n_q of the n positions."""
        config = ems.Config(budget=self.window_size + 1, window=self.window_size, pool=self.pool)
        queries = _queries(module, hidden_states, kwargs["position_embeddings"])
        rows = zip(queries, keys.transpose(1, 2), strict=True)
        return torch.stack([ems.score(q, k, config, module.scaling) for q, k in rows])

    def compress(
        self,
        module: Any,
        hidden_states: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attentions: torch.Tensor | None,
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [batch, kv_heads, kept, head_dim], ⌊(1 - compression_ratio) · n⌋ of n.

        With compression_ratio 0 they are the very tensors that came in.
        """
        if self.compression_ratio == 0:
            return keys, values
        config = ems.Config(
            n_kept(keys.shape[2], 1 - self.compression_ratio, self.window_size),
            self.window_size,
            tau=self.tau,
            gamma=self.gamma,
            rho=self.rho,
            merge_keys=self.merge_keys,
        )
        scores = self.score(module, hidden_states, keys, values, attentions, kwargs)
        rows = zip(keys.transpose(1, 2), values.transpose(1, 2), scores, strict=True)
        turned = [self._rotary(module, kwargs, i) for i in range(len(keys))]
        kept = [ems.compress(k, v, s, config, rotary=t) for (k, v, s), t in zip(rows, turned, strict=True)]
        return (
            torch.stack([each.k for each in kept]).transpose(1, 2).contiguous(),
            torch.stack([each.v for each in kept]).transpose(1, 2).contiguous(),
        )

    def _rotary(self, module: Any, kwargs: dict[str, Any], row: int) -> ems.Rotary | None:
        return demand(rotary_of(module, kwargs["position_embeddings"], row)) if self.unrotated else None


def _queries(module: Any, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """[batch, n, heads, head_dim], rotated as the layer rotates them."""
    if not hasattr(module, "q_proj"):
        raise UsageError(
            f"EMSPress does not know how {type(module).__name__} makes its queries: it has no q_proj."
        )
    q = module.q_proj(hidden).view(*hidden.shape[:-1], -1, module.head_dim)
    if hasattr(module, "q_norm"):
        q = module.q_norm(q)
    cos, sin = (x.unsqueeze(2) for x in rotary)
    first, second = q.chunk(2, -1)
    return q * cos + torch.cat([-second, first], -1) * sin
