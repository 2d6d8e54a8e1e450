"""LocalLeap outside a server: block-wise decoding with any masked diffusion model that attends both ways.

    prompt │ block 1 │ block 2 │ …     blocks are filled from left to right; a token that is written stays

A model is a function from ids to logits. So this is the way to decode LLaDA and Dream, which SGLang does not
serve; SGLang's own loop, for the models that it serves, is in serving/sglang/plugin/localleap.py. The rule is
in serving/kernels/localleap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ..errors import UsageError
from ..kernels import localleap
from ..kernels.localleap import Config

Forward: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""ids int64 [batch, length] → logits [batch, length, vocabulary]; a Hugging Face model is
`lambda ids: model(ids).logits`."""


@dataclass(frozen=True)
class Step:
    """One forward over a block. `rows` int64 [live]: the rows that took part; the rest [live, block]."""

    start: int
    rows: torch.Tensor
    tokens: torch.Tensor
    confidence: torch.Tensor
    masked: torch.Tensor
    chosen: torch.Tensor


@dataclass(frozen=True)
class Decoded:
    """What was written, int64 [batch, gen_length], and what it took, int64 [batch]: forwards and tokens
    chosen by them. Tokens filled in behind an EOS are not chosen."""

    ids: torch.Tensor
    forwards: torch.Tensor
    chosen: torch.Tensor

    @property
    def forwards_per_token(self) -> float:
        """Over all rows; 1 in the sequential order."""
        return float(self.forwards.sum() / self.chosen.sum())


def decode(
    forward: Forward,
    prompts: torch.Tensor,
    config: Config,
    *,
    mask_id: int,
    gen_length: int = 256,
    block: int = 32,
    eos_id: int | None = None,
    shifted: bool = False,
    watch: Callable[[Step], None] | None = None,
) -> Decoded:
    """Fill `gen_length` masks behind prompts of one length, int64 [batch, length].

    With `eos_id` a row ends with the block that holds it, and the rest is filled with it. `shifted`: logits
    at i - 1 are those of position i (Dream). `watch` is shown every forward. A row without masks in the block
    takes no part in its forwards. Raises UsageError if blocks don't divide `gen_length`.
    """
    if block < 1 or gen_length < 1 or gen_length % block:
        raise UsageError(f"LocalLeap: gen_length is a multiple of block, got {gen_length} and {block}.")
    batch, n_prompt = prompts.shape
    ids = torch.cat([prompts, prompts.new_full((batch, gen_length), mask_id)], 1)
    forwards, chosen = ids.new_zeros(batch), ids.new_zeros(batch)
    for start in range(n_prompt, n_prompt + gen_length, block):
        here = ids[:, start : start + block]
        while len(rows := (here == mask_id).any(1).nonzero()[:, 0]):
            step = _step(forward, ids[rows], rows, start, block, mask_id, shifted, config)
            here[rows] = torch.where(step.chosen, step.tokens, here[rows])
            forwards[rows] += 1
            chosen[rows] += step.chosen.sum(1)
            if watch:
                watch(step)
        if eos_id is not None:
            ended = (here == eos_id).any(1)
            ids[ended, start + block :] = eos_id
    return Decoded(ids[:, n_prompt:], forwards, chosen)


def _step(
    forward: Forward,
    ids: torch.Tensor,
    rows: torch.Tensor,
    start: int,
    block: int,
    mask_id: int,
    shifted: bool,
    config: Config,
) -> Step:
    first = start - shifted
    logits = forward(ids)[:, max(first, 0) : first + block]
    if first < 0:  # nothing stands before the first position: its own output serves
        logits = torch.cat([logits[:, :1], logits], 1)
    # A mask that is written would be no progress.
    logits = logits.index_fill(2, torch.tensor([mask_id], device=logits.device), -torch.inf)
    tokens, confidence = (x.view(len(ids), block) for x in localleap.predict(logits.flatten(0, 1)))
    masked = ids[:, start : start + block] == mask_id
    return Step(start, rows, tokens, confidence, masked, localleap.commits(confidence, masked, config))
