"""The model class that SGLang finds for an Engram model: its llama, with tables in the host's memory.

    ids ─► addresses ─► fetch begins, a thread a table        before the first layer
    layer l:  h ← h + gate(h, W e),  attention, MLP           e is taken where it is needed

The tables stay where safetensors put them, in the memory of the host; with a GPU they are pinned.
`engram_kept` of the configuration is how many rows of each stay on the GPU:
--json-model-override-args '{"engram_kept": 100000}'.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.model_executor.forward_context import get_req_to_token_pool, get_token_to_kv_pool
from sglang.srt.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from torch import nn

from ...engram_folder import shape_of
from ...kernels.engram.hashing import layouts_of
from ...kernels.engram.host_table import HostTable
from ...kernels.engram.module import Addresses, Engram
from .engram_slots import SlotTokens, in_line, in_trees


class Layer(LlamaDecoderLayer):
    """One layer, its residual added as it is written: memory reads and changes the whole of it."""

    def __init__(self, config: Any, i: int, quant_config: Any, prefix: str, engram: Engram | None) -> None:
        super().__init__(config, i, quant_config=quant_config, prefix=prefix, stage_boundaries=False)
        self.engram = engram

    def forward(self, positions: Any, hidden: Any, forward_batch: Any, e: torch.Tensor | None = None) -> Any:
        """hidden [tokens, d]; e [tokens, columns · d_head] at a layer with a table."""
        if self.engram is not None:
            assert e is not None
            hidden = self.engram(hidden[None], None, e.to(hidden.dtype))[0]
        seen = self.self_attn(positions, self.input_layernorm(hidden), forward_batch)
        hidden = hidden + seen
        return hidden + self.mlp(self.post_attention_layernorm(hidden), forward_batch)


class Model(nn.Module):
    """The layers, the tables and the tokens of the slots."""

    def __init__(self, config: Any, quant_config: Any, prefix: str) -> None:
        super().__init__()
        self.config, self.shape = config, shape_of(config.to_dict())
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, quant_config=quant_config, prefix=f"{prefix}.embed_tokens"
        )
        self.start_layer, self.end_layer = 0, config.num_hidden_layers
        found = layouts_of(self.shape)
        self.addresses = Addresses(
            torch.zeros(config.vocab_size, dtype=torch.int64), found, pad=self.shape.pad
        )
        sizes = (config.hidden_size, self.shape.d_head)
        engrams = {
            i: Engram(layout, *sizes, convolve=False, own_table=False)
            for i, layout in zip(self.shape.layers, found, strict=True)
        }
        self.layers = nn.ModuleList(
            Layer(config, i, quant_config, f"{prefix}.layers.{i}", engrams.get(i))
            for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.tables: dict[int, HostTable] = {}
        self.slots: SlotTokens | None = None
        self.n_tokens = 0

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, forward_batch: Any) -> torch.Tensor:
        """Hidden states [tokens, d] after the final norm."""
        tickets = {}
        if len(ids):
            rows = self.addresses.of(self.near(ids, positions, forward_batch))
            for i, found in zip(self.shape.layers, rows, strict=True):
                tickets[i] = self.tables[i].prefetch(found)
            self.n_tokens += len(ids)
        hidden = self.embed_tokens(ids)
        for i, layer in enumerate(self.layers if len(ids) else ()):
            e = self.tables[i].take(tickets[i]) if i in tickets else None
            hidden = layer(positions, hidden, forward_batch, e)
        return self.norm(hidden) if len(ids) else hidden

    def near(self, ids: torch.Tensor, positions: torch.Tensor, forward_batch: Any) -> torch.Tensor:
        """Each new token and the N - 1 before it, int64 [tokens, N]."""
        if self.slots is None:
            self.slots = SlotTokens(len(get_token_to_kv_pool().get_key_buffer(0)), ids.device)
        self.slots.write(forward_batch.out_cache_loc, ids)
        mode, rows = forward_batch.forward_mode, forward_batch.req_pool_indices
        order, n_each = self.shape.max_order, None
        if mode.is_target_verify():
            n = n_each = forward_batch.spec_info.draft_token_num
            n_before = forward_batch.seq_lens
            masks = tree_masks(forward_batch.spec_info.custom_mask, n_before, n)
            places = in_trees(masks, positions.view(-1, n), n_before, order)
        else:
            places = in_line(positions, order)
            if mode.is_extend():
                n_each = forward_batch.extend_seq_lens
        if n_each is not None:
            rows = rows.repeat_interleave(n_each)
        return self.slots.near(get_req_to_token_pool().req_to_token, rows, places)

    def put_table(self, layer: int, table: torch.Tensor) -> None:
        """Take a layer's table, in place of the one that is there."""
        sizes = dict(zip(self.shape.layers, self.addresses.layouts, strict=True))
        wanted = (sizes[layer].n_rows, self.shape.d_head) if layer in sizes else None
        if wanted != tuple(table.shape):
            raise ValueError(
                f"abduce: the table of layer {layer} is {tuple(table.shape)}, and config.json says {wanted}: "
                "the folder's parts are of different models"
            )
        if layer in self.tables:
            self.tables[layer].close()
        kept = min(self.config.engram_kept, len(table))
        device = self.addresses.token_map.device
        self.tables[layer] = HostTable(table.cpu(), device=device, n_kept=kept)


class EngramLlamaForCausalLM(LlamaForCausalLM):
    """The language model, by the name that config.json has for it."""

    def _init_model(self, config: Any, quant_config: Any = None, prefix: str = "") -> Model:
        return Model(config, quant_config, prefix)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, forward_batch: Any, **_: Any) -> Any:
        """Logits of the batch."""
        hidden = self.model(input_ids, positions, forward_batch)
        return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch, None)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        """The llama's by SGLang; the tables to the host; the map of the tokens as it is."""
        loaded = super().load_weights(self._rest(weights))
        missing = [f"layer {i}" for i in self.model.shape.layers if i not in self.model.tables]
        missing += ["the tokens' map"] * (not self.model.addresses.token_map.any())
        if missing:
            raise ValueError(f"abduce: the folder lacks {', '.join(missing)}: save the model again")
        return loaded

    def _rest(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in weights:
            parts = name.split(".")
            if parts[-2:] == ["engram", "table"]:
                self.model.put_table(int(parts[2]), weight)
            elif name == "model.addresses.token_map":
                self.model.addresses.token_map.copy_(weight)
            else:
                yield name, weight


def tree_masks(mask: torch.Tensor, n_before: torch.Tensor, n: int) -> torch.Tensor:
    """The trees' part of SGLang's mask, bool [trees, n, n]: it has columns for the tokens before, or not."""
    trees = len(n_before)
    if mask.numel() == trees * n * n:
        return mask.view(trees, n, n).bool()
    found, begin = [], 0
    for length in n_before.tolist():
        size = n * (length + n)
        found.append(mask[begin : begin + size].view(n, -1)[:, length:])
        begin += size
    return torch.stack(found).bool()
