"""Log-probs of texts after a prompt: what is asked of `/generate`, and what it tells.

    read   the prompt, and each text without its last token, since nothing follows that
    told   a text's tokens but the last as tokens of the input; the last as a token that may come next

So a text of one token costs the last prompt token alone: its logits tell of the text's first token. All of
the prompt before it may be cached.
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from ..errors import EngineError
from ..flow import Sampling
from . import wire
from .tokens import Ids

NOTHING_DRAWN = wire.parameters(Sampling(temperature=0), 0)
_NO_FLOAT32 = -1e30
"""Below this SGLang means a probability that was 0 in float32: beside requests that sample, a server without
SGLANG_RETURN_ORIGINAL_LOGPROB takes the logarithm of probabilities."""


def request(prompt: Ids, *texts: Ids, top: int = 0) -> dict[str, Any]:
    """For the log-probs of texts of a token or more, and of the `top` best tokens at each place."""
    inputs: Sequence[Any] = [prompt + ids[:-1] for ids in texts]
    lasts: Sequence[Any] = [[ids[-1]] for ids in texts]
    return {
        "input_ids": inputs if len(texts) > 1 else inputs[0],
        "sampling_params": NOTHING_DRAWN,
        "return_logprob": True,
        "logprob_start_len": len(prompt) - 1,
        "token_ids_logprob": lasts if len(texts) > 1 else lasts[0],
        "top_logprobs_num": top,
    }


def told(said: Mapping[str, Any], ids: Ids, *, top: int = 0) -> tuple[tuple[float, ...], Any]:
    """The log-prob of each token of a text, and the `top` best ones at its place. Raises TransientError if
    the server gave up."""
    meta = said["meta_info"]
    wire.end(meta["finish_reason"] or {}, "")
    [lasts] = meta.get("output_token_ids_logprobs") or [[]]
    logprobs = tuple([each[0] for each in (*meta["input_token_logprobs"][1:], *lasts)])
    if len(logprobs) != len(ids) or None in logprobs:
        raise EngineError(f"SGLang told {len(logprobs)} log-probs of {len(ids)} tokens.")
    if logprobs[-1] < _NO_FLOAT32:
        logprobs = (*logprobs[:-1], -inf)
    places = [*meta["input_top_logprobs"][1:], meta["output_top_logprobs"][0]] if top else []
    return logprobs, tuple([wire.best(each) for each in places])
