"""What a span says of a request, a note or a run.

Names and values are those of OpenTelemetry's conventions for generative AI (gen_ai.*, status "development",
github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai), and abduce.* for what these have no word
for. Token counts stand as gen_ai.usage.* on calls alone, so that their sum over the spans of a run is the
run's. Numbers are always told, text only with `content`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import orjson

from ...serving import redact
from ...serving.errors import UsageError
from ...serving.flow import (
    Ask,
    CallTool,
    Completion,
    Failure,
    Generate,
    Hidden,
    LogLikelihood,
    LogProb,
    Message,
    Prompt,
    Rate,
    Recall,
    Remember,
    ToolResult,
    Usage,
)
from ..ledger import Budget
from ..trace import Called, Noted, RunEnded, RunStarted

Attributes: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Served:
    """Who plays a role: the provider and the model as OpenTelemetry names them; empty where unknown."""

    provider: str = ""
    model: str = ""


# ---------------------------------------------------------------- calls


def name_of(request: Any, served: Served) -> str:
    """The span's name: the operation and what it is about."""
    if type(request) is CallTool:
        return f"execute_tool {_tool(request)}"
    operation = _operation(request)
    return f"{operation} {served.model}" if served.model and type(request) in _OF_MODELS else operation


def of_call(event: Called, served: Served) -> Attributes:
    """What a call was, what it consumed, and how it ended. The text in it is `content_of_call`."""
    request, usage = event.request, event.usage
    told: Attributes = {"gen_ai.operation.name": _operation(request)}
    if type(request) in _OF_MODELS:
        told["gen_ai.provider.name"] = served.provider or "abduce"
        if served.model:
            told["gen_ai.request.model"] = served.model
        told["abduce.role"] = request.model
        told["gen_ai.usage.input_tokens"] = usage.input_tokens
        told["gen_ai.usage.output_tokens"] = usage.output_tokens
        if usage.cached_tokens:
            told["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
        if usage.cost_usd:
            told["abduce.cost_usd"] = usage.cost_usd
    elif type(request) is CallTool:
        told["gen_ai.tool.name"] = _tool(request)
        told["gen_ai.tool.type"] = "function"
    if type(request) is Generate:
        _sampled(told, request)
    if event.replayed:
        told["abduce.replayed"] = True
        told["abduce.seconds"] = event.seconds
    if event.attempts > 1:
        told["abduce.attempts"] = event.attempts
    _replied(told, event.reply, request)
    return told


def _sampled(told: Attributes, request: Generate) -> None:
    sampling = request.sampling
    told["gen_ai.request.temperature"] = sampling.temperature
    told["gen_ai.request.max_tokens"] = sampling.max_tokens
    if request.n != 1:
        told["gen_ai.request.choice.count"] = request.n
    if sampling.top_p < 1:
        told["gen_ai.request.top_p"] = sampling.top_p
    if sampling.top_k:
        told["gen_ai.request.top_k"] = float(sampling.top_k)
    if sampling.stop:
        told["gen_ai.request.stop_sequences"] = sampling.stop
    if request.seed is not None:
        told["gen_ai.request.seed"] = request.seed
    if request.constraint is not None:
        told["gen_ai.output.type"] = "json" if type(request.constraint).__name__ == "JsonSchema" else "text"


def _replied(told: Attributes, reply: Any, request: Any) -> None:
    if type(reply) is Failure:
        told["error.type"] = reply.kind
    elif type(request) is Generate:
        told["gen_ai.response.finish_reasons"] = [_FINISH[drawn.finish] for drawn in reply]
    elif type(reply) is ToolResult and not reply.ok:
        told["error.type"] = "tool"
    elif type(reply) is LogLikelihood:
        told["abduce.logprob"] = reply.total
    elif type(request) is Rate:
        told["abduce.score"] = float(reply)
    elif type(request) is Recall:
        told["abduce.found"] = len(reply)
    elif type(request) is Remember:
        told |= {"abduce.version": reply, "abduce.written": len(request.entries)}


def fault(reply: Any) -> str:
    """What went wrong, without secrets; empty if nothing did."""
    if type(reply) is Failure:
        return redact.text(reply.message)
    return "the tool reported an error" if type(reply) is ToolResult and not reply.ok else ""


def _tool(request: CallTool) -> str:
    """The tool's name, which may be one that a model made up."""
    return redact.known(request.name)[:100]


def _operation(request: Any) -> str:
    if type(request) is Generate:
        return "chat" if request.prompt.messages else "text_completion"
    return _OPERATIONS[type(request)]


_OF_MODELS = frozenset({Generate, LogProb, Hidden, Rate})
_FINISH = {"eos": "stop", "stop": "stop", "length": "length"}  # as OpenAI names them
_OPERATIONS: Mapping[
    type, str
] = {  # the first three are the conventions' own, they have no word for the rest
    CallTool: "execute_tool",
    Recall: "search_memory",
    Remember: "upsert_memory",
    LogProb: "logprob",
    Hidden: "hidden_state",
    Rate: "rate",
    Ask: "ask",
}


# ---------------------------------------------------------------- text


def content_of_call(event: Called) -> Attributes:
    """Prompt and completion, arguments and result: JSON, in the form of the conventions' schemas."""
    request, reply = event.request, event.reply
    told: Attributes = {}
    if type(request) in _OF_MODELS:
        told["gen_ai.input.messages"] = _json(_messages(request.prompt))
        if request.prompt.tools if type(request) is Generate else ():
            tools = [{"type": "function", "name": tool.name} for tool in request.prompt.tools]
            told["gen_ai.tool.definitions"] = _json(tools)
        if type(request) is LogProb:
            told["abduce.continuation"] = redact.text(request.continuation)
    elif type(request) is CallTool:
        told["gen_ai.tool.call.arguments"] = _json(_clear(request.arguments))
    elif type(request) is Recall:
        told["gen_ai.retrieval.query.text"] = redact.text(request.query)
    if type(reply) is tuple and reply and type(reply[0]) is Completion:
        told["gen_ai.output.messages"] = _json(_drawn(reply))
    elif type(reply) is ToolResult:
        told["gen_ai.tool.call.result"] = redact.text(reply.text)
    elif type(request) is Recall and type(reply) is tuple:
        found = [{"id": m.entry.name, "score": m.score, "why": m.why, "text": m.entry.text} for m in reply]
        told["gen_ai.retrieval.documents"] = _json(_clear(found))
    elif type(reply) is str:
        told["abduce.said"] = redact.text(reply)
    return told


def _messages(prompt: Prompt) -> list[Any]:
    told = [_message(message) for message in prompt.messages]
    if prompt.prefix:
        role = "assistant" if prompt.messages else "user"
        told.append({"role": role, "parts": [_text(prompt.prefix)]})
    return told


def _message(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        result = {"type": "tool_call_response", "id": message.tool_call_id}
        return {"role": "tool", "parts": [result | {"response": redact.text(message.content)}]}
    parts = [_text(message.content)] if message.content else []
    for call in message.tool_calls:
        asked = {"type": "tool_call", "id": call.id, "name": call.name}
        parts.append(asked | {"arguments": redact.text(call.arguments)})
    return {"role": message.role, "parts": parts}


def _drawn(samples: Iterable[Completion]) -> list[Any]:
    return [
        {"role": "assistant", "parts": [_text(drawn.text)], "finish_reason": _FINISH[drawn.finish]}
        for drawn in samples
    ]


def _text(content: str) -> dict[str, str]:
    return {"type": "text", "content": redact.text(content)}


def _clear(value: Any) -> Any:
    """Plain data, its texts without secrets."""
    if isinstance(value, str):
        return redact.text(value)
    if isinstance(value, Mapping):
        return {key: _clear(part) for key, part in value.items()}
    return [_clear(part) for part in value] if isinstance(value, (list, tuple)) else value


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


# ---------------------------------------------------------------- notes


def of_note(event: Noted, content: bool) -> Attributes:
    """A strategy's own event: the nodes it tells of by their numbers, else its numbers."""
    told: Attributes = {"abduce.note": event.note}
    data = event.data
    if event.note == "nodes":
        rows = data.get("nodes", ())
        told["abduce.node.ids"] = [row["id"] for row in rows]
        told["abduce.node.parents"] = [-1 if row.get("parent") is None else row["parent"] for row in rows]
        told["abduce.node.depths"] = [row["depth"] for row in rows]
        told["abduce.node.terminal"] = [bool(row["terminal"]) for row in rows]
        if content:
            told["abduce.node.texts"] = [redact.text(row["text"]) for row in rows]
    elif event.note == "scores":
        known = {name: score for name, score in data.get("scores", {}).items() if score is not None}
        told["abduce.node.ids"] = [int(name) for name in known]
        told["abduce.node.scores"] = [float(score) for score in known.values()]
    else:
        for key, value in data.items():
            if (plain := _plain(value, content)) is not None:
                told[f"abduce.{event.note}.{key}"] = plain
    return told


def scores(event: Noted) -> list[float]:
    """The scores that a note tells."""
    if event.note == "scores":
        found: Iterable[Any] = event.data.get("scores", {}).values()
    elif event.note == "nodes":
        found = (row.get("score") for row in event.data.get("nodes", ()))
    else:
        found = ()
    return [float(score) for score in found if score is not None]


def _plain(value: Any, content: bool) -> Any:
    """A value that a span can hold: numbers, with `content` anything."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        for kind in (bool, int, (int, float)):
            if value and all(isinstance(part, kind) for part in value):
                return list(map(float, value)) if kind == (int, float) else list(value)
    if not content or value is None:
        return None
    return redact.text(value) if isinstance(value, str) else _json(_clear(value))


# ---------------------------------------------------------------- runs


def of_start(event: RunStarted, content: bool) -> Attributes:
    """What a run was started with."""
    settings = words(event.settings)
    name = str(settings.get("name") or strategy(settings))
    told: Attributes = {"gen_ai.agent.name": name} if name else {}
    told["abduce.seed"] = event.seed
    told |= {"abduce.run": event.run} if event.run else {}
    told |= {"abduce.strategy": strategy(settings)} if strategy(settings) else {}
    told |= {f"abduce.budget.{key}.limit": limit for key, limit in limits(event.settings).items()}
    if content:
        told["gen_ai.input.messages"] = _json([{"role": "user", "parts": [_text(event.question)]}])
    return told


def of_end(event: RunEnded, content: bool) -> Attributes:
    """What came of it, and all that was consumed."""
    told: Attributes = {"abduce.complete": event.complete, "abduce.solved": event.answer is not None}
    told |= of_usage(event.usage)
    if stopped := event.diagnostics.get("stopped"):
        told["abduce.stopped"] = redact.text(str(stopped))
    if content and event.answer is not None:
        answer = [{"role": "assistant", "parts": [_text(str(event.answer))], "finish_reason": "stop"}]
        told["gen_ai.output.messages"] = _json(answer)
    return told


def of_usage(usage: Usage) -> Attributes:
    """What a whole run, or a part of one, consumed."""
    return {f"abduce.usage.{key}": value for key, value in vars(usage).items()}


def words(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a pipeline was built from: a recipe, or the words of `build`."""
    recipe = settings.get("recipe")
    return recipe if isinstance(recipe, Mapping) else settings


def strategy(settings: Mapping[str, Any]) -> str:
    """The strategy's name; empty for a recipe of several steps."""
    named = settings.get("strategy")
    if isinstance(named, Mapping):
        named = named.get("name")
    return _plain_name(str(named)) if named else ""


def limits(settings: Mapping[str, Any]) -> dict[str, float]:
    """The limits of a run's budget, by name."""
    told = words(settings).get("budget")
    try:
        if isinstance(told, str):
            told = Budget.parse(told)
        if isinstance(told, Mapping):
            told = replace(Budget(), **told)
    except (UsageError, TypeError):  # of another version
        return {}
    return told.limits() if isinstance(told, Budget) else {}


def served(settings: Mapping[str, Any]) -> Mapping[str, Served]:
    """Who plays which role; under "" who plays those that have nobody of their own."""
    told = words(settings)
    model = told.get("model", "embedded" if told is not settings else None)  # of a recipe that names none
    if model is None or any("model" in part or "models" in part for part in _parts(told)):
        return {}  # made by hand, or with other models in other steps
    return {role: _served(spec) for role, spec in {**(told.get("models") or {}), "": model}.items()}


def _parts(told: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """The steps and solvers of a recipe of several."""
    parts: Sequence[Any] = [*(told.get("solvers") or {}).values(), *(told.get("nodes") or {}).values()]
    for part in [*parts, *(told.get("pipeline") or ())]:
        if isinstance(part, Mapping):
            yield part
            yield from (inner for inner in part.values() if isinstance(inner, Mapping))


def _served(spec: Any) -> Served:
    """The engine that a spec names, and its model."""
    if isinstance(spec, Mapping):
        engine, model = str(spec.get("engine", "")), str(spec.get("model") or "")
    else:
        engine, _, model = _plain_name(str(spec)).partition(":")
    if engine == "litellm" and "/" in model:
        provider, _, model = model.partition("/")
        return Served(_PROVIDERS.get(provider, provider), model)
    return Served(engine, redact.text(model) or engine)


def _plain_name(text: str) -> str:
    """`<Scripted object>` is how settings tell of an object."""
    found = re.fullmatch(r"<(\w+) object>", text)
    return found[1].lower() if found else text


_PROVIDERS = {  # litellm's name: the conventions'
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "moonshot": "moonshot_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
