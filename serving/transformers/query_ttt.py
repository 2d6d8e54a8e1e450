"""Query-only test-time training: before a long prompt is answered, the queries learn to read it.

Attention to one position among T fades as T grows, and thinking tokens are read with the same attention. So
the prompt is prefilled once, its keys and values stand still, and the query projections W_Q alone take n
steps of next-token loss on random spans of it:

    t ~ U{0 … T-k-1},   W_Q ← AdamW(W_Q, ∇ mean_i -ln p(x_{i+1} | x_{0..i}; K, V)),   i = t … t+k-1

The answer is drawn with these W_Q, which then are dropped: the model was never changed (`query_weights.py`).
About 2 n k tokens of thinking cost as much, on long prompts.

Source: Let's (not) just put things in Context: Test-Time Training for Long-Context LLMs, arXiv 2512.13898.
Deviates: the mean of a span's loss, not its sum; AdamW with betas 0.9 and 0.999 and a constant rate, which
the paper does not give; a rate of 3e-6, within the flat range, where the paper tunes it for each data set.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from importlib import import_module
from random import Random
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ..errors import EngineError, UnknownName, demand
from .batching import Batcher, Done
from .decoding import Feed, Program
from .slots import Slots, threads_of

if TYPE_CHECKING:
    import torch

_CHUNK = 512  # tokens of one forward of the prefill: its mask is no T x T
_STOPPED = "The request was given up before its answer was written."
_POLL_S = 0.05  # how soon a cancelled request is noticed while rows are computed


@dataclass(frozen=True)
class QueryTTT:
    """How the queries are trained on a prompt. Defaults are the paper's but for `learning_rate` (above).

    `span`: tokens of a step, fewer where the prompt is shorter than span + 2. `reading`: what a span sees of
    itself, "strict" the prefill's keys and values, "recomputed" its current ones. Prompts of fewer than
    `min_tokens` tokens, or of 2, are answered by the model as it is: short ones are better thought about.
    """

    n_steps: int = 32
    span: int = 128
    learning_rate: float = 3e-6
    reading: Literal["strict", "recomputed"] = "strict"
    min_tokens: int = 0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name, least in {"n_steps": 0, "span": 1, "min_tokens": 0}.items():
            value = getattr(self, name)
            good = isinstance(value, int) and not isinstance(value, bool) and value >= least
            demand(good, name, value, f"write an integer, at least {least}")
        for name in ("learning_rate", "weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e9
            demand(good, name, value, "write a number, at least 0, such as 3e-6 (in YAML 3.0e-6)")
        demand(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "write a positive number")
        demand(
            self.reading in ("strict", "recomputed"),
            "reading",
            self.reading,
            "write 'strict' or 'recomputed'",
        )

    @classmethod
    def of(cls, told: "QueryTTT | Mapping[str, Any] | None") -> "QueryTTT | None":
        """From its fields by name. Raises UnknownName for one that it has not."""
        if told is None or isinstance(told, QueryTTT):
            return told
        demand(isinstance(told, Mapping), "query_ttt", told, "write its fields, such as {n_steps: 32}")
        known = [f.name for f in fields(cls)]
        for name in told:
            if name not in known:
                raise UnknownName("field of query_ttt", str(name), known)
        return cls(**told)

    def span_of(self, n_tokens: int) -> int:
        """Tokens of a step on a prompt of so many; 0 where it is left alone."""
        if n_tokens < max(3, self.min_tokens) or not (self.n_steps and self.learning_rate):
            return 0
        return min(self.span, n_tokens - 2)

    def starts(self, n_tokens: int, *, seed: int) -> list[int]:
        """Where the spans begin: uniform, each with a token behind it to predict."""
        k = self.span_of(n_tokens)
        draw = Random(seed)
        return [draw.randrange(n_tokens - k) for _ in range(self.n_steps)] if k else []

    def cost_tokens(self, n_tokens: int) -> int:
        """Tokens whose decoding costs what training on a prompt of so many does: 2 n k, both ways."""
        return 2 * self.n_steps * self.span_of(n_tokens)


class Adapted(NamedTuple):
    """What training did. `losses[i]`: of the span that begins at `starts[i]`, before its step."""

    reading: str
    span: int
    starts: Sequence[int]
    losses: Sequence[float]


def adapt(
    model: Any,
    kept: Any,
    ids: "torch.Tensor",
    config: QueryTTT,
    *,
    seed: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Adapted:
    """Train the queries of a twin, in place. `kept`: keys and values of `ids` but the last, of each layer, in
    ordinary tensors. Raises EngineError once `stopped`."""
    torch, weights_of = import_module("torch"), import_module(f"{__package__}.query_weights")
    weights = weights_of.own_queries(model)
    k = config.span_of(len(ids))
    starts = config.starts(len(ids), seed=seed)
    optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    losses = []
    for start in starts:
        if stopped():
            raise EngineError(_STOPPED)
        loss = weights_of.span_loss(model, kept, ids, start, k, config.reading)
        for weight, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = grad
        torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
        optimiser.step()
        losses.append(float(loss.detach()))
    for weight in weights:
        weight.grad = None
    return Adapted(config.reading, k, starts, losses)


def answer(
    model: Any,
    prompt: Sequence[int],
    programs: Sequence[tuple[Callable[[], Program[Any]], int]],
    config: QueryTTT,
    *,
    seed: int,
    stopped: Callable[[], bool],
    apart: bool = False,
    threads: int = 1,
) -> list[Done]:
    """Prefill, train, and carry out programs that begin with the prompt, one after the other; each with the
    rows it feeds at most. The model is not changed, and keys and values are the request's own.

    Raises EngineError soon after `stopped`.
    """
    torch, weights_of = import_module("torch"), import_module(f"{__package__}.query_weights")
    own = weights_of.twin(model)
    n_slots = max(n for _, n in programs)
    memory = Slots(own, n_slots, apart=apart, threads=threads)
    batcher = Batcher(memory, n_slots)
    try:
        _wait(batcher.submit(prefill(prompt[:-1]), 1), stopped)
        with threads_of(threads):
            ids = torch.tensor(list(prompt), device=own.device)
            told = adapt(own, memory.ordinary(0), ids, config, seed=seed, stopped=stopped)
        _LOG.info(
            "query_ttt: %d steps of %d tokens on %d, reading %s; losses %s",
            *(len(told.starts), told.span, len(prompt), told.reading),
            " ".join(f"{loss:.3f}" for loss in told.losses),
        )
        # The last token of the prompt is fed only now, so that the first of the answer has the new queries.
        return [_wait(batcher.submit(program(), n), stopped) for program, n in programs]
    finally:
        batcher.close()


def prefill(ids: Sequence[int]) -> Program[None]:
    """Feed a text and draw nothing."""
    for first in range(0, len(ids), _CHUNK):
        yield [Feed(0 if first else None, tuple(ids[first : first + _CHUNK]))]


def _wait(future: "Future[Done]", stopped: Callable[[], bool]) -> Done:
    while not stopped():
        try:
            return future.result(_POLL_S)
        except TimeoutError:
            continue
    future.cancel()
    raise EngineError(_STOPPED)


_LOG = logging.getLogger(__name__)
