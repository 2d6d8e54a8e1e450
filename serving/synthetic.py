"""Exact small models whose every continuation can be enumerated.

A turn is a sequence of steps: a symbol, then a blank line. After each step the model draws the next
symbol, or ends its turn; after `depth` steps it must end. The probabilities are a deterministic
function of (prefix, seed), so that what a search finds can be held against the truth:

>>> model = Synthetic(seed=1, alphabet="ab", depth=2)
>>> [(step, round(p, 2)) for step, p in model.children("a\\n\\n")]
[('a\\n\\n', 0.29), ('b\\n\\n', 0.09), ('', 0.62)]
>>> model.children("a\\n\\nb\\n\\n")
[('', 1.0)]
"""

import asyncio
import random
from collections.abc import Iterable
from math import log
from typing import ClassVar, Literal

from .base import Capability, Engine, Served
from .errors import EngineError, UsageError
from .flow import Completion, Generate, LogLikelihood, LogProb, Prompt, Rate, Usage
from .seeds import derive

_BREAK = "\n\n"  # ends a step; token 0. Symbol i is token i + 1; the end of the turn has no text and no id


class Synthetic(Engine):
    """A model over `alphabet`, distinct characters, with turns of 1 to `depth` steps.

    Questions don't matter, only what has been written so far. Of `Sampling`, temperature, `min_p`,
    `max_tokens` and `stop` are honoured. `rate` scores a prefix uniformly in [0, 1]. `latency_s` is waited
    before each reply, for those who want to watch a search or to stop it. Workers write as if they were one.
    """

    name = "synthetic"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {"generate", "logprobs", "top_logprobs", "logprob", "rate", "token_ids", "seed", "workers"}
    )

    def __init__(
        self, *, seed: int = 0, alphabet: str = "abc", depth: int = 4, latency_s: float = 0.0
    ) -> None:
        if not alphabet or len(set(alphabet)) < len(alphabet) or "\n" in alphabet:
            raise UsageError(f"alphabet must be distinct characters other than newline, got {alphabet!r}.")
        if depth < 1:
            raise UsageError(f"depth must be at least 1, got {depth}.")
        self.seed = seed
        self.alphabet = alphabet
        if not 0 <= latency_s < 3600:
            raise UsageError(f"latency_s must be from 0 to 3600 seconds, got {latency_s}.")
        self.depth = depth
        self.latency_s = latency_s

    # ------------------------------------------------------------ the truth

    def children(self, prefix: str, *, temperature: float = 1.0) -> list[tuple[str, float]]:
        """Every next step after `prefix`, whole steps, with its probability; `""` ends the turn."""
        return [(text + _BREAK if text else "", p) for text, p in self._next(prefix, temperature) if p > 0]

    def value(self, prefix: str) -> float:
        """What `rate` says of a prefix, in [0, 1]."""
        return derive(self.seed, "value", prefix) / 2**63

    def _next(self, prefix: str, temperature: float = 1.0) -> list[tuple[str, float]]:
        """The next token's distribution, the end of the turn as "": Dirichlet(1), by inverse transform."""
        if prefix and not prefix.endswith(_BREAK):
            return [(_BREAK, 1.0)]
        steps = prefix.count(_BREAK)
        if steps >= self.depth:
            return [("", 1.0)]
        tokens = [*self.alphabet, ""] if steps else [*self.alphabet]
        weights = [-log((derive(self.seed, prefix, t) + 1) / (2**63 + 1)) for t in tokens]
        if temperature == 0:
            best = max(weights)
            weights = [float(w == best) for w in weights]
        elif temperature != 1:
            weights = [w ** (1 / temperature) for w in weights]
        total = sum(weights)
        return [(token, w / total) for token, w in zip(tokens, weights, strict=True)]

    # ------------------------------------------------------------ the engine

    async def generate(self, request: Generate, *, seed: int) -> Served[tuple[Completion, ...]]:
        """Sample i is drawn with `derive(seed, i)` and nothing else."""
        await self._wait()
        prefix = self._written(request.prompt)
        drawn = tuple(self._draw(prefix, request, random.Random(derive(seed, i))) for i in range(request.n))
        n_output = sum(completion.n_tokens for completion in drawn)
        return Served(drawn, Usage(self.count_tokens(request.prompt), output_tokens=n_output, calls=1))

    async def logprob(self, request: LogProb) -> Served[LogLikelihood]:
        """Exact; -inf where the model cannot say it."""
        await self._wait()
        prefix = self._written(request.prompt)
        ids = request.continuation_ids
        tokens = [self._token(i) for i in ids] if ids else _tokens(request.continuation)
        logprobs = []
        for token in tokens:
            p = dict(self._next(prefix)).get(token, 0.0)
            logprobs.append(log(p) if p else float("-inf"))
            prefix += token
        n_input = self.count_tokens(request.prompt) + max(0, len(tokens) - 1)
        return Served(LogLikelihood(tuple(logprobs)), Usage(input_tokens=n_input, calls=1))

    async def rate(self, request: Rate) -> Served[float]:
        """`value` of what has been written."""
        await self._wait()
        usage = Usage(input_tokens=self.count_tokens(request.prompt), calls=1)
        return Served(self.value(self._written(request.prompt)), usage)

    async def _wait(self) -> None:
        if self.latency_s:
            await asyncio.sleep(self.latency_s)

    def count_tokens(self, prompt: Prompt) -> int:
        """Characters of the messages, tokens of the prefix."""
        return sum(len(m.content) for m in prompt.messages) + len(_tokens(self._written(prompt)))

    def _draw(self, prefix: str, request: Generate, rng: random.Random) -> Completion:
        sampling = request.sampling
        tokens: list[str] = []
        text, stop = "", ""
        while len(tokens) < sampling.max_tokens:
            options = self._next(prefix + text, sampling.temperature)
            least = sampling.min_p * max(p for _, p in options)
            options = [(t, p) for t, p in options if p >= least]
            token = rng.choices([t for t, _ in options], [p for _, p in options])[0]
            if not token:
                return self._completion(prefix, tokens, request, "", ended=True)
            tokens.append(token)
            text += token
            stop = next((each for each in sampling.stop if each in text), "")
            if stop:
                break
        return self._completion(prefix, tokens, request, stop, ended=False)

    def _completion(
        self, prefix: str, tokens: list[str], request: Generate, stop: str, *, ended: bool
    ) -> Completion:
        ids = tuple(0 if t == _BREAK else self.alphabet.index(t) + 1 for t in tokens)
        finish: Literal["eos", "stop", "length"] = "stop" if stop else "eos" if ended else "length"
        asked = request.logprobs or request.top_logprobs
        at = [dict(self._next(prefix + "".join(tokens[:i]))) for i in range(len(tokens))] if asked else []
        told = tuple(log(p[t]) for p, t in zip(at, tokens, strict=False)) if request.logprobs else ()
        top = tuple(_best(p.values(), request.top_logprobs) for p in at) if request.top_logprobs else ()
        return Completion("".join(tokens), ids, told, finish, stop, len(tokens) + ended, top)

    def _written(self, prompt: Prompt) -> str:
        return prompt.prefix or "".join(self._token(i) for i in prompt.prefix_ids)

    def _token(self, i: int) -> str:
        if not 0 <= i <= len(self.alphabet):
            raise EngineError(
                f"No token {i} in an alphabet of {len(self.alphabet)} symbols and the break, 0."
            )
        return self.alphabet[i - 1] if i else _BREAK


def _best(probabilities: Iterable[float], n: int) -> tuple[float, ...]:
    return tuple(sorted((log(p) for p in probabilities if p > 0), reverse=True)[:n])


def _tokens(text: str) -> list[str]:
    """Characters, with each pair of newlines as one token."""
    return [t for part in text.split(_BREAK) for t in (*part, _BREAK)][:-1]
