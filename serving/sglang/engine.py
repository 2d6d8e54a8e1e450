"""The engine of the serving layer: a model served by SGLang, over HTTP or in this process.

    Prompt ── server's tokeniser, remembered ──► ids ── Prefixes ──► /generate ──► Completion

Prompts travel as token ids, so that a continuation is found in the server's prefix cache to the last
token, and log-probs belong to the text.
"""

import asyncio
import itertools
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Any, ClassVar, TypeVar

from ..base import Capability, Engine, Served
from ..errors import EngineError, TransientError, UsageError
from ..flow import Completion, Generate, Hidden, LogLikelihood, LogProb, Prompt, Rate, Sampling, Usage
from . import grammars, scoring, wire
from .http import Http
from .once import Once
from .prefixes import Prefixes
from .tokens import Conversation, Ids, Tokens, upper_estimate
from .transport import Transport

T = TypeVar("T")

_ONE_DRAWN = wire.parameters(Sampling(temperature=0), 1)
_PAUSE_S = 5.0  # without asking for an exact token count, after no quick answer came


@dataclass(frozen=True)
class _Facts:
    """What a server says of itself."""

    longest: int  # tokens of a prompt with its reply; 0: unknown
    vocabulary: int  # 0: unknown
    seeded: bool  # whether `sampling_seed` has an effect


class Sglang(Engine):
    """A model served by SGLang 0.5.23 or later.

    `url`: of the server; `abduce engine MODEL` starts one. `api_key`: as the server was given it.
    `patience_s`: how long calls wait for a server that has gone away. `model`: instead of a server, a
    model for a `sglang.Engine` in this process; `options` are that engine's own arguments.

    Prompts are remembered as ids; the first samples of a new prompt wait until it has been read once.
    Log-probs are the model's own at temperature 1 whatever was asked for: taken from the samples where
    the server runs with SGLANG_RETURN_ORIGINAL_LOGPROB=1, as `abduce engine` starts it, or where they are
    the same, and else from a second reading. One engine serves any number of event loops.
    """

    name = "sglang"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {"generate", "logprobs", "top_logprobs", "logprob", "hidden", "rate", "token_ids", "json_schema"}
    )

    def __init__(
        self,
        url: str = "http://127.0.0.1:30000",
        *,
        model: str | None = None,
        api_key: str | None = None,
        patience_s: float = 120.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(patience_s, int | float) or patience_s < 0:
            raise UsageError(f"Sglang: patience_s must be a number of seconds, got {patience_s!r}.")
        if options is not None and model is None:
            raise UsageError("Sglang: options are those of an engine in this process: give its model too.")
        self._transport: Transport
        if model is None:
            self._transport = Http(url, api_key=api_key, patience_s=patience_s)
        else:
            from .in_process import InProcess

            self._transport = InProcess(model, options or {})
        self._tokens = Tokens()
        self._prefixes = Prefixes(self._read)
        self._once = Once()
        self._facts: _Facts | None = None
        self._original: bool | None = None  # whether log-probs of samples are those before the temperature
        self._name = uuid.uuid4().hex[:16]
        self._numbers = itertools.count()
        self._ask_after = 0.0

    # ------------------------------------------------------------ what an engine does

    async def ready(self) -> None:
        """Raises UsageError if there is no server, saying how to start one."""
        await self._transport.start()
        await self._known()

    async def generate(self, request: Generate, *, seed: int) -> Served[tuple[Completion, ...]]:
        """`request.n` samples, sent as one batch."""
        if request.n < 1 or request.sampling.max_tokens < 1:
            raise EngineError("n and max_tokens must be at least 1.")
        facts = self._facts or await self._known()
        ids = await self._ids(request.prompt)
        length = self._length(facts, ids, request.sampling.max_tokens)
        params = wire.parameters(request.sampling, length)
        bent = False
        beside: dict[str, Any] = {}
        if request.extra:
            more, beside, bent = wire.divide(request.extra)
            params |= more
        if request.constraint is not None:
            params |= grammars.fields(request.constraint, request.prompt.prefix)
            bent = True
        cached = None
        if request.n > 1 or not request.prompt.prefix_ids:  # what a server drew it has in its cache
            cached = await self._prefixes.read(ids, request.n)
        told = request.logprobs or request.top_logprobs > 0
        direct = told and not bent and await self._are_own(request.sampling)
        if direct:
            beside |= {"return_logprob": True, "top_logprobs_num": request.top_logprobs}
        body = wire.drawing(ids, params, beside, request.n, seed if facts.seeded else None)
        said = await self._post("/generate", body)
        said = [said] if request.n == 1 else said
        drawn = wire.completions(
            said, logprobs=direct and request.logprobs, top=request.top_logprobs * direct
        )
        self._prefixes.add(ids, [each["output_ids"] for each in said])
        usage = _usage(len(ids), said, cached, sum([each.n_tokens for each in drawn]))
        if told and not direct:
            drawn, again = await self._read_again(ids, drawn, request)
            usage += again
        return Served(tuple(drawn), usage)

    async def logprob(self, request: LogProb) -> Served[LogLikelihood]:
        """Nothing is drawn: see `scoring`. Of pairs that begin with one new prompt the first goes ahead."""
        facts = self._facts or await self._known()
        prompt = await self._ids(request.prompt)
        ids = request.continuation_ids
        if ids:
            self._check(facts, ids)
        else:
            ids = await self._talk(self._tokens.continuation(request.prompt, request.continuation))
        if not ids:
            return Served(LogLikelihood(()), Usage(calls=1))
        async with self._prefixes.turn(prompt):
            said = await self._post("/generate", scoring.request(prompt, ids))
        logprobs, _ = scoring.told(said, ids)
        self._prefixes.add(prompt, [ids[:-1]])
        return Served(LogLikelihood(logprobs), _usage(len(prompt) + len(ids) - 1, [said], None, 0))

    async def hidden(self, request: Hidden) -> Served[tuple[float, ...]]:
        """Last-layer state after the final norm. The server must run with --enable-return-hidden-states."""
        ids = await self._ids(request.prompt)
        cached = await self._read(ids)  # so that only the last token is read anew, and told about
        body = {"input_ids": ids, "sampling_params": _ONE_DRAWN, "return_hidden_states": True}
        said = await self._post("/generate", body)
        states = said["meta_info"].get("hidden_states")
        if not states:
            raise EngineError(
                f"{self._transport.where} tells no hidden states: start it with "
                "--enable-return-hidden-states."
            )
        return Served(tuple(map(float, states[0][-1])), _usage(len(ids), [said], cached, 0))

    async def rate(self, request: Rate) -> Served[float]:
        """The score of a served reward model at the last token; a last assistant message is a whole turn."""
        facts = self._facts or await self._known()
        ids = self._check(facts, await self._talk(self._tokens.whole(request.prompt)))
        said = await self._post("/classify", {"input_ids": ids})
        score = said["embedding"]
        if len(score) != 1 or not isinstance(score[0], int | float):
            raise EngineError(
                f"{self._transport.where} serves no reward model: it tells {len(score)} numbers, not one."
            )
        return Served(float(score[0]), _usage(len(ids), [said], None, 0))

    def count_tokens(self, prompt: Prompt) -> int:
        """Exact where the head and text were seen before or the server answers within a second, which it
        does in a few ms unless it is down; else an upper estimate."""
        found = self._tokens.known(prompt)
        if found is None and monotonic() >= self._ask_after:
            try:
                found = self._talk_now(self._tokens.ids(prompt))
            except EngineError:
                self._ask_after = monotonic() + _PAUSE_S
        return upper_estimate(prompt) if found is None else len(found)

    async def close(self) -> None:
        """Close connections, or the engine in this process."""
        await self._transport.close()

    # ------------------------------------------------------------ calls

    # Hundreds of calls wait at once and the garbage collector walks all that they hold: no closures here.

    async def _post(self, route: str, body: dict[str, Any]) -> Any:
        """One request, named so that it can be aborted. Names are of one length: the server aborts
        whatever begins with a name."""
        ids = body["input_ids"]
        rid = f"{self._name}{next(self._numbers):012x}"
        if not ids or isinstance(ids[0], int):
            body["rid"] = rid
        elif self._transport.singly:
            return await asyncio.gather(*map(partial(self._post, route), wire.single(body)))
        else:
            body["rid"] = wire.rids(rid, len(ids))
        try:
            return await self._transport.post(route, body)
        except TransientError:
            self._facts = self._original = None  # another server may be there now
            self._prefixes.forget()
            raise

    async def _read(self, ids: Ids) -> int:
        """Have the server read a prompt; returns how much of it was cached."""
        said = await self._post("/generate", {"input_ids": ids, "sampling_params": scoring.NOTHING_DRAWN})
        return int(said["meta_info"]["cached_tokens"])

    async def _read_again(
        self, ids: Ids, drawn: list[Completion], request: Generate
    ) -> tuple[list[Completion], Usage]:
        """The samples with the model's own log-probs, and what was read once more."""
        texts = [i for i, each in enumerate(drawn) if each.ids]
        if not texts:
            return drawn, Usage()
        top = request.top_logprobs
        body = scoring.request(ids, *(drawn[i].ids for i in texts), top=top)
        said = await self._post("/generate", body)
        said = said if isinstance(said, list) else [said]
        for i, each in zip(texts, said, strict=True):
            logprobs, best = scoring.told(each, drawn[i].ids, top=top)
            drawn[i] = replace(
                drawn[i], logprobs=logprobs if request.logprobs else (), top_logprobs=best if top else ()
            )
        anew = sum(each["meta_info"]["prompt_tokens"] - each["meta_info"]["cached_tokens"] for each in said)
        return drawn, Usage(input_tokens=anew)

    # ------------------------------------------------------------ prompts

    async def _ids(self, prompt: Prompt) -> Ids:
        """The prompt's ids. Raises EngineError if there are none, or some the model does not have."""
        ids = self._tokens.known(prompt)
        if ids is None:
            ids = await self._once.get(prompt, partial(self._find_ids, prompt))
        if not ids:
            raise EngineError("The prompt is empty: give messages or a prefix.")
        if prompt.prefix_ids:
            self._check(self._facts or await self._known(), prompt.prefix_ids)
        return ids

    async def _find_ids(self, prompt: Prompt) -> Ids:
        return await self._talk(self._tokens.ids(prompt))

    def _check(self, facts: _Facts, ids: Ids) -> Ids:
        """SGLang's scheduler dies of a token id that is not in the vocabulary."""
        if facts.vocabulary and not (min(ids) >= 0 and max(ids) < facts.vocabulary):
            raise EngineError(f"Token ids must be in [0, {facts.vocabulary}): are they of another model?")
        return ids

    def _length(self, facts: _Facts, ids: Ids, wanted: int) -> int:
        """How many tokens may be drawn."""
        if not facts.longest:
            return wanted
        if len(ids) >= facts.longest:
            raise EngineError(f"The prompt has {len(ids)} tokens; the server takes {facts.longest}.")
        return min(wanted, facts.longest - len(ids))

    async def _talk(self, conversation: Conversation[T]) -> T:
        try:
            ask = conversation.send(None)
            while True:
                ask = conversation.send(await self._transport.post(*ask))
        except StopIteration as end:
            value: T = end.value
            return value

    def _talk_now(self, conversation: Conversation[T]) -> T:
        try:
            ask = conversation.send(None)
            while True:
                ask = conversation.send(self._transport.ask(*ask))
        except StopIteration as end:
            value: T = end.value
            return value

    # ------------------------------------------------------------ what the server is

    async def _known(self) -> _Facts:
        if self._facts is None:
            self._facts = await self._once.get("facts", self._find_facts)
        return self._facts

    async def _find_facts(self) -> _Facts:
        told: Mapping[str, Any] = {}
        with suppress(EngineError):  # a router may not tell
            told = await self._transport.get("/server_info")
        states = (told.get("internal_states") or [{}])[0]
        seeded = any(each.get("enable_deterministic_inference") for each in (told, states))
        longest = int(told.get("max_req_input_len") or 0)
        vocabulary = 0
        if not told.get("is_embedding"):
            vocabulary = await self._find_vocabulary()
        return _Facts(longest, vocabulary, seeded)

    async def _find_vocabulary(self) -> int:
        """The number of token ids. No route tells it, but a refusal does."""
        body = {"input_ids": [0], "sampling_params": _ONE_DRAWN, "return_logprob": True}
        try:
            await self._post("/generate", body | {"token_ids_logprob": [2**31 - 1]})
        except TransientError:
            raise
        except EngineError as refusal:
            if found := re.search(r"\[0, (\d+)\)", str(refusal)):
                return int(found[1])
        return 0

    async def _are_own(self, sampling: Sampling) -> bool:
        """Whether samples come with the model's own log-probs: at temperature 1, greedy (which SGLang does
        at temperature 1), or from a server that tells those before the temperature."""
        if sampling.temperature in (0, 1):
            return True
        if self._original is None:
            self._original = await self._once.get("original", self._find_original)
        return self._original

    async def _find_original(self) -> bool:
        """Ask for the log-prob of one token at two temperatures."""
        found = []
        for temperature in (0.5, 1.0):
            params = wire.parameters(Sampling(temperature=temperature), 1)
            body = {"input_ids": [0, 0], "sampling_params": params, "return_logprob": True}
            said = await self._post("/generate", body | {"token_ids_logprob": [0]})
            found.append(said["meta_info"]["output_token_ids_logprobs"][0][0][0])
        return bool(abs(found[0] - found[1]) < 1e-3)


def _usage(n_input: int, said: Sequence[Mapping[str, Any]], before: int | None, n_output: int) -> Usage:
    """Of samples that share a prompt: it counts once. `before`: what was cached when it was read for them."""
    cached = min([each["meta_info"].get("cached_tokens") or 0 for each in said])
    if before is not None:
        cached = min(before, cached)
    return Usage(input_tokens=n_input, cached_tokens=cached, output_tokens=n_output, calls=1)
