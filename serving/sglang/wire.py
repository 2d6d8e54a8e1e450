"""What travels to SGLang's `/generate` and back: request bodies, and replies as our types."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..errors import EngineError, TransientError
from ..flow import Completion, Sampling
from ..seeds import derive
from .tokens import Ids

_OURS = frozenset(  # said by Generate and Sampling, by those names or others
    {"rid", "text", "input_ids", "input_embeds", "stream", "return_logprob", "logprob_start_len"}
    | {"top_logprobs_num", "sampling_params", "temperature", "top_p", "top_k", "stop", "n"}
    | {"max_new_tokens", "max_tokens", "no_stop_trim", "sampling_seed", "seed", "beam_width"}
)
_PARAMS = frozenset(  # fields of SGLang's sampling_params; all others stand beside them
    {"stop_token_ids", "stop_regex", "min_p", "frequency_penalty", "presence_penalty"}
    | {"repetition_penalty", "min_new_tokens", "json_schema", "regex", "ebnf", "structural_tag"}
    | {"ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "stream_interval"}
    | {"logit_bias", "custom_params", "watermark"}
)
_BENDING = frozenset(  # after these the log-probs of drawn tokens are no longer the model's own
    {"frequency_penalty", "presence_penalty", "repetition_penalty", "min_new_tokens", "logit_bias"}
    | {"json_schema", "regex", "ebnf", "structural_tag", "watermark", "custom_logit_processor", "ignore_eos"}
)


def parameters(sampling: Sampling, length: int) -> dict[str, Any]:
    """`sampling_params` of a request for at most `length` tokens. Defaults of a model's own generation
    configuration do not apply: what is not asked for is off."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "max_new_tokens": length,
        "stop": list(sampling.stop),
        "no_stop_trim": True,
    }


def divide(extra: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """`Generate.extra` as sampling parameters, as fields beside them, and whether they bend the distribution.

    Raises EngineError for a field that a request says in its own words."""
    for key in extra:
        if key in _OURS:
            raise EngineError(f"extra cannot set {key!r}: say it in Generate or its Sampling.")
    params = {key: value for key, value in extra.items() if key in _PARAMS}
    beside = {key: value for key, value in extra.items() if key not in _PARAMS}
    return params, beside, not _BENDING.isdisjoint(extra)


def drawing(
    ids: Ids, params: dict[str, Any], beside: Mapping[str, Any], n: int, seed: int | None
) -> dict[str, Any]:
    """A request for `n` samples of one prompt, each with a seed of its own."""
    each = [params] * n
    if seed is not None:
        each = [params | {"sampling_seed": derive(seed, i) % 2**31} for i in range(n)]
    if n == 1:
        return {**beside, "input_ids": ids, "sampling_params": each[0]}
    return {**beside, "input_ids": [ids] * n, "sampling_params": each}


def rids(rid: str, n: int) -> list[str]:
    """Names for the `n` prompts of the request `rid`."""
    return [f"{rid}{i:04x}" for i in range(n)]


def single(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A request of several prompts as requests of one each."""
    params, scored = body["sampling_params"], body.get("token_ids_logprob")
    several = [{**body, "input_ids": ids} for ids in body["input_ids"]]
    for i, each in enumerate(several):
        if isinstance(params, list):
            each["sampling_params"] = params[i]
        if scored and not isinstance(scored[0], int):
            each["token_ids_logprob"] = scored[i]
    return several


def completions(said: Sequence[Mapping[str, Any]], *, logprobs: bool, top: int) -> list[Completion]:
    """Samples as a server tells them."""
    return [_completion(each, logprobs=logprobs, top=top) for each in said]


def _completion(said: Mapping[str, Any], *, logprobs: bool, top: int) -> Completion:
    """The token that ends a turn is counted, but is no part of text, ids or log-probs."""
    ids: Sequence[int] = said["output_ids"]
    told = said["meta_info"]
    finish, stop = end(told["finish_reason"] or {}, said["text"])
    kept = ids[:-1] if finish == "eos" and ids else ids
    n = len(kept)
    return Completion(
        said["text"],
        tuple(kept),
        tuple([each[0] for each in told["output_token_logprobs"][:n]]) if logprobs else (),
        finish,
        stop,
        len(ids),
        tuple([best(each) for each in told["output_top_logprobs"][:n]]) if top else (),
    )


def best(told: Sequence[Sequence[Any]]) -> tuple[float, ...]:
    """The log-probs at one place, falling."""
    return tuple(sorted((each[0] for each in told), reverse=True))


def end(reason: Mapping[str, Any], text: str) -> tuple[Literal["eos", "stop", "length"], str]:
    """How a reply ended, and the stop string it ends with. Raises TransientError where the server gave up."""
    kind, matched = reason.get("type"), reason.get("matched")
    if kind == "abort":
        raise TransientError(f"SGLang aborted the request: {reason.get('message') or 'no reason given'}.")
    if kind == "length":
        return "length", ""
    if isinstance(matched, str):
        return "stop", matched if matched in text else ""
    return "eos", ""
