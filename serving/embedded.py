"""The default engine: a small instruct model inside this process, no server, no key, no GPU.

llama.cpp by way of xllamacpp, with continuous batching: all samples in flight advance together, one
batch for each token. What it gives: samples with token ids and log-probs, the exact log-likelihood of
a given continuation, hidden states, texts that keep a JSON schema. Fields of `Generate.extra` are for
servers; there is none here, and they are ignored.

    Prompt ── chat template, tokeniser ──► ids ──► Room (slots and tokens) ──► LlamaServer ──► Completion
"""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from . import settings, weights
from .base import Capability, Engine, Served
from .errors import EngineError, TransientError, UsageError
from .flow import Completion, Generate, Hidden, LogLikelihood, LogProb, Prompt, Sampling, Usage
from .grammar import grammar
from .llama import LlamaServer, Sample, best_logprobs, drawn_logprob, too_long
from .room import Room
from .seeds import derive
from .tool_calls import described, offer, plain

_FINISH: dict[str, Literal["eos", "stop", "length"]] = {"eos": "eos", "word": "stop", "limit": "length"}

_FIELDS = [
    "index",
    "stop",
    "tokens_predicted",
    "stop_type",
    "stopping_word",
    "timings",
    "completion_probabilities",
]
_FORCED = 1e4  # added to a logit: no other token can be drawn
_WHOLE_VOCABULARY = 10**6


class Embedded(Engine):
    """A GGUF model served by llama.cpp in this process.

    `model`: as in `weights.resolve`; loaded at the first call, freed by `close`, and loaded again if
    asked again. `slots`: samples that run at once. `context`: tokens of the longest prompt with its
    reply; all running samples share `slots * context / 2` tokens, prompts of one request counted
    once, and requests wait for room in order of arrival. `threads`: as in `settings.threads`.

    Requests that run one after another repeat with their seeds; beside others they don't, since what
    is batched together changes the rounding of quantised kernels: a log-prob by 0.02 nats on average,
    0.4 at most, and so soon the text. `deterministic=True` runs one request at a time and reuses no
    prefix: then a reply depends on its request and seed alone, at the price of reading each prompt
    anew. One engine serves any number of event loops, one after another or in several threads.
    """

    name = "embedded"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {"generate", "logprobs", "top_logprobs", "logprob", "hidden", "token_ids", "seed", "json_schema"}
    )

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        slots: int = 16,
        context: int = 2048,
        threads: int | None = None,
        deterministic: bool = False,
    ) -> None:
        for name, value in {"slots": slots, "context": context, "threads": threads}.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"Embedded: {name} must be a positive integer, got {value!r}.")
        self.model = model
        self.slots = slots
        self.context = context
        self.threads = threads
        self.deterministic = deterministic
        self.max_concurrency = 1 if deterministic else slots
        self._room = Room(slots, max(context, slots * context // 2))
        self._loading = threading.Lock()
        self._text_server: LlamaServer | None = None
        self._state_server: LlamaServer | None = None
        self._tokens = lru_cache(maxsize=4096)(self._encode)
        self._head = lru_cache(maxsize=256)(self._encode_head)
        self._tried: set[str] = set()  # grammars that llama.cpp can read

    # ------------------------------------------------------------ what an engine does

    async def ready(self) -> None:
        """Load the model."""
        await self._loaded()

    async def generate(self, request: Generate, *, seed: int) -> Served[tuple[Completion, ...]]:
        """`request.n` samples; more than there is room for at once are drawn in several rounds."""
        server = await self._loaded()
        if request.n < 1 or request.sampling.max_tokens < 1:
            raise EngineError("n and max_tokens must be at least 1.")
        rules = await self._rules(server, request)
        prompt = self._fitting(request.prompt, 1)
        length = min(request.sampling.max_tokens, self.context - len(prompt))
        width = min(self.slots, (self._room.tokens - len(prompt)) // length)
        samples: list[Sample] = []
        n_again = n_cached = n_rounds = 0
        while len(samples) < request.n:
            n = min(width, request.n - len(samples))
            body = _completion_body(prompt, request.sampling, length, derive(seed, n_rounds)) | rules
            body["n_probs"] = max(1, request.top_logprobs)
            drawn = await self._complete(server, body, n, len(prompt) + n * length)
            samples += drawn
            n_found = max(sample.n_cached for sample in drawn)
            if n_rounds == 0:
                n_cached = n_found
            else:  # of a prompt that is sent once only what is read anew counts again
                n_again += len(prompt) - n_found
            n_rounds += 1
        completions = [await self._completion(server, prompt, s, request) for s in samples]
        usage = Usage(
            input_tokens=len(prompt) + n_again,
            cached_tokens=n_cached,
            output_tokens=sum(sample.n_tokens for sample in samples),
            calls=1,
        )
        return Served(tuple(completions), usage)

    async def logprob(self, request: LogProb) -> Served[LogLikelihood]:
        """Exact up to the quantised kernels: the model is made to write the continuation. Its last token is
        told of and not read."""
        server = await self._loaded()
        prompt = self._fitting(request.prompt, 1)
        ids = request.continuation_ids or self._continuation(request.prompt, request.continuation)
        if not ids:
            return Served(LogLikelihood(()), Usage(calls=1))
        self._fitting(request.prompt, len(ids))
        logprobs, n_read = await self._score(server, prompt, ids)
        n = max(n_read, len(prompt) + len(ids) - 1)  # more was read where tokens were asked for again
        return Served(LogLikelihood(logprobs), Usage(input_tokens=n, cached_tokens=n - n_read, calls=1))

    async def hidden(self, request: Hidden) -> Served[tuple[float, ...]]:
        """Last-layer state after the final norm; loads the weights once more, at its first call."""
        await self._loaded()  # it has the tokeniser
        prompt = self._fitting(request.prompt, 0)
        server = await asyncio.to_thread(self._state)
        async with self._room.hold(self.slots if self.deterministic else 1, 0):
            reply = await server.post("/embedding", {"input": list(prompt), "embd_normalize": -1})
        return Served(tuple(reply[0]["embedding"][0]), Usage(input_tokens=len(prompt), calls=1))

    def count_tokens(self, prompt: Prompt) -> int:
        """Exact. Loads the model if it is not loaded."""
        return len(self._tokens(prompt))

    async def close(self) -> None:
        """Abort what is in flight and free the model."""
        await asyncio.to_thread(self._free)

    # ------------------------------------------------------------ the servers

    async def _loaded(self) -> LlamaServer:
        if self._text_server is not None:
            return self._text_server
        return await asyncio.to_thread(self._text)

    def _text(self) -> LlamaServer:
        with self._loading:
            if self._text_server is None:
                self._text_server = self._load(self.slots, self._room.tokens)
            return self._text_server

    def _state(self) -> LlamaServer:
        with self._loading:
            if self._state_server is None:
                self._state_server = self._load(1, self.context, embedding=True)
            return self._state_server

    def _load(self, slots: int, n_ctx: int, *, embedding: bool = False) -> LlamaServer:
        path = weights.resolve(self.model)
        threads = self.threads or settings.threads()
        return LlamaServer(path, slots=slots, n_ctx=n_ctx, threads=threads, embedding=embedding)

    def _free(self) -> None:
        with self._loading:
            servers = (self._text_server, self._state_server)
            self._text_server = self._state_server = None
            self._tokens.cache_clear()
            self._head.cache_clear()
        for server in servers:
            if server is not None:
                server.close()

    # ------------------------------------------------------------ text to tokens

    def _fitting(self, prompt: Prompt, n_more: int) -> tuple[int, ...]:
        """The prompt's ids. Raises EngineError if they and `n_more` do not fit, or there are none."""
        ids = self._tokens(prompt)
        if not ids:
            raise EngineError("The prompt is empty: give messages or a prefix.")
        if len(ids) + n_more > self.context:
            raise too_long(len(ids) + n_more, self.context)
        return ids

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if not prompt.messages and not prompt.prefix_ids:
            return self._tokenize(prompt.prefix, beginning=True)
        ids = prompt.prefix_ids or self._tokenize(prompt.prefix)
        return self._head(replace(prompt, prefix="", prefix_ids=())) + ids

    def _encode_head(self, prompt: Prompt) -> tuple[int, ...]:
        """What precedes the prefix. Without messages only the token that begins a text, if there is one."""
        if not prompt.messages:
            return self._tokenize("", beginning=True)
        messages = [plain(message) for message in prompt.messages]
        text = self._templated(messages)
        if prompt.tools:
            tools = [described(tool) for tool in prompt.tools]
            told = self._templated(messages, tools=tools)
            text = self._templated(offer(messages, tools)) if told == text else told
        return self._tokenize(text, beginning=True)

    def _templated(self, messages: Sequence[dict[str, str]], **beside: Any) -> str:
        return str(self._text().ask("/apply-template", {"messages": messages, **beside})["prompt"])

    def _tokenize(self, text: str, *, beginning: bool = False) -> tuple[int, ...]:
        """Ids of a text. At the beginning of a prompt special tokens are read as such; within an
        answer they are text, so that no model or user can end its turn by writing their names."""
        body = {"content": text, "add_special": beginning, "parse_special": beginning}
        return tuple(self._text().ask("/tokenize", body)["tokens"])

    def _continuation(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        """Ids of `text` after the prompt: tokenised together and cut, where the cut falls between tokens."""
        if prompt.prefix and not prompt.prefix_ids:
            before = self._tokens(prompt)
            both = self._tokens(replace(prompt, prefix=prompt.prefix + text))
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._tokenize(text)

    # ------------------------------------------------------------ calls

    async def _complete(
        self, server: LlamaServer, body: dict[str, Any], n: int, n_tokens: int
    ) -> list[Sample]:
        """One streamed request of `n` samples that needs `n_tokens` of the pool."""
        samples = [Sample(self._tokenize) for _ in range(n)]
        body |= {"cache_prompt": not self.deterministic, "stream": True, "n_cmpl": n}
        async with self._room.hold(self.slots if self.deterministic else n, n_tokens):
            await server.events("/completion", body, lambda event: samples[event["index"]].hear(event))
        if not all(sample.finish for sample in samples):
            raise TransientError("llama.cpp ended a reply before its end.")
        return samples

    async def _completion(
        self, server: LlamaServer, prompt: Sequence[int], sample: Sample, request: Generate
    ) -> Completion:
        ids = sample.ids
        told, _ = await self._fill(server, prompt, ids, sample.logprobs) if request.logprobs else ((), 0)
        top = await self._tops(server, prompt, sample, request.top_logprobs) if request.top_logprobs else ()
        text = (await server.post("/detokenize", {"tokens": ids}))["content"] if ids else ""
        finish = _FINISH.get(sample.finish, "length")
        return Completion(text, ids, told, finish, sample.stop, sample.n_tokens, top)

    async def _tops(
        self, server: LlamaServer, prompt: Sequence[int], sample: Sample, n: int
    ) -> tuple[tuple[float, ...], ...]:
        """The `n` best log-probs at each token of a sample; where they are unknown, asked for."""
        found = []
        for i, top in enumerate(sample.tops):
            if not top:
                told, _ = await self._told_of(server, [*prompt, *sample.ids[:i]], server.eos, n)
                top = best_logprobs(told[0])
            found.append(top[:n])
        return tuple(found)

    async def _rules(self, server: LlamaServer, request: Generate) -> dict[str, Any]:
        """The fields that keep a request's constraint. Of a grammar that it cannot read llama.cpp says
        nothing and goes on without: so each is tried once, against the pull of an end of turn."""
        if request.constraint is None:
            return {}
        text = grammar(request.constraint, request.prompt.prefix)
        if text not in self._tried:
            body = _completion_body([server.eos], Sampling(temperature=0), 1, 0)
            body |= {"grammar": text, "logit_bias": [[server.eos, _FORCED]]}
            async with self._room.hold(self.slots if self.deterministic else 1, 2):
                reply = await server.post("/completion", body)
            if reply["stop_type"] == "eos":
                raise EngineError(
                    f"llama.cpp cannot keep this {type(request.constraint).__name__}: {text[:200]!r}. "
                    "The transformers and sglang engines may."
                )
            self._tried.add(text)
        return {"grammar": text}

    async def _score(
        self, server: LlamaServer, prompt: Sequence[int], ids: Sequence[int]
    ) -> tuple[tuple[float, ...], int]:
        """Log-probs of `ids` after the prompt, and how many tokens were read for them.

        A grammar that admits only these ids makes the model write them; the log-probs reported are
        those before any constraint. llama.cpp refuses grammars over parts of characters and over the
        end of turn; then each token is asked for by itself.
        """
        body = _completion_body(prompt, Sampling(temperature=0), len(ids), 0)
        body["grammar"] = "root ::= " + " ".join(f"<[{token}]>" for token in ids)
        known: Sequence[float | None] = [None] * len(ids)
        n_read = 0
        with suppress(TransientError):
            [sample] = await self._complete(server, body, 1, len(prompt) + len(ids))
            n_read = len(prompt) - sample.n_cached + sample.n_tokens - 1
            if sample.ids == tuple(ids):
                known = sample.logprobs
        told, n_more = await self._fill(server, prompt, ids, known)
        return told, n_read + n_more

    async def _fill(
        self,
        server: LlamaServer,
        prompt: Sequence[int],
        ids: Sequence[int],
        known: Sequence[float | None],
    ) -> tuple[tuple[float, ...], int]:
        """The log-probs of `ids`, each unknown one (None) asked for by itself, and how many tokens were
        read for that."""
        told, n_read = [], 0
        for i, found in enumerate(known):
            n = 0
            if found is None:
                found, n = await self._score_one(server, [*prompt, *ids[:i]], ids[i])
            told.append(found)
            n_read += n
        return tuple(told), n_read

    async def _score_one(self, server: LlamaServer, prompt: Sequence[int], token: int) -> tuple[float, int]:
        """Log-prob of one token: drawn by force (10 ms), or, where llama.cpp keeps a drawn token to
        itself, looked up in the head of the distribution, or in all of it (0.6 s for 49,152 tokens).
        And the number of tokens that were read."""
        n_read = 0
        for drawn, n_probs in ((token, 1), (server.eos, 1000), (server.eos, _WHOLE_VOCABULARY)):
            found, n = await self._told_of(server, prompt, drawn, n_probs)
            n_read += n
            for told in found:
                for each in (told, *told["top_logprobs"]):
                    if each["id"] == token:
                        return drawn_logprob(each), n_read
        raise EngineError(f"llama.cpp tells no log-prob of token {token}.")

    async def _told_of(
        self, server: LlamaServer, prompt: Sequence[int], drawn: int, n_probs: int
    ) -> tuple[Sequence[Any], int]:
        """What llama.cpp tells of the distribution after a prompt, `drawn` being drawn by force, and how
        many tokens it read."""
        body = _completion_body(prompt, Sampling(temperature=0), 1, 0)
        body |= {"logit_bias": [[drawn, _FORCED]], "n_probs": n_probs, "cache_prompt": not self.deterministic}
        async with self._room.hold(self.slots if self.deterministic else 1, len(prompt) + 1):
            reply = await server.post("/completion", body)
        return reply.get("completion_probabilities", ()), reply["timings"]["prompt_n"]


def _completion_body(prompt: Sequence[int], sampling: Sampling, length: int, seed: int) -> dict[str, Any]:
    """A request to `/completion`. Every sampler of llama.cpp that is not named is off."""
    samplers = ["temperature"] + ["top_k"] * (sampling.top_k > 0) + ["top_p"] * (sampling.top_p < 1)
    samplers += ["min_p"] * (sampling.min_p > 0)
    return {
        "prompt": list(prompt),
        "n_predict": length,
        "temperature": sampling.temperature,
        "samplers": samplers,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "n_probs": 1,
        "stop": list(sampling.stop),
        # 32 bits, and all ones mean "random"; llama.cpp numbers the samples up from it.
        "seed": derive(seed, "llama.cpp") % (2**32 - 2**16),
        "response_fields": _FIELDS,
    }
