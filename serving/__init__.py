"""What serves a model: the contract of an engine (`base`), what is said to it (`flow`), the engines.

Each engine is imported when first asked for. Third parties add theirs through the entry-point group
`abduce.engines`: a name, and a class or function that returns an `Engine`.
"""

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, NamedTuple

from . import redact, registry
from .base import Capability, Engine
from .errors import UnknownName, UsageError


class Built(NamedTuple):
    """An engine's class, and what it gives, to be told without importing its file."""

    kind: str
    capabilities: frozenset[Capability]


ENGINES: dict[str, Built] = {
    "embedded": Built(
        "Embedded",
        frozenset(
            {"generate", "logprobs", "top_logprobs", "logprob", "hidden", "token_ids", "seed", "json_schema"}
        ),
    ),
    "litellm": Built(
        "Litellm",
        frozenset({"generate", "logprobs", "top_logprobs", "json_schema"}),
    ),
    "scripted": Built("Scripted", frozenset({"generate", "logprobs", "seed", "workers"})),
    "sglang": Built(
        "Sglang",
        frozenset(
            {"generate", "logprobs", "top_logprobs", "logprob", "hidden", "rate", "token_ids", "json_schema"}
        ),
    ),
    "synthetic": Built(
        "Synthetic",
        frozenset(
            {"generate", "logprobs", "top_logprobs", "logprob", "rate", "token_ids", "seed", "workers"}
        ),
    ),
    "transformers": Built(
        "Transformers",
        frozenset(
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
        ),
    ),
}
"""The engines of this package; each is in the file of its name."""


def engine(spec: str | Engine | Mapping[str, Any]) -> Engine:
    """An engine from its description.

    `"embedded"`, `"embedded:models/qwen.gguf"` (after the colon: the engine's first parameter), or
    `{"engine": "embedded", "model": "models/qwen.gguf", "slots": 8}`; an Engine is returned as it is.
    Raises UnknownName for an engine that does not exist, UsageError for parameters it does not have.

    >>> engine({"engine": "synthetic", "depth": 3}).name
    'synthetic'
    """
    if isinstance(spec, Engine):
        return spec
    if isinstance(spec, str):
        name, _, first = spec.partition(":")
        try:
            make = _maker(name)
        except UnknownName as error:
            raise (UsageError(hint) if (hint := _meant(spec)) else error) from None
        return _make(name, make, {next(iter(signature(make).parameters)): first} if first else {})
    words = dict(spec)
    if "engine" not in words:
        raise UsageError(f"An engine needs its name: {{engine: embedded, ...}}, got keys {', '.join(words)}.")
    name = words.pop("engine")
    try:
        make = _maker(name)
    except UnknownName as error:
        if name not in tuple(_HOSTS):
            raise
        raise UsageError(_meant(f"{name}:{words.get('model', '')}")) from error
    return _make(name, make, words)


def _meant(spec: str) -> str:
    """What to write for a model that was named without its engine; empty if that is not to be told."""
    if spec.startswith(("http://", "https://")):
        return f"Say what the server is: sglang:{spec}, or {{engine: litellm, model: …, api_base: {spec!r}}}."
    if spec.endswith(".gguf") or spec.startswith("hf:"):
        return f"Weights are read by an engine. Write embedded:{spec}"
    host, _, model = spec.partition(":")
    if host in _HOSTS:
        named = f"{_HOSTS[host]}/{model or 'MODEL'}"
        return (
            f"Hosted models, and servers that speak OpenAI's protocol, are asked by way of litellm. Write "
            f"litellm:{named}, or {{engine: litellm, model: {named}, api_base: URL}}."
        )
    if "/" in spec:
        return f"A model needs its engine. Write litellm:{spec}, or for a folder transformers:{spec}"
    if provider := next((_BRANDS[brand] for brand in _BRANDS if spec.startswith(brand)), ""):
        return (
            f"A model needs its engine, and a hosted one its provider. Write e.g. litellm:{provider}/{spec}"
        )
    return ""


_SAME = ("anthropic", "azure", "deepseek", "gemini", "groq", "mistral", "ollama", "openai", "openrouter")
_HOSTS = {**{host: host for host in _SAME}, "vllm": "hosted_vllm"}
"""What litellm calls those that serve models."""
_BRANDS = {
    **dict.fromkeys(("chatgpt", "gpt", "o1", "o3", "o4"), "openai"),
    "claude": "anthropic",
    "gemini": "gemini",
}
_ELSEWHERE = {"base_url": "api_base", "api_key": "api_key_env, the variable that holds the key"}
"""What OpenAI's client calls the parameters of an engine."""


def _maker(name: object) -> Callable[..., Engine]:
    kinds = {known: built.kind for known, built in ENGINES.items()}
    found: Callable[..., Engine] = registry.find("engine", name, kinds, __name__, "abduce.engines")
    return found


def _make(name: str, make: Callable[..., Engine], words: Mapping[str, Any]) -> Engine:
    redact.register_named(words)
    for key, value in words.items():
        if value == redact.MARK:
            raise UsageError(
                f"The {key} of the engine {name!r} is a secret, and not written down with a run. Keep it in "
                f"an environment variable, and write in a recipe: {key}: ${{secret:NAME}}."
            )
    parameters = signature(make).parameters
    allowed = ", ".join(["engine", *parameters])
    if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
        for key in words:
            if key not in parameters:
                meant = _ELSEWHERE.get(key, "")
                hint = f" Write {meant}." if meant.split(",")[0] in parameters else ""
                raise UsageError(f"The engine {name!r} has no parameter {key!r}.{hint} Allowed: {allowed}.")
    for key, parameter in parameters.items():
        if (
            parameter.default is Parameter.empty
            and key not in words
            and parameter.kind < Parameter.VAR_POSITIONAL
        ):
            raise UsageError(f"The engine {name!r} needs {key!r}. Allowed: {allowed}.")
    return make(**words)
