"""The white-box engine: a Hugging Face model in this process, its whole next-token distribution at hand.

Programs (`decoding.py`) draw from it, many at once in one batch (`batching.py`), over slots of keys and
values (`slots.py`). What it gives beyond the others: constrained samples with proper weights
(`awrs_smc.py`), attention functions of your own, and `run`, for decoding programs of your own.

    Prompt ── template, tokeniser ──► ids ──► program ── rows ──► Batcher, Slots ── log p ──► Completion
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from .. import settings
from ..base import Capability, Engine, Served
from ..constraints import Constraint, Form, JsonSchema, Regex, masking_form
from ..errors import EngineError, demand
from ..flow import Completion, Generate, Hidden, LogLikelihood, LogProb, Prompt, Usage
from ..seeds import derive
from ..workers import Workers
from . import awrs
from .awrs_smc import Particle, particles
from .batching import Batcher, Done
from .decoding import Program, Turn, sample, score
from .groups import Groups, refuse
from .model import Attention, Tokeniser, demand_plain_layers, folder_of, load
from .potentials import Potential, potential
from .query_ttt import QueryTTT, answer
from .slots import Slots, last_state
from .timed import Timed

T = TypeVar("T")


class Transformers(Engine):
    """A causal language model of Hugging Face transformers, on a CPU or a GPU.

    `model`: a folder, a GGUF file (converted once), or `org/name` of the hub; else the package's small
    model. `device`: "cpu", "cuda", "cuda:1" …; a GPU where there is one. `dtype`: float32 on a CPU, else
    bfloat16. `slots`: rows that run at once; `context`: tokens of the longest prompt with its reply;
    `threads`: of the CPU, as in `settings.threads` (beside another busy process, 2 threads on 2 cores drew
    2 tokens/s, 1 thread 14).
    `attention`: a name that transformers knows, or a function of its signature (module, query, key, value,
    attention_mask, *, scaling, dropout, **_) → (output `[rows, new, heads, head_dim]`, None).

    A `constraint` is kept by weighted rejection sampling, `constrained="awrs"`: each sample has its
    `log_weight`, −∞ where it ran into a dead end. `resample_below` > 0 makes the samples of a request one
    population, resampled where its effective size falls below that share of n; then they are no longer
    independent of each other. `max_rejects` bounds the tokens tried at each step. `constrained="mask"`
    checks every token instead and weighs nothing. `check_timeout_s`: of one call of a `Check` or `Critic`.

    A batch rounds by its composition: log-probs differ by 1e-5 or so, and a text, rarely, with them.
    `deterministic=True` feeds each row alone and reuses no prefix: then a reply depends on its request and
    seed alone. Fields of `Generate.extra` are for servers; there is none here, and they are ignored.

    `Generate.workers` are served one group at a time, each in blocks of keys and values of its own.

    `query_ttt`, such as `{n_steps: 32, min_tokens: 4096}`: the queries are trained on each prompt before it
    is answered, on one at a time, with keys and values of its own; see `QueryTTT`. Each step counts as
    2 · span prompt tokens. Likelihoods, hidden states and workers are the model's own.
    """

    name = "transformers"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {
            "generate",
            "logprobs",
            "top_logprobs",
            "logprob",
            "hidden",
            "token_ids",
            "seed",
            "json_schema",
            "constraint",
            "workers",
        }
    )

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
        slots: int = 16,
        context: int = 2048,
        threads: int | None = None,
        attention: Attention | None = None,
        constrained: Literal["awrs", "mask"] = "awrs",
        resample_below: float = 0.0,
        max_rejects: int | None = None,
        check_timeout_s: float = 5.0,
        deterministic: bool = False,
        query_ttt: QueryTTT | Mapping[str, Any] | None = None,
    ) -> None:
        for name, value in {"slots": slots, "context": context, "threads": threads}.items():
            demand(
                value is None or (isinstance(value, int) and value >= 1),
                name,
                value,
                "write a positive integer",
            )
        demand(constrained in ("awrs", "mask"), "constrained", constrained, "write 'awrs' or 'mask'")
        demand(0 <= resample_below <= 1, "resample_below", resample_below, "write a number from 0 to 1")
        demand(max_rejects is None or max_rejects >= 2, "max_rejects", max_rejects, "write at least 2")
        demand(check_timeout_s > 0, "check_timeout_s", check_timeout_s, "write seconds, such as 5")
        self.model = model
        self.slots = slots
        self.context = context
        self.deterministic = deterministic
        self.max_concurrency = slots
        self._threads = threads or settings.threads()
        self._load = partial(load, device=device, dtype=dtype, attention=attention)
        self._mask = constrained == "mask"
        self._resample_below = 0.0 if self._mask else resample_below
        self._draw = partial(awrs.adaptive, max_rejects=max_rejects)
        self._timed = Timed(check_timeout_s)
        self._loading = threading.Lock()
        self._known: Tokeniser | None = None
        self._grammars: dict[Form | None, Potential] = {}
        self._loaded: tuple[Any, Batcher] | None = None
        self._groups = Groups(threads=self._threads, context=context)
        self._query_ttt = QueryTTT.of(query_ttt)
        self._adapting = threading.Lock()  # gradients and optimiser of one prompt at a time
        self._head = lru_cache(maxsize=256)(self._encode_head)
        self._tokens = lru_cache(maxsize=4096)(self._encode)

    # ------------------------------------------------------------ what an engine does

    async def ready(self) -> None:
        """Load the model."""
        await asyncio.to_thread(self._batcher)

    async def generate(self, request: Generate, *, seed: int) -> Served[tuple[Completion, ...]]:
        """`request.n` samples; more than there are slots are drawn in several rounds."""
        if request.n < 1 or request.sampling.max_tokens < 1:
            raise EngineError("n and max_tokens must be at least 1.")
        await self.ready()
        if request.workers is not None:
            return await self._by_workers(request, request.workers, seed)
        turn = self.turn(request)
        seeds = [derive(seed, i) for i in range(request.n)]
        program: Callable[[Sequence[int]], Program[list[Completion]]] = partial(sample, turn)
        if request.constraint is not None:
            program = await self._constrained(request, turn)
        rounds = [seeds[first : first + self.slots] for first in range(0, request.n, self.slots)]
        programs = [(partial(program, some), len(some)) for some in rounds]
        n_extra = self._query_ttt.cost_tokens(len(turn.prompt)) if self._query_ttt else 0
        if n_extra:
            done = await self._adapted(turn.prompt, programs, derive(seed, "query_ttt"))
        else:
            done = [await self._run(begin(), n) for begin, n in programs]
        completions: list[Completion] = [each for one in done for each in one.value]
        usage = Usage(
            input_tokens=len(turn.prompt) + n_extra,
            cached_tokens=0 if n_extra else done[0].n_cached,
            output_tokens=sum(each.n_tokens for each in completions),
            calls=1,
        )
        return Served(tuple(completions), usage)

    async def logprob(self, request: LogProb) -> Served[LogLikelihood]:
        """In one pass over the prompt and all but the continuation's last token."""
        await self.ready()
        prompt = self._fitting(request.prompt, 1)
        ids = request.continuation_ids or self._continuation(request.prompt, request.continuation)
        if not ids:
            return Served(LogLikelihood(()), Usage(calls=1))
        self._fitting(request.prompt, len(ids))
        if any(not 0 <= token < self._tokeniser.size for token in ids):
            raise EngineError(
                f"The continuation has ids outside of the model's {self._tokeniser.size} tokens."
            )
        logprobs, n_cached = await self._run(score(prompt, ids), 1)
        usage = Usage(input_tokens=len(prompt) + len(ids) - 1, cached_tokens=n_cached, calls=1)
        return Served(LogLikelihood(logprobs), usage)

    async def hidden(self, request: Hidden) -> Served[tuple[float, ...]]:
        """Last-layer state after the final norm."""
        await self.ready()
        prompt = self._fitting(request.prompt, 0)
        model, _ = await asyncio.to_thread(self._both)
        state = await asyncio.to_thread(last_state, model, prompt, threads=self._threads)
        return Served(state, Usage(input_tokens=len(prompt), calls=1))

    async def run(self, program: Program[T], *, n_slots: int) -> T:
        """Carry out a decoding program of your own, which feeds at most `n_slots` rows at a time."""
        await self.ready()
        value: T = (await self._run(program, n_slots))[0]
        return value

    def turn(self, request: Generate) -> Turn:
        """What the samples of a request share, as programs take it."""
        prompt = self._fitting(request.prompt, 1)
        n_most = min(request.sampling.max_tokens, self.context - len(prompt))
        sampling = replace(request.sampling, max_tokens=n_most)
        known = self._tokeniser
        return Turn(
            prompt, known.vocabulary.tokens, known.ends, sampling, request.logprobs, request.top_logprobs
        )

    def potential(self, constraint: Constraint) -> Potential:
        """The constraint over the model's tokens. Raises UsageError for one that no text can keep."""
        form = masking_form(constraint) if isinstance(constraint, Regex | JsonSchema) else None
        found = self._grammars.get(form)
        if found is None:
            found = potential(constraint, self._tokeniser.vocabulary, timed=self._timed)
            if form is not None:  # a grammar takes up to a second, and many requests share it
                self._grammars = {**dict(list(self._grammars.items())[-63:]), form: found}
        return found

    def count_tokens(self, prompt: Prompt) -> int:
        """Exact, with what training on it counts as. Loads the tokeniser if it is not loaded."""
        n_tokens = len(self._ids(prompt))
        return n_tokens + (self._query_ttt.cost_tokens(n_tokens) if self._query_ttt else 0)

    async def close(self) -> None:
        """Abort what is in flight and free the model."""
        await asyncio.to_thread(self._free)

    # ------------------------------------------------------------ constraints

    async def _constrained(
        self, request: Generate, turn: Turn
    ) -> Callable[[Sequence[int]], Program[list[Completion]]]:
        if self._resample_below and request.n > self.slots:
            raise EngineError(f"A population of {request.n} that is resampled needs slots={request.n}.")
        assert request.constraint is not None
        asked = await asyncio.to_thread(self.potential, request.constraint)
        prompt = request.prompt
        written = (self._tokeniser.vocabulary.tokens[token] for token in prompt.prefix_ids)
        prefix = b"".join(written) or prompt.prefix.encode()
        if not await asyncio.to_thread(asked.start().feed, prefix):
            raise EngineError(
                f"The prompt's prefix {prefix.decode(errors='replace')!r} breaks the constraint."
            )

        def program(seeds: Sequence[int]) -> Program[list[Completion]]:
            cloud: list[Particle] = yield from particles(
                turn,
                asked,
                seeds,
                prefix=prefix,
                draw=self._draw,
                mask=self._mask,
                resample_below=self._resample_below,
            )
            return [each.completion for each in cloud]

        return program

    # ------------------------------------------------------------ queries trained on the prompt

    async def _adapted(
        self,
        prompt: tuple[int, ...],
        programs: Sequence[tuple[Callable[[], Program[Any]], int]],
        seed: int,
    ) -> list[Done]:
        """What the programs give with the prompt's own queries."""
        given_up = threading.Event()
        loaded = self._both()

        def stopped() -> bool:
            return given_up.is_set() or self._loaded is not loaded  # the engine was closed

        def served() -> list[Done]:
            with self._adapting:
                assert self._query_ttt is not None
                return answer(
                    loaded[0],
                    prompt,
                    programs,
                    self._query_ttt,
                    seed=seed,
                    stopped=stopped,
                    apart=self.deterministic,
                    threads=self._threads,
                )

        try:
            return await asyncio.to_thread(served)
        finally:
            given_up.set()

    # ------------------------------------------------------------ workers

    async def _by_workers(
        self, request: Generate, workers: Workers, seed: int
    ) -> Served[tuple[Completion, ...]]:
        """Each sample by a group of its own."""
        refuse(request)
        if self._query_ttt is not None:
            raise EngineError("Workers share one cache, and query_ttt adapts another: use an engine without.")
        model, _ = self._both()
        seeds = [derive(seed, i) for i in range(request.n)]
        written = await self._groups.write(model, self._tokeniser, self.turn(request), workers, seeds)
        usage = Usage(
            input_tokens=sum(each.n_given for each in written),
            output_tokens=sum(each.completion.n_tokens for each in written),
            calls=1,
        )
        return Served(tuple(each.completion for each in written), usage)

    # ------------------------------------------------------------ the model

    @property
    def _tokeniser(self) -> Tokeniser:
        if self._known is None:
            with self._loading:
                self._known = self._known or Tokeniser.load(folder_of(self.model))
        return self._known

    def _both(self) -> tuple[Any, Batcher]:
        known = self._tokeniser
        with self._loading:
            if self._loaded is None:
                model = self._load(folder_of(self.model))
                demand_plain_layers(model.config, self.context)
                _ = known.vocabulary  # takes half a second, once
                memory = Slots(model, self.slots, apart=self.deterministic, threads=self._threads)
                self._loaded = model, Batcher(memory, self.slots, reuse=not self.deterministic)
            return self._loaded

    def _batcher(self) -> Batcher:
        return self._both()[1]

    async def _run(self, program: Program[Any], n_slots: int) -> Done:
        return await asyncio.wrap_future(self._batcher().submit(program, n_slots))

    def _free(self) -> None:
        with self._loading:
            loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded[1].close()
        self._groups.stop()
        self._timed.close()

    # ------------------------------------------------------------ text to tokens

    def _fitting(self, prompt: Prompt, n_more: int) -> tuple[int, ...]:
        """The prompt's ids. Raises EngineError if they and `n_more` do not fit, or there are none."""
        ids = self._ids(prompt)
        if not ids:
            raise EngineError("The prompt is empty: give messages or a prefix.")
        if any(not 0 <= token < self._tokeniser.size for token in prompt.prefix_ids):
            raise EngineError(f"The prefix has ids outside of the model's {self._tokeniser.size} tokens.")
        if len(ids) + n_more > self.context:
            raise EngineError(
                f"{len(ids) + n_more} tokens do not fit a context of {self.context}: "
                "shorten the prompt or give the engine a larger context."
            )
        return ids

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        return self._tokens(prompt)

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if not prompt.messages and not prompt.prefix_ids:
            return self._tokeniser.whole(prompt.prefix)
        ids = prompt.prefix_ids or self._tokeniser.encode(prompt.prefix, beginning=False)
        return self._head(replace(prompt, prefix="", prefix_ids=())) + ids

    def _encode_head(self, prompt: Prompt) -> tuple[int, ...]:
        return self._tokeniser.head(prompt) if prompt.messages else self._tokeniser.whole("")

    def _continuation(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        """Ids of `text` after the prompt: tokenised together and cut, where the cut falls between tokens."""
        if prompt.prefix and not prompt.prefix_ids:
            before = self._ids(prompt)
            both = self._ids(replace(prompt, prefix=prompt.prefix + text))
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._tokeniser.encode(text, beginning=False)
