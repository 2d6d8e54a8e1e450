"""By what SGLang's model turns its keys, for what has to take it off again."""

from collections.abc import Callable
from typing import Any

from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.rope_variant import Llama3RotaryEmbedding
from sglang.srt.layers.rotary_embedding.yarn import YaRNScalingRotaryEmbedding

from ...kernels.ems import Rotary

KNOWN = (RotaryEmbedding, Llama3RotaryEmbedding, YaRNScalingRotaryEmbedding)
"""A token's angle depends on its place in the row, and on nothing else."""


def rotary_of(model: Any) -> Callable[[], Rotary] | None:
    """The tables, as they are when asked for: SGLang lengthens them. None if layers differ, or are not turned
    by halves at all."""
    layers = [part for part in model.modules() if any(isinstance(x, RadixAttention) for x in part.children())]
    found = [getattr(layer, "rotary_emb", None) for layer in layers]
    only: Any = found[0] if found else None
    if type(only) not in KNOWN or not only.is_neox_style or any(each is not only for each in found):
        return None

    def tables() -> Rotary:
        return Rotary(*only.cos_sin_cache.chunk(2, -1))

    return tables
