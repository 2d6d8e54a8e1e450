"""A llama with Engram layers in transformers: to be trained, saved as a folder, and served.

    model = new(tokenizer, layers=(1,), max_order=3, n_heads=4, d_head=16, base=20011, hidden_size=64, …)
    save(model, tokenizer, folder)           config.json, model.safetensors, the tokeniser's files
    Transformers(model=folder)               or AutoModelForCausalLM after `register()`; SGLang by the plug-in

An address needs the N - 1 tokens before: they are kept in the cache as one more layer, whose keys are the
token ids. So they go wherever keys and values go, into slots, copies and beams.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
)

from ..engram_folder import ARCHITECTURE, Shape, shape_of
from ..errors import UsageError
from ..kernels.engram.hashing import layouts_of, map_of
from ..kernels.engram.module import Addresses, Engram
from . import engram_config
from .engram_config import EngramConfig


class EngramLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """Remembers, then attends."""

    engram: Engram

    def forward(self, hidden_states: torch.Tensor, *args: Any, engram_rows: Any, **kwargs: Any) -> Any:
        """`engram_rows`: layer → rows [batch, tokens, columns]."""
        hidden_states = self.engram(hidden_states, engram_rows[self.self_attn.layer_idx])
        return super().forward(hidden_states, *args, **kwargs)


class EngramLlamaModel(LlamaModel):  # type: ignore[misc]
    """The layers."""

    config_class = EngramConfig

    def __init__(self, config: EngramConfig) -> None:
        super().__init__(config)
        shape = shape_of(config.to_dict())
        found = layouts_of(shape)
        unknown = torch.zeros(config.vocab_size, dtype=torch.int64)  # until the weights are loaded
        self.shape, self.addresses = shape, Addresses(unknown, found, pad=shape.pad)
        for i, layout in zip(shape.layers, found, strict=True):
            self.layers[i] = EngramLayer(config, i)
            self.layers[i].engram = Engram(layout, config.hidden_size, shape.d_head, convolve=False)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As a llama's. Raises ValueError for embeddings without ids, and for padding that
        moves a text off its positions."""
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("Engram reads token ids: give input_ids, and no inputs_embeds.")
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = DynamicCache()
        if torch.is_tensor(attention_mask) and attention_mask.dim() == 2:
            there = attention_mask if past_key_values is not None else attention_mask[:, :1]
            if not bool(there.all()):
                raise ValueError("Engram reads the tokens before: give texts of one length, without padding.")
        if position_ids is None:
            begun = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = begun + torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        near = self._near(input_ids, position_ids.expand_as(input_ids), past_key_values)
        rows = [found.view(*input_ids.shape, -1) for found in self.addresses.of(near.flatten(0, 1))]
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            engram_rows=dict(zip(self.shape.layers, rows, strict=True)),
            **kwargs,
        )

    def _near(self, ids: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """Each token and the N - 1 before it, int64 [batch, tokens, N]; -1 before the text."""
        known = ids
        if cache is not None:
            if isinstance(cache, DynamicCache) and len(cache.layers) == self.config.num_hidden_layers:
                cache.layers.append(DynamicLayer())
            column = ids[:, None, :, None]
            known = cache.update(column, column, self.config.num_hidden_layers)[0][:, 0, :, 0]
        else:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        back = positions[..., None] - torch.arange(self.shape.max_order, device=ids.device)
        found = known.gather(1, back.clamp_min(0).flatten(1)).view(back.shape)
        return found.masked_fill(back < 0, -1)


class EngramLlamaForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """The language model."""

    config_class = EngramConfig

    def __init__(self, config: EngramConfig) -> None:
        super().__init__(config)
        self.model = EngramLlamaModel(config)
        self.post_init()


def register() -> None:
    """Let transformers know the model by its folder."""
    engram_config.register()
    AutoModelForCausalLM.register(EngramConfig, EngramLlamaForCausalLM, exist_ok=True)


def new(
    tokenizer: Any,
    *,
    layers: Sequence[int],
    max_order: int,
    n_heads: int,
    d_head: int,
    base: int,
    pad: int = 0,
    seed: int = 0,
    **llama: Any,
) -> EngramLlamaForCausalLM:
    """A model that has learnt nothing yet, for a tokeniser of transformers; `llama` as for `LlamaConfig`."""
    size = llama.setdefault("vocab_size", len(tokenizer))
    token_map, n_compressed = map_of(tokenizer, size)
    shape = Shape(tuple(layers), max_order, n_heads, d_head, base, n_compressed, pad, seed)
    config = EngramConfig(engram=shape.told(), architectures=[ARCHITECTURE], **llama)
    shape_of(config.to_dict())
    model = EngramLlamaForCausalLM(config)
    model.model.addresses.token_map.copy_(token_map)
    return model


def save(model: EngramLlamaForCausalLM, tokenizer: Any, folder: str | Path) -> Path:
    """The folder of a model. Raises UsageError if the tokeniser is not the one that the tables are addressed
    by."""
    check(model.model.addresses.token_map, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def check_folder(model: EngramLlamaForCausalLM, folder: str | Path) -> None:
    """Raise UsageError unless the folder's tokeniser is the one that the model's tables are addressed by."""
    check(model.model.addresses.token_map, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


def check(token_map: torch.Tensor, tokenizer: Any) -> None:
    """Raise UsageError unless the map is this tokeniser's: another one would read other rows."""
    found, _ = map_of(tokenizer, len(token_map))
    if not torch.equal(found, token_map.cpu()):
        raise UsageError(
            "The tables are addressed by another tokeniser than the one beside them. Put back the tokeniser "
            "that the model was trained with."
        )
