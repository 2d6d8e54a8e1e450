"""Member: the diffusion algorithm LocalLeap, for models that SGLang decodes block by block (LLaDA2, SDAR).

Selected with `--dllm-algorithm LocalLeap --dllm-algorithm-config FILE`, a YAML mapping of

    anchor_threshold: 0.9
    relaxed_threshold: 0.75
    radius: 4
    block_size: 32            # if it is not the model's own

These are the paper's values for another model, which saw context on both sides: measure your own
(`serving/transformers/localleap_calibration.py`). The rule is in serving/kernels/localleap. A block takes its
denoising forwards and one more, which stores the keys and values of the final tokens. Tokens are the most
likely ones: a request that asks for another temperature, or for a grammar, is refused.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from sglang.srt.dllm.algorithm import algo_name_to_cls
from sglang.srt.dllm.algorithm.base import DllmAlgorithm
from sglang.srt.dllm.config import DllmConfig
from sglang.srt.runtime_context import get_exec

from ...kernels import localleap

NAME = "LocalLeap"
GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")


def register() -> None:
    """Offer the algorithm."""
    algo_name_to_cls[NAME] = LocalLeap


def verify(scheduler: Any) -> dict[str, Any]:
    """Whether this server uses it, its settings and counts. Raises RuntimeError if it is not in force."""
    if algo_name_to_cls.get(NAME) is not LocalLeap:
        raise RuntimeError(f"abduce: the diffusion algorithm {NAME} is not registered")
    if get_exec().dllm.dllm_algorithm != NAME:
        return {"used": False}
    algorithm = scheduler.tp_worker.dllm_algorithm
    if not isinstance(algorithm, LocalLeap):
        raise RuntimeError(f"abduce: {NAME} was asked for, and {type(algorithm).__name__} decodes")
    return {"used": True, **algorithm.table()}


def rule_of(told: Mapping[str, Any]) -> localleap.Config:
    """The rule of a configuration file. Raises ValueError that says what to write instead."""
    known = {field.name: type(field.default) for field in fields(localleap.Config)}
    for key, value in told.items():
        if key not in known and key != "block_size":
            raise ValueError(f"LocalLeap has no setting {key!r}. Write {', '.join(known)} or block_size.")
        whole = known.get(key, int) is int
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            kind = "a whole number" if whole else "a number"
            raise ValueError(f"LocalLeap: {key} is {kind}, not {value!r}")
    if told.get("block_size", 1) < 1:
        raise ValueError(f"LocalLeap: block_size is 1 or more, not {told['block_size']}")
    return localleap.Config(**{key: value for key, value in told.items() if key in known})


class LocalLeap(DllmAlgorithm):
    """Without state between forwards, so both of SGLang's loops (`--dllm-fdfo` or not) give one text."""

    def __init__(self, config: DllmConfig) -> None:
        super().__init__(config)
        self.rule = rule_of(config.algorithm_config)
        self._forwards = self._blocks = self._tokens = 0

    @classmethod
    def configure_server_args(cls, server_args: Any) -> None:
        """Refuse a bad configuration before the model is loaded."""
        config = DllmConfig.from_server_args(server_args)
        if config is not None:
            rule_of(config.algorithm_config)

    @classmethod
    def validate_request(cls, req: Any) -> str | None:
        """Only the most likely token is ever written (SGLang reads temperature 0 as top_k 1)."""
        params = req.sampling_params
        if params.top_k != 1:
            return "LocalLeap writes the most likely tokens: ask for temperature 0."
        if any(getattr(params, name, None) is not None for name in GRAMMARS):
            return "LocalLeap fills a block in any order and follows no grammar: ask without one."
        return None

    def step(self, forward_batch: Any, full_logits: torch.Tensor, states: list[Any]) -> list[bool]:
        """Write what the rule commits; for each request whether no mask was left before."""
        shape = forward_batch.batch_size, self.block_size
        ids = forward_batch.input_ids.view(shape)
        masked = ids == self.mask_id
        if forward_batch.dllm_prompt_mask is not None:  # a mask that the prompt says is text
            masked = masked & ~forward_batch.dllm_prompt_mask
        full_logits[:, self.mask_id] = -torch.inf  # a mask that is written would be no progress
        tokens, confidence = (x.view(shape) for x in localleap.predict(full_logits))
        chosen = localleap.commits(confidence, masked, self.rule)
        # In place: a CUDA graph reads these ids.
        forward_batch.input_ids.copy_(torch.where(chosen, tokens, ids).view(-1))
        left, written = torch.stack([masked.sum(1), chosen.sum(1)]).tolist()  # the one wait for the device
        done = [n == 0 for n in left]
        self._forwards += len(done)
        self._blocks += sum(done)
        self._tokens += sum(written)
        return done

    def table(self) -> dict[str, Any]:
        """Settings, and counts since the start, each request's forwards for itself. `forwards` includes the
        last one of each block, and those that read a prompt, which are blocks without a mask."""
        return {
            **{field.name: getattr(self.rule, field.name) for field in fields(self.rule)},
            "forwards": self._forwards,
            "blocks": self._blocks,
            "tokens": self._tokens,
        }
