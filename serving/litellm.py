"""Any hosted model, by way of litellm: OpenAI, Anthropic, Gemini, and servers that speak OpenAI's protocol.

What a provider gives decides what the engine can: all give text, some log-probs and JSON schemas, none token
ids or seeds to rely on. litellm is imported when first needed, with its own retries, callbacks, telemetry
and printing off; the driver tries again, and `rates.py` keeps a provider's limits.

A beginning to be continued (`Prompt.prefix`) is sent as a last assistant message. Providers that go on from
it want it marked: `prefix="flag"` sets `prefix: true` on the message (Anthropic, DeepSeek, Mistral),
`"continue_final_message"` that field (vLLM, SGLang); `"message"` marks nothing, and what comes is then a new
turn that has seen the beginning. `"auto"` takes what litellm knows of the model. A prompt without messages is
sent as a user's message.
"""

import asyncio
import inspect
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal
from weakref import WeakKeyDictionary

from . import redact, settings
from .base import Capability, Engine, Served
from .constraints import JsonSchema
from .errors import EngineError, MissingExtra, TransientError, UsageError, demand
from .flow import Completion, Generate, Message, Prompt, Usage
from .gather import gather
from .rates import Rates
from .replies import completion, counted, retry_after_s
from .seeds import derive
from .tool_calls import described, offer, plain, write

log = redact.guard(logging.getLogger(__name__))


COMPROMISED = ("1.107.0",)
"""Releases made to steal keys; `SAFE` is what to install."""
SAFE = "litellm>=1.60,<2,!=1.107.0"

_GIVES: frozenset[Capability] = frozenset({"generate", "logprobs", "top_logprobs", "json_schema"})
_BUSY = frozenset({408, 409, 425, 429})
_FINAL_WORDS = ("insufficient_quota", "exceeded your current quota", "Missing credentials")
_PREFIXES = ("auto", "message", "flag", "continue_final_message")
_FINAL = {"continue_final_message": True, "add_generation_prompt": False}


_kept: set[asyncio.Task[None]] = set()  # event loops hold their tasks weakly


class _Given:
    """The capabilities: of the class all that a provider may give, of an engine what its provider gives."""

    def __get__(self, engine: "Litellm | None", owner: type) -> frozenset[Capability]:
        return _GIVES if engine is None else engine.gives()


class Litellm(Engine):
    """A model named as litellm names it: `openai/gpt-4o-mini`, `anthropic/claude-sonnet-4-5`, or, with
    `api_base`, `openai/NAME` of a server that speaks OpenAI's protocol.

    The key is read from the environment variable `api_key_env`, else from the provider's own
    (OPENAI_API_KEY …). `requests_per_minute` and `tokens_per_minute` are the provider's limits; calls wait
    for their turn. `prefix`: as above. Costs are those of litellm's own table, or those given as
    `usd_per_million`, for a prompt's tokens and for output tokens; a model that has neither costs 0, which is
    logged once, and budgets in money refuse it.

    OpenAI's protocol does not tell a stop mark from the end of a turn, unless a server adds it (vLLM,
    SGLang): without, a text that was asked to stop at marks and was not cut is taken to have met the last
    of them.
    """

    name = "litellm"
    capabilities = _Given()

    def __init__(
        self,
        model: str,
        *,
        api_base: str | None = None,
        api_key_env: str | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        timeout_s: float = 120.0,
        max_concurrency: int | None = 64,
        prefix: Literal["auto", "message", "flag", "continue_final_message"] = "auto",
        usd_per_million: tuple[float, float] | None = None,
    ) -> None:
        demand(isinstance(model, str) and model != "", "model", model, "write one such as openai/gpt-4o-mini")
        demand(timeout_s > 0, "timeout_s", timeout_s, "write seconds, such as 120")
        demand(prefix in _PREFIXES, "prefix", prefix, f"write one of {', '.join(_PREFIXES)}")
        self.model = model
        self.max_concurrency = max_concurrency
        self._api_base = api_base
        self._key_env = api_key_env
        self._timeout_s = timeout_s
        self._prefix = prefix
        self._prices = _prices(usd_per_million)
        self._rates = Rates(requests_per_minute, tokens_per_minute)
        self._library: Any = None
        self._provider = ""
        self._takes: frozenset[str] = frozenset()  # OpenAI's parameters that the provider knows
        self._one_by_one = False  # it was asked for several samples and gave one
        self._priceless = False  # it was said that the model's price is not known
        self._filtered = False  # it was said that answers are filtered
        self._keepers: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = WeakKeyDictionary()

    # ------------------------------------------------------------ what an engine does

    def gives(self) -> frozenset[Capability]:
        """What the provider gives. Raises MissingExtra without litellm."""
        self._loaded()
        given: set[Capability] = {"generate"}
        given |= {"logprobs"} if "logprobs" in self._takes else set()
        given |= {"top_logprobs"} if "top_logprobs" in self._takes else set()
        given |= {"json_schema"} if "response_format" in self._takes else set()
        return frozenset(given)

    async def ready(self) -> None:
        """Import litellm, about three seconds, and find the key."""
        await asyncio.to_thread(self._loaded)
        self._key()

    async def generate(self, request: Generate, *, seed: int) -> Served[tuple[Completion, ...]]:
        """`request.n` samples; providers that give one at a time are asked so often."""
        if request.n < 1 or request.sampling.max_tokens < 1:
            raise EngineError("n and max_tokens must be at least 1.")
        if self._library is None:
            await asyncio.to_thread(self._loaded)
        self._keep()
        fields = self._fields(request)
        many = "n" in self._takes and not self._one_by_one
        first = await self._call(fields, request, seed, request.n if many else 1)
        told, usage = list(first.value), first.usage
        if many and len(told) < request.n:
            self._one_by_one = True
        calls = (self._call(fields, request, derive(seed, i), 1) for i in range(len(told), request.n))
        for more in await gather(calls):
            told += more.value
            usage += more.usage
        return Served(tuple(told[: request.n]), usage)

    def priced(self) -> bool:
        """Whether a price is given, or in litellm's table."""
        if self._prices is not None:
            return True
        library = self._loaded()
        try:
            library.cost_per_token(self.model)
        except Exception:  # litellm raises a bare Exception for a model that is not in its table
            return False
        return True

    def count_tokens(self, prompt: Prompt) -> int:
        """An upper estimate for most languages."""
        beside = sum(len(str(tool)) for tool in prompt.tools)
        beside += sum(len(write(message.tool_calls)) for message in prompt.messages)
        return super().count_tokens(prompt) + beside // 3

    async def close(self) -> None:
        """Close the connections of this event loop; those of others close when their loops end."""
        if (keeper := self._keepers.pop(asyncio.get_running_loop(), None)) is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    # ------------------------------------------------------------ the library

    def _loaded(self) -> Any:
        if self._library is None:
            library = _library()
            settings.register_secrets()  # the provider's own key is among them
            try:
                name, self._provider, *_ = library.get_llm_provider(self.model, api_base=self._api_base)
            except Exception as error:
                raise UsageError(
                    f"litellm knows no provider of {self.model!r}. Write provider/model, such as "
                    "openai/gpt-4o-mini."
                ) from error
            known = library.get_supported_openai_params(name, self._provider)
            self._takes = frozenset(known or ())
            self._library = library
        return self._library

    def _keep(self) -> None:
        """litellm keeps connections for each event loop and forgets to close them at its end."""
        loop = asyncio.get_running_loop()
        if (keeper := self._keepers.get(loop)) is None or keeper.done():
            keeper = loop.create_task(_close_at_end(self._library), name="abduce: connections of litellm")
            self._keepers[loop] = keeper
            _kept.add(keeper)
            keeper.add_done_callback(_kept.discard)

    def _key(self) -> str | None:
        if self._key_env is None:
            # OpenAI's client wants one, even for a server that asks for none.
            return "none" if self._api_base and not settings.secret("OPENAI_API_KEY") else None
        if not (key := settings.secret(self._key_env)):
            raise UsageError(f"No API key: {self._key_env} is not set. Write: export {self._key_env}=...")
        return key

    # ------------------------------------------------------------ what is sent

    def _fields(self, request: Generate) -> dict[str, Any]:
        """The request as litellm takes it, but for the number of samples and the seed."""
        sampling = request.sampling
        fields: dict[str, Any] = {
            "temperature": sampling.temperature,
            "max_tokens": sampling.max_tokens,
            "messages": self._messages(request.prompt),
        }
        if sampling.top_p < 1:
            fields["top_p"] = sampling.top_p
        if sampling.stop:
            fields["stop"] = list(sampling.stop)
        if request.logprobs or request.top_logprobs:
            self._needs("logprobs", "gives no log-probs")
            fields["logprobs"] = True
            if request.top_logprobs:
                self._needs("top_logprobs", "gives no best log-probs")
                fields["top_logprobs"] = request.top_logprobs
        if request.prompt.tools and "tools" in self._takes:
            fields["tools"] = [described(tool) for tool in request.prompt.tools]
        if request.constraint is not None:
            fields["response_format"] = self._form(request)
        if beside := self._beside(request):
            fields["extra_body"] = beside
        return fields

    def _beside(self, request: Generate) -> dict[str, Any]:
        """Fields outside of OpenAI's protocol. They go into the body: no caller can turn a call elsewhere."""
        beside: dict[str, Any] = dict(request.extra)
        if request.sampling.top_k > 0:
            beside["top_k"] = request.sampling.top_k
        if request.sampling.min_p > 0:
            beside["min_p"] = request.sampling.min_p
        if beside and self._provider not in ("openai", *self._library.openai_compatible_providers):
            raise EngineError(
                f"Fields of one's own ({', '.join(beside)}) reach only servers that speak OpenAI's protocol, "
                f"not {self._provider}. Leave them out."
            )
        if request.prompt.prefix and request.prompt.messages and self._mark() == "continue_final_message":
            beside |= _FINAL
        return beside

    def _form(self, request: Generate) -> dict[str, Any]:
        if not isinstance(request.constraint, JsonSchema):
            raise EngineError(
                f"Hosted models cannot keep a {type(request.constraint).__name__}, only JsonSchema. "
                "The transformers engine keeps every constraint, the sglang engine Regex and Choices."
            )
        self._needs("response_format", "keeps no JSON schema")
        schema = dict(request.constraint.schema)
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}

    def _needs(self, parameter: str, lacking: str) -> None:
        if parameter not in self._takes:
            raise EngineError(f"{self.model}: the provider {lacking}.")

    def _messages(self, prompt: Prompt) -> list[dict[str, Any]]:
        if not prompt.messages:
            return [{"role": "user", "content": prompt.prefix}]
        told: list[dict[str, Any]]
        if prompt.tools and "tools" not in self._takes:
            tools = [described(tool) for tool in prompt.tools]
            told = list(offer([plain(message) for message in prompt.messages], tools))
        else:
            told = [_message(message) for message in prompt.messages]
        if prompt.prefix:
            flag = {"prefix": True} if self._mark() == "flag" else {}
            told.append({"role": "assistant", "content": prompt.prefix, **flag})
        return told

    def _mark(self) -> str:
        if self._prefix != "auto":
            return self._prefix
        if self._provider == "hosted_vllm":
            return "continue_final_message"
        can = self._library.utils.supports_assistant_prefill(self.model)
        return "flag" if can or self._provider in ("anthropic", "deepseek", "mistral") else "message"

    # ------------------------------------------------------------ one call

    async def _call(
        self, fields: Mapping[str, Any], request: Generate, seed: int, n: int
    ) -> Served[tuple[Completion, ...]]:
        n_input = self.count_tokens(request.prompt)
        more: dict[str, Any] = {"n": n} if n > 1 else {}
        if "seed" in self._takes:
            more["seed"] = seed % 2**31
        async with self._rates.turn(n_input + n * request.sampling.max_tokens) as turn:
            try:
                reply = await self._library.acompletion(
                    model=self.model,
                    api_base=self._api_base,
                    api_key=self._key(),
                    timeout=self._timeout_s,
                    num_retries=0,
                    max_retries=0,
                    drop_params=True,
                    **{"no-log": True},
                    **fields,
                    **more,
                )
            except UsageError:
                raise
            except Exception as error:
                raise self._fault(error) from None  # its own text may hold the key
            served = self._read(reply, request, n_input)
            turn.n_tokens = served.usage.input_tokens + served.usage.output_tokens
        return served

    def _fault(self, error: Exception) -> EngineError:
        text = redact.text(str(error))  # before it is cut, which could leave half a key
        words = f"{self.model}: {type(error).__name__}: {text[:500]}"
        status = getattr(error, "status_code", None)
        code = status if isinstance(status, int) else 500
        if any(each in text for each in _FINAL_WORDS) or (code < 500 and code not in _BUSY):
            return EngineError(words)
        wait_s = retry_after_s(error)
        if wait_s > self._timeout_s:
            return EngineError(f"{words} The provider asks to wait for {wait_s:.0f} s.")
        if wait_s > 0:
            self._rates.pause(wait_s)
        return TransientError(words)

    # ------------------------------------------------------------ what comes back

    def _read(self, reply: Any, request: Generate, n_input: int) -> Served[tuple[Completion, ...]]:
        choices = list(reply.choices)
        if not choices:
            raise TransientError(f"{self.model}: the reply holds no choice.")
        if not self._filtered and any(choice.finish_reason == "content_filter" for choice in choices):
            self._filtered = True
            log.warning("%s: the provider's content filter cut an answer short.", self.model)
        told = getattr(reply, "usage", None)
        n_output = int(getattr(told, "completion_tokens", 0) or 0)
        completions = counted(
            [completion(choice, request) for choice in choices], n_output, request.sampling.max_tokens
        )
        details = getattr(told, "prompt_tokens_details", None)
        usage = Usage(
            input_tokens=int(getattr(told, "prompt_tokens", 0) or n_input),
            cached_tokens=int(getattr(details, "cached_tokens", 0) or 0),
            output_tokens=sum(c.n_tokens for c in completions),
            calls=1,
        )
        return Served(completions, replace(usage, cost_usd=self._cost(reply, usage)))

    def _cost(self, reply: Any, usage: Usage) -> float:
        if self._prices is not None:
            return (usage.input_tokens * self._prices[0] + usage.output_tokens * self._prices[1]) / 1e6
        try:
            return float(self._library.completion_cost(reply, model=self.model))
        except Exception:  # litellm raises a bare Exception for a model that is not in its table
            if not self._priceless:
                self._priceless = True
                log.warning("litellm knows no price of %s: its calls count as costing nothing.", self.model)
            return 0.0


def _prices(given: Any) -> tuple[float, float] | None:
    if given is None:
        return None
    pair = given if isinstance(given, Sequence) else ()
    sound = len(pair) == 2 and all(isinstance(price, (int, float)) and price >= 0 for price in pair)
    demand(sound, "usd_per_million", given, "write two prices, of input and output, such as [0.15, 0.6]")
    return float(pair[0]), float(pair[1])


async def _close_at_end(library: Any) -> None:
    """Close litellm's clients of this loop once this task is cancelled, as a loop does when it ends."""
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        kept: Any = getattr(library, "in_memory_llm_clients_cache", None)
        if hasattr(kept, "update_cache_key_with_event_loop"):
            ours = kept.update_cache_key_with_event_loop("")  # what the keys of this loop end with
            clients: dict[str, Any] = kept.cache_dict
            for client in [clients.pop(key) for key in list(clients) if key.endswith(ours)]:
                shut = getattr(client, "close", None) or getattr(client, "aclose", None)
                if shut is not None and inspect.isawaitable(closing := shut()):
                    await closing


def _library() -> Any:
    """litellm, quiet. Raises MissingExtra without it, UsageError for a release that steals keys."""
    try:
        found = version("litellm")
    except PackageNotFoundError:
        raise MissingExtra("litellm", "hosted") from None
    if found in COMPROMISED:
        raise UsageError(
            f"litellm {found} is a compromised release and is not imported. Replace it, and the keys it has "
            f"seen: pip install '{SAFE}'"
        )
    settings.set_unset({"LITELLM_LOCAL_MODEL_COST_MAP": "True"})  # it fetches a price table else
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import litellm

        library: Any = litellm
        # It imports parts of itself at its first call, and those warn.
        library.completion("openai/none", [{"role": "user", "content": ""}], mock_response="", api_key="none")
    # It copies replies by a schema that fields of a server's own, such as SGLang's metadata, don't fit.
    warnings.filterwarnings("ignore", "(?s)Pydantic serializer warnings", UserWarning)
    # It makes a call's coroutine in a thread, and drops it when the call is cancelled meanwhile.
    warnings.filterwarnings("ignore", r"coroutine '\w+\.acompletion' was never awaited", RuntimeWarning)
    library.suppress_debug_info = True  # it prints help for each error
    library.disable_aiohttp_transport = True  # its aiohttp sessions belong to one event loop
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return library


def _message(message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        told["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        told["tool_call_id"] = message.tool_call_id
    return told
