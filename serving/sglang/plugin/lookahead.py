"""Member: the speculative algorithm LOOKAHEAD, SGLang's NGRAM with drafts from the tenants' own tries.

Selected with `--speculative-algorithm LOOKAHEAD`; NGRAM stays as it is. A request says in its sampling
parameters

    "custom_params": {"abduce_tenant": "acme", "abduce_drafts": ["a tool's output", "a memory entry"]}

(SGLang carries no deeper values). Without a tenant it has a trie of its own. `POST /add_external_corpus`
takes corpora under `tenant:name`. The forwards, the key-value cache and the schedule are NGRAM's; what is
drafted is `tries.Tries`, what is kept is `tree_sampling`.
"""

from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.runtime_context import get_spec
from sglang.srt.speculative import ngram_worker
from sglang.srt.speculative.ngram_worker import NGRAMWorker
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from . import tree_attention
from .hooks import around, is_around
from .tally import Tally
from .tree_sampling import Verification, pick_and_walk
from .trie import MAX_QUERY
from .tries import MAX_SOURCE, Guess, Tries, wishes

NAME = "LOOKAHEAD"
VERIFY = "sglang.srt.speculative.ngram_worker:eagle_sample"
CORPORA = "sglang.srt.managers.tokenizer_control_mixin:get_spec"
MAX_NODES = 1_000_000
"""Bound of all tries, if SGLang's `--speculative-ngram-capacity` (10 million) is not smaller: 300 MB."""


def register() -> None:
    """Offer the algorithm. Raises LookupError or ValueError where SGLang's places are other than expected."""
    if _registered() is None:
        SpeculativeAlgorithm.register(
            NAME, supports_overlap=True, validate_server_args=_check_arguments, spec_class=Lookahead
        )(_worker_class)
    around(VERIFY, pick_and_walk)
    around(CORPORA, _answer_as_ngram)


def verify(scheduler: Any) -> dict[str, Any]:
    """Whether this server uses it, the tries' size, and the tally. Raises RuntimeError if it is not in
    force."""
    if not isinstance(_registered(), Lookahead):
        raise RuntimeError(f"abduce: the speculative algorithm {NAME} is not registered")
    for target, wrapper in ((VERIFY, pick_and_walk), (CORPORA, _answer_as_ngram)):
        if not is_around(target, wrapper):
            raise RuntimeError(f"abduce: the plug-in's hook on {target} is not in force")
    if get_spec().speculative_algorithm != NAME:
        return {"used": False}
    worker = scheduler.draft_worker
    if not isinstance(worker, LookaheadWorker):
        raise RuntimeError(f"abduce: {NAME} was asked for, and {type(worker).__name__} drafts")
    size = {"tenants": worker.tries.n_tenants, "nodes": worker.tries.n_nodes}
    return {"used": True, **size, **worker.tally.table()}


class Lookahead(CustomSpecAlgo):
    """The algorithm as SGLang's scheduler sees it: NGRAM by another name."""

    def is_ngram(self) -> bool:
        """It takes NGRAM's ways through the scheduler."""
        return True

    def has_draft_kv(self) -> bool:
        """Drafts are looked up: they have no keys and values of their own."""
        return False

    def handle_server_args(self, server_args: Any) -> None:
        """NGRAM's defaults and refusals."""
        SpeculativeAlgorithm.NGRAM.handle_server_args(server_args)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(SpeculativeAlgorithm.NGRAM, name)


class LookaheadWorker(NGRAMWorker):
    """NGRAM's worker with the tenants' tries in place of the one C++ trie."""

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
        # NGRAM's constructor compiles its own corpus; nothing of it is needed here.
        stock = ngram_worker.NgramCorpus
        ngram_worker.NgramCorpus = lambda **_: SimpleNamespace(erase_match_state=self._close)
        try:
            super().__init__(server_args, gpu_id, nccl_port, target_worker)
        finally:
            ngram_worker.NgramCorpus = stock
        model = target_worker.model_config
        eos: set[int] = set(model.hf_eos_token_id or ())
        if target_worker.tokenizer is not None and target_worker.tokenizer.eos_token_id is not None:
            eos.add(target_worker.tokenizer.eos_token_id)
        capacity = min(MAX_NODES, get_spec().speculative_ngram_capacity)
        self.tries = Tries(eos, max_nodes=capacity)
        self.tally = Tally()
        self._requests: dict[str, Any] = {}
        self._fed: dict[str, int] = {}
        self._loading: dict[str, list[list[int]]] = {}
        self._guesses: list[Guess] = []
        self._written: list[list[int]] = []

    def _prepare_draft_tokens(self, batch: Any) -> tuple[Any, Any]:
        n = self.draft_token_num
        behind = self.enable_overlap and not batch.grammar_needs_sync()
        accepted = _accepted(batch.spec_info, n) if behind else [[] for _ in batch.reqs]
        lasts: list[int] = []
        self._guesses, self._written = [], []
        for request, last in zip(batch.reqs, accepted, strict=True):
            self._feed(request)
            # Under the overlap schedule the tokens of the last forward are not in output_ids yet.
            written = [*request.output_ids, *last]
            tail = [*request.origin_input_ids_unpadded[-MAX_QUERY:], *written[-MAX_QUERY:]][-MAX_QUERY:]
            self._written.append(written)
            self._guesses.append(self.tries.draft(request.rid, tail, n=n))
            lasts.append(tail[-1])
        return _rows(lasts, self._guesses, n)

    def _prepare_for_speculative_decoding(self, batch: Any) -> None:
        super()._prepare_for_speculative_decoding(batch)
        if not batch.forward_mode.is_target_verify():
            return
        n = self.draft_token_num
        batch.spec_info.abduce = Verification(
            sampler=self.model_runner.sampler,
            outputs=self._written,
            parents=[_parents(guess, n) for guess in self._guesses],
            sources=[
                [None, *guess.sources, *[None] * (n - 1 - len(guess.sources))] for guess in self._guesses
            ],
            tally=self.tally,
        )

    def _update_ngram_corpus(self, batch: Any) -> None:
        """Nothing: `_feed` counts what is accepted before the next draft, and at the end of the request."""

    def _feed(self, request: Any) -> None:
        rid, output = request.rid, request.output_ids
        if rid not in self.tries:
            tenant, named = wishes(request.sampling_params.custom_params)
            texts = [self._encode(text) for text in named]
            self.tries.open(rid, tenant, list(request.origin_input_ids_unpadded), texts)
            self._requests[rid] = request
            # One that was put off and comes back has been fed all but its last token.
            self._fed[rid] = max(0, len(output) - 1)
        self.tries.extend(rid, list(output[self._fed[rid] :]))
        self._fed[rid] = len(output)

    def _encode(self, text: str) -> list[int]:
        tokenizer = self.target_worker.tokenizer
        if tokenizer is None:
            return []
        # No more than can be looked up, so that a long text does not hold up the others.
        return list(tokenizer.encode(text[-8 * MAX_SOURCE :], add_special_tokens=False))

    def note_request_finished(self, *, rid: str, natural_stop: bool) -> None:
        """Count the rest of a finished request's output, and drop its own sources."""
        super().note_request_finished(rid=rid, natural_stop=natural_stop)
        if rid in self.tries:
            output = list(self._requests[rid].output_ids_through_stop)
            self.tries.extend(rid, output[self._fed[rid] :])
            self._close([rid])

    def _close(self, rids: list[str]) -> None:
        for rid in rids:
            if rid in self.tries:
                self.tries.close(rid)
                del self._requests[rid], self._fed[rid]

    def clear_cache_pool(self) -> None:
        """Forget what was learnt, as NGRAM does when the cache is flushed."""
        self._close(list(self._requests))
        self.tries.reset()
        self._prev_decode_rids: set[str] = set()

    def add_external_corpus(self, corpus_id: str, token_chunks: list[list[int]]) -> int:
        """Take a corpus in; SGLang calls this in a thread, so the tries get it in `commit_corpus_load`."""
        # SGLang marks the beginning of a document by a token below zero.
        parts = [[token for token in chunk if token >= 0] for chunk in token_chunks]
        self.tries.check(corpus_id, parts)
        self._loading[corpus_id] = parts
        return sum(map(len, parts))

    def commit_corpus_load(self, corpus_id: str, loaded_token_count: int) -> None:
        """Put the corpus that was taken in into its tenant's trie."""
        self.tries.load(corpus_id, self._loading.pop(corpus_id))

    def remove_external_corpus(self, corpus_id: str) -> None:
        """Take a corpus out again."""
        self.tries.unload(corpus_id)

    def list_external_corpora(self) -> dict[str, int]:
        """`tenant:name` → tokens."""
        return dict(self.tries.corpora())


def _worker_class(server_args: Any) -> type[LookaheadWorker]:
    return LookaheadWorker


def _registered() -> Any:
    try:
        return SpeculativeAlgorithm.from_string(NAME)
    except ValueError:
        return None


def _check_arguments(server_args: Any) -> None:
    args = resolving_view(server_args)
    if args.device == "cpu" and args.attention_backend not in (tree_attention.NAME, "intel_amx"):
        raise ValueError(
            f"{NAME} verifies trees, and on a CPU the attention backend {args.attention_backend!r} can't. "
            f"Write --attention-backend {tree_attention.NAME}."
        )


def _answer_as_ngram(original: Any) -> Any:
    """The speculation settings as the corpus routes read them: they ask for NGRAM by name."""
    spec = original()
    if spec.speculative_algorithm != NAME:
        return spec
    limit = spec.speculative_ngram_external_corpus_max_tokens
    return SimpleNamespace(speculative_algorithm="NGRAM", speculative_ngram_external_corpus_max_tokens=limit)


def _accepted(spec_info: Any, n: int) -> list[list[int]]:
    """The tokens that the last forward accepted, request by request."""
    rows = spec_info.accept_tokens.view(-1, n).tolist()
    return [row[:kept] for row, kept in zip(rows, spec_info.accept_lens.tolist(), strict=True)]


def _parents(guess: Guess, n: int) -> list[int]:
    """Each row's parent row, -1 for the root; padding hangs on the root."""
    return [-1, *(parent + 1 for parent in guess.parents), *[0] * (n - 1 - len(guess.parents))]


def _rows(last: list[int], guesses: list[Guess], n: int) -> tuple[Any, Any]:
    """NGRAM's row layout: per request the last token, its drafts, then padding with token 0.

    Returns tokens int64 [batch · n] and the ancestor masks bool [batch · n · n], as numpy arrays.
    """
    tokens = torch.zeros(len(last), n, dtype=torch.int64)
    mask = torch.eye(n, dtype=torch.bool).repeat(len(last), 1, 1)
    for b, (token, guess) in enumerate(zip(last, guesses, strict=True)):
        tokens[b, : 1 + len(guess.tokens)] = torch.tensor([token, *guess.tokens])
        for row, parent in enumerate(_parents(guess, n)):
            if parent >= 0:
                mask[b, row] |= mask[b, parent]
    return tokens.view(-1).numpy(), mask.view(-1).numpy()
