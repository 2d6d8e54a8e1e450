"""What others offer for `paged.decode`: each KV head of a sequence is a sequence of one KV head to them.

Lists are laid out once for a tensor of slots, as a server does it once a step for all layers.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch


def flashinfer(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor, scale: float, **_: Any
) -> torch.Tensor:
    """FlashInfer's batch decode, over pages of one token."""
    run = _planned(slots, k_cache.shape[1], q.shape[1], q.shape[2], q.dtype, scale)
    out = run(_by_head(q, k_cache.shape[1]), (_alone(k_cache)[:, None], _alone(v_cache)[:, None]))
    return out.view(*q.shape[:2], -1)


def sglang(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots: torch.Tensor, scale: float, **_: Any
) -> torch.Tensor:
    """The decode attention of SGLang's Triton backend, with its default of 8 splits."""
    from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd

    n_splits, n_kv = 8, k_cache.shape[1]
    queries = _by_head(q, n_kv)
    first, indices = _spread(slots, n_kv)
    out = queries.new_empty(*queries.shape[:2], v_cache.shape[2])
    sums = queries.new_empty(*queries.shape[:2], n_splits, v_cache.shape[2], dtype=torch.float32)
    splits = torch.full((len(queries),), n_splits, dtype=torch.int32, device=q.device)
    decode_attention_fwd(
        queries, _alone(k_cache), _alone(v_cache), out, first, indices, sums, sums.new_empty(sums.shape[:3]),
        splits, n_splits, scale, 1.0, 1.0,
    )  # fmt: skip
    return out.view(*q.shape[:2], -1)


@lru_cache(maxsize=1)
def _planned(
    slots: torch.Tensor, n_kv: int, n_heads: int, d: int, dtype: torch.dtype, scale: float
) -> Callable[..., torch.Tensor]:
    from flashinfer import BatchDecodeWithPagedKVCacheWrapper

    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=slots.device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
    first, indices = _spread(slots, n_kv)
    wrapper.plan(
        first, indices, torch.ones_like(first[1:]), n_heads // n_kv, 1, d, 1,
        q_data_type=dtype, kv_data_type=dtype, sm_scale=scale,
    )  # fmt: skip
    run: Callable[..., torch.Tensor] = wrapper.run
    return run


@lru_cache(maxsize=1)
def _spread(slots: torch.Tensor, n_kv: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the list of each sequence and head begins, and the lists end to end, of caches `_alone`."""
    listed = slots.expand(-1, n_kv, -1).flatten(0, 1)
    head = torch.arange(len(listed), device=slots.device)[:, None] % n_kv
    lengths = (listed >= 0).sum(1)
    first = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return first, (listed * n_kv + head)[listed >= 0].to(torch.int32)


def _alone(cache: torch.Tensor) -> torch.Tensor:
    """[slots · kv_heads, 1, head_dim]: the same memory, a KV head to a slot."""
    return cache.flatten(0, 1)[:, None]


def _by_head(q: torch.Tensor, n_kv: int) -> torch.Tensor:
    """[batch · kv_heads, group, head_dim]."""
    return q.reshape(len(q) * n_kv, -1, q.shape[2])
