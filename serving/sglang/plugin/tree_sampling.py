"""Which drafts are kept: at each node pick a token from the model's own law there, then walk along the picks.

    token at node i ~ p(· | text, path to i) after the request's penalties, bias, grammar, temperature, top-k,
    top-p, min-p

Each pick is a draw from the target law given what is accepted before it, so the text's law is that of
decoding without drafts whatever the drafts are, and a greedy text is the same token by token. With
`sampling_seed` SGLang ties its random numbers to (seed, position), so the sampled text is the same too.

SGLang's own verification is not exact in two places: on a CPU it picks the argmax at any temperature, and
penalties count only the tokens before the last forward ("relaxed"). Here a node's penalties count its own
path.

Source: Lookahead (arXiv 2312.12728), section on verification; SGLang 0.5.23, `eagle_sample`, whose place this
takes.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .tally import Tally


@dataclass(frozen=True, slots=True)
class Verification:
    """What a verification needs besides SGLang's own input.

    `outputs[i]`: the output of request i so far. `parents[i]`: the parent of each of its n rows, -1 for the
    root. `sources[i]`: where each of its rows was found, None for the root and for padding.
    """

    sampler: Any
    outputs: list[list[int]]
    parents: list[list[int]]
    sources: list[list[str | None]]
    tally: Tally


def pick_and_walk(
    original: Any, verify_input: Any, batch: Any, logits_output: Any, grammar_mask: Any = None, **more: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stands for SGLang's `eagle_sample` where the drafts are ours.

    Returns the picked tokens [batch · n], how many are kept per request (the bonus token counted) [batch],
    and the rows kept [batch, n], -1 after the last.
    """
    facts: Verification | None = getattr(verify_input, "abduce", None)
    if facts is None:
        stock: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = original(
            verify_input, batch, logits_output, grammar_mask, **more
        )
        return stock
    n, size = verify_input.draft_token_num, len(batch.reqs)
    logits, info = logits_output.next_token_logits, batch.sampling_info
    candidates = verify_input.draft_token.view(size, n)
    for i, request in enumerate(batch.reqs):
        penalise(
            logits[i * n : (i + 1) * n],
            request.sampling_params,
            facts.outputs[i],
            candidates[i].tolist(),
            facts.parents[i],
            stops=_stops(request),
        )
    if grammar_mask is not None:
        grammar_mask.apply(logits)
    if info.logit_bias is not None:
        logits.add_(info.logit_bias.repeat_interleave(n, dim=0))
    picked = _pick(facts.sampler, logits, info, verify_input.positions, n)
    predict, rows, kept = _walk(verify_input, candidates, picked.view(size, n))
    facts.tally.count(facts.sources, rows, n)
    return predict, kept + 1, rows


def _walk(
    verify_input: Any, candidates: torch.Tensor, picked: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from sglang.kernels.ops.speculative.spec_tree import verify_tree_greedy_func
    from sglang.srt.runtime_context import get_parallel

    size, n = candidates.shape
    predict = torch.zeros(size * n, dtype=torch.int32, device=picked.device)
    rows = torch.full((size, n), -1, dtype=torch.int32, device=picked.device)
    kept = torch.empty(size, dtype=torch.int32, device=picked.device)
    verify_tree_greedy_func(
        predicts=predict,
        accept_index=rows,
        accept_token_num=kept,
        candidates=candidates,
        retrieve_index=verify_input.retrieve_index,
        retrieve_next_token=verify_input.retrieve_next_token,
        retrieve_next_sibling=verify_input.retrieve_next_sibling,
        target_predict=picked,
        topk=-1,
    )
    group = get_parallel().tp_group
    if group.world_size > 1:
        # The ranks' draws may differ in the last bit of a probability; rank 0 decides.
        for tensor in (predict, rows, kept):
            group.broadcast(tensor, src=0)
    return predict, rows, kept


def _pick(sampler: Any, logits: torch.Tensor, info: Any, positions: torch.Tensor, n: int) -> torch.Tensor:
    """One token per row, [batch · n], by SGLang's own sampler: the settings of a request hold for its n
    rows."""
    if info.is_all_greedy:
        return logits.argmax(-1)
    wide = copy.copy(info)
    wide.sampling_mask_batch_indices = None
    for name in ("temperatures", "top_ks", "top_ps", "min_ps", "sampling_seed"):
        value = getattr(info, name)
        if value is not None:
            setattr(wide, name, value.repeat_interleave(n, dim=0))
    simple = not (info.need_top_p_sampling or info.need_top_k_sampling or info.need_min_p_sampling)
    probs = torch.softmax(logits / wide.temperatures, dim=-1)
    tokens, _ = sampler._sample_from_probs(probs, wide, positions, simple)
    return tokens.long()


def penalise(
    logits: torch.Tensor,
    params: Any,
    output: Sequence[int],
    tokens: Sequence[int],
    parents: Sequence[int],
    *,
    stops: Sequence[int] = (),
) -> None:
    """Apply a request's penalties in place to the logits [n, vocabulary] of its draft tree, each row by its
    own text.

    A row's text is `output` and the tokens on the row's path, the root's excepted: that is the output's last
    token. With c the count of a token in that text, z its logit: z ← z - frequency · c - presence · [c > 0],
    then z ← z / r if z ≥ 0 else z · r where c > 0; while the text is shorter than `min_new_tokens`, z ← -inf
    at the tokens `stops`.
    """
    n = len(tokens)
    paths: list[list[int]] = []
    for i, parent in enumerate(parents):
        paths.append([] if parent < 0 else [*paths[parent], tokens[i]])
    for i, path in enumerate(paths):
        if stops and len(output) + len(path) < params.min_new_tokens:
            logits[i, list(stops)] = float("-inf")
    frequency, presence = params.frequency_penalty, params.presence_penalty
    repetition = params.repetition_penalty
    if not frequency and not presence and repetition == 1.0:
        return
    base = Counter(output)
    columns = sorted(base.keys() | {token for path in paths for token in path})
    place = {token: at for at, token in enumerate(columns)}
    counts = torch.zeros(n, len(columns))
    counts += torch.tensor([float(base[token]) for token in columns])
    for i, path in enumerate(paths):
        for token in path:
            counts[i, place[token]] += 1
    counts = counts.to(logits.device)
    index = torch.tensor(columns, device=logits.device)
    z = logits[:, index] - frequency * counts - presence * (counts > 0)
    scaled = torch.where(z < 0, z * repetition, z / repetition)
    logits[:, index] = torch.where(counts > 0, scaled, z)


def _stops(request: Any) -> list[int]:
    """The tokens that `min_new_tokens` holds back, as SGLang's penalizer of that name gathers them."""
    if request.sampling_params.min_new_tokens <= 0:
        return []
    tokenizer = request.tokenizer
    found = set(request.sampling_params.stop_token_ids or ()) | set(request.eos_token_ids or ())
    found |= set(tokenizer.additional_stop_token_ids or ()) | {tokenizer.eos_token_id}
    return sorted(found - {None})
