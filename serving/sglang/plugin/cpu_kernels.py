"""Member: the speculation kernels of SGLang's CPU build in plain PyTorch, where that build is absent.

SGLang takes the bookkeeping of tree speculation on a CPU from `sgl_kernel`, a compiled package for x86 with
AMX. Without it NGRAM speculation cannot run: these are its kernels by their contract, loops welcome. They are
also the reference that a compiled version must equal. Nothing is replaced where SGLang runs on another device
or has the compiled kernels.
"""

import ctypes
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

PLACES = {
    "assign_req_to_token_pool_cpu": "sglang.srt.mem_cache.allocation",
    "assign_extend_cache_locs_cpu": "sglang.kernels.ops.speculative.cache_locs",
    "fill_accept_out_cache_loc_cpu": "sglang.kernels.ops.speculative.eagle",
    "reconstruct_indices_from_tree_mask": "sglang.kernels.ops.speculative.reconstruct_tree",
    "sgl_verify_tree_greedy_cpu": "sglang.kernels.ops.speculative.spec_tree",
    "copy_all_layer_kv_cache_cpu": "sglang.kernels.ops.kvcache.cache_move",
}
"""Kernel → the module of SGLang that calls it under this name."""


def needed() -> bool:
    """Whether SGLang runs on a CPU without its compiled kernels."""
    from sglang.srt.utils import is_cpu

    return is_cpu() and not hasattr(torch.ops.sgl_kernel, "verify_tree_greedy_cpu")


def register() -> None:
    """Put the kernels where SGLang looks them up. Raises LookupError where it does not look for one."""
    if not needed():
        return
    for name, place in PLACES.items():
        module = import_module(place)
        if not hasattr(module, name):
            raise LookupError(f"{place} does not use {name}")
        setattr(module, name, KERNELS[name])


def verify(scheduler: Any) -> dict[str, Any]:
    """Which kernels are ours. Raises RuntimeError if one is needed and not in force."""
    if not needed():
        return {"kernels": []}
    for name, place in PLACES.items():
        if getattr(import_module(place), name) is not KERNELS[name]:
            raise RuntimeError(f"abduce: the kernel {name} is not in force in {place}")
    return {"kernels": sorted(PLACES)}


def assign_req_to_token_pool(
    rows: torch.Tensor,
    table: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    slots: torch.Tensor,
    width: int,
) -> None:
    """Write the slots, packed request after request, into columns [start, end) of each request's row of the
    table."""
    at = 0
    for row, first, last in zip(rows.tolist(), start.tolist(), end.tolist(), strict=True):
        table[row, first:last] = slots[at : at + last - first].to(table.dtype)
        at += last - first


def assign_extend_cache_locs(
    rows: torch.Tensor,
    table: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    slots: torch.Tensor,
    width: int,
) -> None:
    """Read columns [start, end) of each request's row of the table into `slots`, packed."""
    at = 0
    for row, first, last in zip(rows.tolist(), start.tolist(), end.tolist(), strict=True):
        slots[at : at + last - first] = table[row, first:last]
        at += last - first


def fill_accept_out_cache_loc(
    accept_index: torch.Tensor, slots: torch.Tensor, accepted_slots: torch.Tensor
) -> None:
    """Pack the slots of the accepted nodes (those that are not -1) at the front of `accepted_slots`."""
    accepted = accept_index.flatten()
    accepted = accepted[accepted != -1].long()
    accepted_slots[: accepted.numel()] = slots[accepted]


def reconstruct_indices_from_tree_mask(
    mask: torch.Tensor,
    seq_lens: torch.Tensor,
    positions: torch.Tensor,
    index: torch.Tensor,
    first_child: torch.Tensor,
    next_sibling: torch.Tensor,
    batch: int,
    n: int,
) -> None:
    """Positions and links of the draft trees from their masks.

    `mask` bool [batch · n · n], true where a column's node is the row's ancestor or itself, parents before
    children. Fills positions [batch · n], and index, first_child, next_sibling [batch, n], -1 where there is
    none.
    """
    strict = torch.tril(mask.view(batch, n, n).bool(), diagonal=-1)
    positions.copy_((strict.sum(-1) + seq_lens.view(batch, 1)).view(-1))
    index.copy_(torch.arange(batch * n).view(batch, n))
    order = torch.arange(n)
    parent = torch.where(strict, order, -1).amax(-1)
    child = parent[:, None, :] == order[:, None]
    first_child.copy_(_first(child, n))
    later = (parent[:, None, :] == parent[:, :, None]) & (order > order[:, None]) & (parent >= 0)[:, :, None]
    next_sibling.copy_(_first(later, n))


def _first(found: torch.Tensor, n: int) -> torch.Tensor:
    column = torch.where(found, torch.arange(n), n).amin(-1)
    return torch.where(column < n, column, -1)


def verify_tree_greedy(
    *,
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    target_predict: torch.Tensor,
) -> None:
    """Walk each tree from its root along the child that carries the picked token, until there is none.

    `target_predict` [batch, n] is the token picked at each node. Fills predicts (the tokens picked on the
    way, at the flat index of their node), accept_index [batch, depth] (the nodes of the way) and
    accept_token_num [batch] (how many drafts are on it: the root is not counted).
    """
    tokens, children = candidates.tolist(), retrive_next_token.tolist()
    siblings, flat = retrive_next_sibling.tolist(), retrive_index.tolist()
    for b, picked in enumerate(target_predict.tolist()):
        node, depth = 0, 0
        while True:
            accept_index[b, depth] = flat[b][node]
            predicts[flat[b][node]] = picked[node]
            child = children[b][node]
            while child != -1 and tokens[b][child] != picked[node]:
                child = siblings[b][child]
            if child == -1 or depth + 1 == accept_index.shape[1]:
                break
            node, depth = child, depth + 1
        accept_token_num[b] = depth


def copy_all_layer_kv_cache(
    addresses: torch.Tensor, strides: torch.Tensor, target: torch.Tensor, source: torch.Tensor
) -> None:
    """Copy slot `source[i]` to `target[i]` in every buffer, in order.

    In order is enough: accepted nodes move towards the front, so a slot is read before it is written.
    """
    moves = [(t, s) for t, s in zip(target.tolist(), source.tolist(), strict=True) if t != s]
    for address, stride in zip(addresses.tolist(), strides.tolist(), strict=True):
        for t, s in moves:
            ctypes.memmove(address + t * stride, address + s * stride, stride)


KERNELS: dict[str, Callable[..., None]] = {
    "assign_req_to_token_pool_cpu": assign_req_to_token_pool,
    "assign_extend_cache_locs_cpu": assign_extend_cache_locs,
    "fill_accept_out_cache_loc_cpu": fill_accept_out_cache_loc,
    "reconstruct_indices_from_tree_mask": reconstruct_indices_from_tree_mask,
    "sgl_verify_tree_greedy_cpu": verify_tree_greedy,
    "copy_all_layer_kv_cache_cpu": copy_all_layer_kv_cache,
}
