"""What travels to SGLang's `/generate` and back: request bodies, and replies as our types."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..errors import EngineError, TransientError
from ..flow import Completion, Sampling

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


def single(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A request of several prompts as requests of one each."""
    params = body["sampling_params"]
    return [
        {**body, "input_ids": ids, "sampling_params": params[i] if isinstance(params, list) else params}
        for i, ids in enumerate(body["input_ids"])
    ]


def completion(said: Mapping[str, Any], *, logprobs: bool, top: int) -> Completion:
    """One sample. The token that ends a turn is counted, but is no part of text, ids or log-probs."""
    ids: Sequence[int] = said["output_ids"]
    told = said["meta_info"]
    finish, stop = _end(told["finish_reason"] or {}, said["text"])
    kept = ids[:-1] if finish == "eos" and ids else ids
    n = len(kept)
    return Completion(
        said["text"],
        tuple(kept),
        tuple([each[0] for each in told["output_token_logprobs"][:n]]) if logprobs else (),
        finish,
        stop,
        len(ids),
        tuple([_best(each) for each in told["output_top_logprobs"][:n]]) if top else (),
    )


def scores(said: Mapping[str, Any], n: int, *, top: int = 0) -> tuple[tuple[float, ...], Any]:
    """Log-probs of the last `n` input tokens, and the `top` best ones at each of them."""
    told = said["meta_info"]
    if told["finish_reason"] and told["finish_reason"]["type"] == "abort":
        _end(told["finish_reason"], "")
    logprobs = tuple([each[0] for each in told["input_token_logprobs"][-n:]])
    if len(logprobs) != n or None in logprobs:
        raise EngineError(f"SGLang told {len(logprobs)} log-probs of {n} tokens.")
    best = tuple([_best(each) for each in told["input_top_logprobs"][-n:]]) if top else ()
    return logprobs, best


def _best(told: Sequence[Sequence[Any]]) -> tuple[float, ...]:
    return tuple(sorted((each[0] for each in told), reverse=True))


def _end(reason: Mapping[str, Any], text: str) -> tuple[Literal["eos", "stop", "length"], str]:
    kind, matched = reason.get("type"), reason.get("matched")
    if kind == "abort":
        raise TransientError(f"SGLang aborted the request: {reason.get('message') or 'no reason given'}.")
    if kind == "length":
        return "length", ""
    if isinstance(matched, str):
        return "stop", matched if matched in text else ""
    return "eos", ""
