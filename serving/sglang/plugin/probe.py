"""Member: features of the next-token law, reported per output token without shipping the logits.

A request that says `"custom_params": {"abduce_probe": "entropy"}` finds in its reply's `meta_info` the list
`abduce_entropy`: for each output token the entropy, in nats, of the model's own law there,

    H = -Σ p log p,   p = softmax(z),

z being the logits at temperature 1, before penalties, bias and grammar. Other requests that end in the same
batch may carry the key with nulls. The hidden state of the last prompt token is SGLang's own
`return_hidden_states="last"`.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch

from .hooks import around, is_around

ENTROPY = "abduce_entropy"
FORWARD = "sglang.srt.managers.tp_worker:TpModelWorker.forward_batch_generation"
SAMPLE = "sglang.srt.model_executor.model_runner:ModelRunner.sample"
VERIFY = "sglang.srt.speculative.ngram_worker:eagle_sample"
COLLECT = (
    "sglang.srt.managers.scheduler_components.batch_result_processor:"
    "SchedulerBatchResultProcessor._maybe_collect_customized_info"
)


def register() -> None:
    """Wrap the places where logits are read and replies are put together. Raises LookupError if one is
    gone."""
    for target, wrapper in HOOKS.items():
        around(target, wrapper)


def verify(scheduler: Any) -> dict[str, Any]:
    """What can be asked for. Raises RuntimeError if a hook is not in force."""
    for target, wrapper in HOOKS.items():
        if not is_around(target, wrapper):
            raise RuntimeError(f"abduce: the plug-in's hook on {target} is not in force")
    return {"features": ["entropy"]}


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of softmax(logits) in nats, float32 [rows]; logits [rows, vocabulary]."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    return -(log_p.exp() * log_p).nan_to_num(0.0).sum(-1)


_ASKING: WeakValueDictionary[str, Any] = WeakValueDictionary()
"""Request id → request, of those that ask for the entropy."""


def note(original: Callable[..., Any], worker: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """Before a forward: remember who asks."""
    for request in batch.reqs if batch is not None else ():
        named = request.sampling_params.custom_params
        if named and named.get("abduce_probe") == "entropy":
            _ASKING[request.rid] = request
    return original(worker, batch, *args, **kwargs)


def measure(original: Callable[..., Any], runner: Any, logits_output: Any, forward_batch: Any) -> Any:
    """Before the sampler changes the logits in place: the entropy where it is asked for."""
    rows = {rid: i for i, rid in enumerate(forward_batch.rids or ()) if rid in _ASKING}
    if rows:
        values = entropy(logits_output.next_token_logits[list(rows.values())]).tolist()
        logits_output.abduce_entropy = {rid: [value] for rid, value in zip(rows, values, strict=True)}
    return original(runner, logits_output, forward_batch)


def measure_tree(
    original: Callable[..., Any], verify_input: Any, batch: Any, logits_output: Any, *args: Any, **kwargs: Any
) -> Any:
    """Around a verification: the entropy at the rows that are kept."""
    n = verify_input.draft_token_num
    rows = {i: r.rid for i, r in enumerate(batch.reqs) if r.rid in _ASKING}
    logits = logits_output.next_token_logits
    values = {i: entropy(logits[i * n : (i + 1) * n]).tolist() for i in rows}
    result = original(verify_input, batch, logits_output, *args, **kwargs)
    if rows:
        kept = result[2].tolist()
        logits_output.abduce_entropy = {
            rid: [values[i][row - i * n] for row in kept[i] if row >= 0] for i, rid in rows.items()
        }
    return result


def collect(original: Callable[..., Any], processor: Any, i: int, request: Any, logits_output: Any) -> Any:
    """When a request's tokens are booked: put the values beside them."""
    values = getattr(logits_output, "abduce_entropy", {}).get(request.rid)
    if values is not None:
        if request.customized_info is None:
            request.customized_info = {}
        request.customized_info.setdefault(ENTROPY, []).extend(values)
    return original(processor, i, request, logits_output)


HOOKS: dict[str, Callable[..., Any]] = {
    FORWARD: note,
    SAMPLE: measure,
    VERIFY: measure_tree,
    COLLECT: collect,
}
"""What is wrapped by what."""
