"""Member: the attention backend `abduce_tree`, SGLang's torch_native with a tree of drafts in one forward.

SGLang's torch_native backend knows no tree mask (in TARGET_VERIFY its batch has no extend lengths, so it
cannot even start). Here each request's n draft nodes attend to the committed prefix and to their own
ancestors:

    out_i = softmax(q_i · [K_prefix, K_nodes] · scale + log [1, M_i]) · [V_prefix, V_nodes]

Prefill and plain decoding are torch_native's own. For the CPU; selected with `--attention-backend
abduce_tree`.
"""

from typing import Any

import torch
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS, register_attention_backend
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.server_args import add_attention_backend_choices

NAME = "abduce_tree"


def register() -> None:
    """Offer the backend under its name."""
    if NAME not in ATTENTION_BACKENDS:
        add_attention_backend_choices([NAME])
    register_attention_backend(NAME)(TreeAttention)


def verify(scheduler: Any) -> dict[str, Any]:
    """Whether this server uses it. Raises RuntimeError if it is not on offer."""
    if ATTENTION_BACKENDS.get(NAME) is not TreeAttention:
        raise RuntimeError(f"abduce: the attention backend {NAME} is not registered")
    return {"used": isinstance(scheduler.tp_worker.model_runner.attn_backend, TreeAttention)}


class TreeAttention(TorchNativeAttnBackend):
    """torch_native, and draft trees by their mask. Raises ValueError for a model with sliding windows."""

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        if self.use_sliding_window_kv_pool or model_runner.sliding_window_size is not None:
            raise ValueError(f"{NAME} does not serve models with sliding windows.")

    def forward_extend(
        self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True
    ) -> Any:
        """Attention of the batch's new tokens, q [tokens, heads · head_dim] → [tokens, heads ·
        v_head_dim]."""
        if not forward_batch.forward_mode.is_target_verify():
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        if save_kv_cache:
            place = KVWriteLoc(forward_batch.out_cache_loc, None)
            self.token_to_kv_pool.set_kv_buffer(layer, place, k, v)
        n = forward_batch.spec_info.draft_token_num
        masks = forward_batch.spec_info.custom_mask.view(-1, n, n)
        keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        values = self.token_to_kv_pool.get_value_buffer(layer.layer_id)
        queries = q.view(-1, n, layer.tp_q_head_num, layer.qk_head_dim)
        out = q.new_empty(q.shape[0], layer.tp_q_head_num * layer.v_head_dim)
        rows = forward_batch.req_pool_indices.tolist()
        for i, (row, prefix) in enumerate(zip(rows, forward_batch.seq_lens.tolist(), strict=True)):
            slots = self.req_to_token_pool.req_to_token[row, : prefix + n].long()
            attended = tree_attention(queries[i], keys[slots], values[slots], masks[i], layer.scaling)
            out[i * n : (i + 1) * n] = attended.reshape(n, -1)
        return out


def tree_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention of n draft nodes over a prefix and themselves.

    q [n, heads, head_dim]; k, v [prefix + n, kv_heads, head_dim], the nodes last; mask bool [n, n], true
    where the column's node is the row's ancestor or itself. Returns [n, heads, v_head_dim].
    """
    n = q.shape[0]
    visible = torch.ones(n, k.shape[0], dtype=torch.bool, device=q.device)
    visible[:, k.shape[0] - n :] = mask
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.to(q.dtype).transpose(0, 1)[None],
        v.to(q.dtype).transpose(0, 1)[None],
        attn_mask=visible,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)
