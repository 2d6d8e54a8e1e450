"""An engine that says what it is told to: for tests, and for trying a strategy without a model.

>>> import asyncio
>>> engine = Scripted({"2+2": "4", "": "I don't know."})
>>> asyncio.run(engine.generate(Generate(Prompt.user("2+2?")), seed=0)).value[0].text
'4'
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from math import log
from typing import TypeAlias
from zlib import crc32

from .base import Capability, Engine, Served
from .errors import EngineError
from .flow import Completion, Generate, Hidden, LogLikelihood, LogProb, Prompt, Rate, Sampling, Usage

Said: TypeAlias = str | Completion | EngineError
"""One sample's reply; an error is raised."""

Script: TypeAlias = (
    str | Sequence[Said] | Mapping[str, str | Sequence[str]] | Callable[[Generate, int], str | Sequence[Said]]
)

_TOKEN = re.compile(r"\n+|[^\S\n]*\S+|[^\S\n]+")
_LOG_HALF = log(0.5)


class Scripted(Engine):
    """Replies from a constant, a list, a mapping or a function.

    - `"text"`: always this.
    - a sequence: used up in order, one item for each sample; at its end an EngineError says so.
    - a mapping: the reply of the first key that the prompt contains; `""` is in every prompt.
    - a function `(request, seed)`.

    A reply is one text for all samples or a sequence of texts, from which sample i takes number i
    modulo its length. `stop` and `max_tokens` cut it as an engine would; a `Completion` is given out as
    it is. To fail, let the function raise, or the list hold, a TransientError or EngineError. Tokens are
    words with the white space before them and runs of newlines; each has probability 1/2. With
    `ids=True` completions carry token ids. `top_logprobs` says of a request the best log-probs, falling, at
    each token of a text; a `Completion` given carries its own. `latency_s` is waited before each reply of
    any kind; `logprob`, `rate` and `hidden` answer the requests of that name. All four are capabilities if
    given.
    """

    name = "scripted"

    def __init__(
        self,
        replies: Script,
        *,
        latency_s: float | Callable[[object], float] = 0.0,
        logprob: Callable[[LogProb], float | Sequence[float]] | None = None,
        rate: Callable[[Rate], float] | None = None,
        hidden: Callable[[Hidden], Sequence[float]] | None = None,
        top_logprobs: Callable[[Generate], Sequence[float]] | None = None,
        ids: bool = False,
    ) -> None:
        self._script = replies
        self._remaining: Iterator[Said] = iter(())
        if not callable(replies) and not isinstance(replies, str | Mapping):
            self._remaining = iter(tuple(replies))
        self._latency_s = latency_s
        self._logprob = logprob
        self._rate = rate
        self._hidden = hidden
        self._top = top_logprobs
        self._ids = ids
        self._constant: dict[tuple[int, int, tuple[str, ...], int], Served[tuple[Completion, ...]]] = {}
        gives: set[Capability] = {"generate", "logprobs", "seed", "workers"}
        gives |= {"token_ids"} if ids else set()
        gives |= {"logprob"} if logprob else set()
        gives |= {"rate"} if rate else set()
        gives |= {"hidden"} if hidden else set()
        gives |= {"top_logprobs"} if top_logprobs else set()
        vars(self)["capabilities"] = frozenset(gives)  # of the instance: a script says what it can do

    async def generate(self, request: Generate, *, seed: int) -> Served[tuple[Completion, ...]]:
        """What the script says."""
        if self._latency_s:
            await self._wait(request)
        n_input = self.count_tokens(request.prompt)
        if isinstance(self._script, str) and not request.logprobs and not request.top_logprobs:
            sampling = request.sampling
            key = (request.n, sampling.max_tokens, sampling.stop, n_input)
            if key not in self._constant:
                self._constant[key] = self._serve(request, [self._script], n_input)
            return self._constant[key]
        return self._serve(request, self._said(request, seed), n_input)

    async def logprob(self, request: LogProb) -> Served[LogLikelihood]:
        """What the function given says: one number for the whole continuation, or one for each token."""
        if self._logprob is None:
            raise self._cannot("score a given continuation: give Scripted(logprob=...)")
        await self._wait(request)
        told = self._logprob(request)
        logprobs = (float(told),) if isinstance(told, float | int) else tuple(told)
        n_input = self.count_tokens(request.prompt) + max(0, len(logprobs) - 1)
        return Served(LogLikelihood(logprobs), Usage(input_tokens=n_input, calls=1))

    async def hidden(self, request: Hidden) -> Served[tuple[float, ...]]:
        """What the function given says."""
        if self._hidden is None:
            raise self._cannot("return hidden states: give Scripted(hidden=...)")
        await self._wait(request)
        usage = Usage(input_tokens=self.count_tokens(request.prompt), calls=1)
        return Served(tuple(self._hidden(request)), usage)

    async def rate(self, request: Rate) -> Served[float]:
        """What the function given says."""
        if self._rate is None:
            raise self._cannot("rate answers: give Scripted(rate=...)")
        await self._wait(request)
        usage = Usage(input_tokens=self.count_tokens(request.prompt), calls=1)
        return Served(self._rate(request), usage)

    async def _wait(self, request: object) -> None:
        wait_s = self._latency_s(request) if callable(self._latency_s) else self._latency_s
        if wait_s:
            await asyncio.sleep(wait_s)

    def _said(self, request: Generate, seed: int) -> Sequence[Said]:
        """The replies for one request, at least one."""
        script = self._script
        if isinstance(script, Mapping):
            text = _text(request.prompt)
            found = next((reply for key, reply in script.items() if key in text), None)
            if found is None:
                raise EngineError(f"The script has no key that occurs in the prompt {text[-200:]!r}.")
            return [found] if isinstance(found, str) else found
        if callable(script):
            told = script(request, seed)
            return [told] if isinstance(told, str) else told
        if isinstance(script, str):
            return [script]
        said = list(islice(self._remaining, request.n))
        if len(said) < request.n:
            raise EngineError(f"The script has ended: {len(script)} replies, and one more was asked for.")
        return said

    def _serve(self, request: Generate, said: Sequence[Said], n_input: int) -> Served[tuple[Completion, ...]]:
        if not said:
            raise EngineError("The script gave an empty list of replies.")
        completions = []
        for i in range(request.n):
            reply = said[i % len(said)]
            if isinstance(reply, EngineError):
                raise reply
            if isinstance(reply, str):
                reply = _cut(reply, request.sampling, ids=self._ids, logprobs=request.logprobs)
                if request.top_logprobs and self._top is not None:
                    best = tuple(self._top(request))[: request.top_logprobs]
                    reply = replace(reply, top_logprobs=(best,) * len(_TOKEN.findall(reply.text)))
            completions.append(reply)
        n_output = sum(completion.n_tokens for completion in completions)
        return Served(tuple(completions), Usage(input_tokens=n_input, output_tokens=n_output, calls=1))


def _cut(text: str, sampling: Sampling, *, ids: bool, logprobs: bool) -> Completion:
    """The text as an engine would have ended it. The end of a turn is a token, in count as elsewhere."""
    ends = [(text.index(stop) + len(stop), stop) for stop in sampling.stop if stop in text]
    end, stop = min(ends, default=(len(text), ""))
    tokens = _TOKEN.findall(text[:end])
    finished: bool = len(tokens) + (not stop) <= sampling.max_tokens
    if not finished:
        tokens, stop = tokens[: sampling.max_tokens], ""
    return Completion(
        "".join(tokens),
        tuple(crc32(token.encode()) for token in tokens) if ids else (),
        (_LOG_HALF,) * len(tokens) if logprobs else (),
        "length" if not finished else "stop" if stop else "eos",
        stop,
        len(tokens) + (finished and not stop),
    )


def _text(prompt: Prompt) -> str:
    return "\n".join([*(message.content for message in prompt.messages), prompt.prefix])
