"""From a request to what is to be solved: the task, how to sample, how many times, within which limits."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...serving.constraints import Constraint, JsonSchema
from ...serving.errors import UsageError
from ...serving.flow import Message, ToolCall, ToolSpec
from ...strategies.base import Task
from ..ledger import Budget
from ..recipe.parts import check_budget
from .errors import bad
from .wire import ChatMessage, ChatRequest, CompletionRequest, NamedChoice, ResponseFormat, Shared

_NO_EFFECT = frozenset({
    "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store",
    "user",
})  # fmt: skip
_REFUSED = {
    "audio": "Only text is answered. Leave audio out.",
    "function_call": "function_call is the old form. Write tool_choice.",
    "functions": "functions is the old form. Write tools.",
    "web_search_options": "There is no web search here. Leave web_search_options out.",
}


@dataclass(frozen=True)
class Asked:
    """One request, ready to run. `sampling` are the fields of `Sampling` that it sets; `call` says which
    tool must be called: "" any, None none need be."""

    model: str
    task: Task
    seed: int
    n: int = 1
    sampling: Mapping[str, Any] = field(default_factory=dict)
    budget: Budget | None = None
    logprobs: bool = False
    stream: bool = False
    include_usage: bool = False
    call: str | None = None
    raw: bool = False  # a text to go on with, no conversation


def of_chat(request: ChatRequest) -> Asked:
    """What a chat asks for. Raises ApiError where it asks for what is not there."""
    messages = tuple(_message(each, f"messages.{i}") for i, each in enumerate(request.messages))
    questions = [message.content for message in messages if message.role == "user"]
    if not questions or not questions[-1].strip():
        raise bad("The last user message is missing or empty. Write at least one with a text.", "messages")
    offers, call = _offers(request)
    constraint = _constraint(request.response_format)
    if offers and constraint is not None:
        raise bad("An answer cannot be both a tool call and JSON. Give tools or response_format, not both.")
    if request.top_logprobs:
        raise bad("The engines do not name other tokens. Leave top_logprobs out.", "top_logprobs")
    if request.logprobs and (request.n or 1) > 1:
        raise bad("Log-probs are told of one answer only. Write n = 1, or leave logprobs out.", "logprobs")
    extra = _extra(request)
    if call is not None and request.tool_choice is not None:
        extra["tool_choice"] = request.model_dump(include={"tool_choice"})["tool_choice"]
    most = request.max_completion_tokens or request.max_tokens
    task = Task(
        questions[-1],
        messages=messages if len(messages) > 1 else (),  # a bare question is asked as the recipe asks
        offers=offers,
        constraint=constraint,
        stop=_stop(request),
        max_tokens=most,
        extra=extra,
    )
    return _asked(request, task, logprobs=bool(request.logprobs), call=call)


def of_completion(request: CompletionRequest) -> Asked:
    """What a text completion asks for: the prompt is the recipe's question, or a text to go on with."""
    for name in ("echo", "suffix", "best_of"):
        if getattr(request, name) not in (None, False, 1, ""):
            raise bad(f"{name} is not supported. Leave it out.", name, "unsupported_parameter")
    if request.logprobs:
        raise bad("The engines do not name other tokens. Write logprobs: 0 or leave it out.", "logprobs")
    prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[0]
    if not prompt.strip():
        raise bad("The prompt is empty.", "prompt")
    task = Task(prompt, stop=_stop(request), max_tokens=request.max_tokens, extra=_extra(request))
    return _asked(request, task, logprobs=request.logprobs is not None, raw=True)


def _asked(
    request: Shared, task: Task, *, logprobs: bool, call: str | None = None, raw: bool = False
) -> Asked:
    named = {name: getattr(request, name) for name in ("temperature", "top_p", "top_k")}
    sampling = {name: value for name, value in named.items() if value is not None}
    if sampling.get("top_k") == -1:  # as vLLM writes "no top-k"
        sampling["top_k"] = 0
    return Asked(
        request.model,
        task,
        secrets.randbelow(2**31) if request.seed is None else request.seed,
        request.n or 1,
        sampling,
        _budget(request),
        logprobs,
        bool(request.stream),
        bool(request.stream_options and request.stream_options.include_usage),
        call,
        raw,
    )


def _message(said: ChatMessage, where: str) -> Message:
    calls = tuple(
        ToolCall(call.id, call.function.name, call.function.arguments) for call in said.tool_calls or ()
    )
    if calls and said.role != "assistant":
        raise bad(f"{where}: only an assistant's message has tool_calls.", f"{where}.tool_calls")
    if said.role == "tool" and not said.tool_call_id:
        raise bad(f"{where}: a tool's message needs tool_call_id.", f"{where}.tool_call_id")
    if said.content is None and not calls:
        raise bad(f"{where}: the message has no content.", f"{where}.content")
    role = "system" if said.role == "developer" else said.role
    answers = said.tool_call_id or "" if said.role == "tool" else ""
    return Message(role, _text(said, where), calls, answers)


def _text(said: ChatMessage, where: str) -> str:
    if said.content is None or isinstance(said.content, str):
        return said.content or ""
    for i, part in enumerate(said.content):
        if part.type != "text" or part.text is None:
            raise bad(
                f"{where}.content.{i}: only parts of type 'text' are read, got type {part.type!r:.40}. "
                "Images, sound and files are not supported.",
                f"{where}.content.{i}",
                "unsupported_content",
            )
    return "".join(part.text or "" for part in said.content)


def _offers(request: ChatRequest) -> tuple[tuple[ToolSpec, ...], str | None]:
    """The tools that the model is told of, and which it must call: None if it need not."""
    offers = tuple(
        ToolSpec(tool.function.name, tool.function.description or "", tool.function.parameters or {})
        for tool in request.tools or ()
    )
    choice = request.tool_choice
    if isinstance(choice, NamedChoice):
        named = tuple(spec for spec in offers if spec.name == choice.function.name)
        if not named:
            raise bad(
                f"tool_choice names {choice.function.name!r:.80}, which is not in tools.", "tool_choice"
            )
        return named, choice.function.name
    if choice == "required" and not offers:
        raise bad("tool_choice demands a call, but there are no tools.", "tool_choice")
    if choice == "none":
        return (), None
    return offers, "" if choice == "required" else None


def _constraint(form: ResponseFormat | None) -> Constraint | None:
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return JsonSchema({"type": "object"})
    if form.json_schema is None or form.json_schema.schema_ is None:
        raise bad(
            "response_format of type json_schema needs json_schema.schema.", "response_format.json_schema"
        )
    return JsonSchema(form.json_schema.schema_)


def _stop(request: Shared) -> tuple[str, ...]:
    marks: Sequence[str] = [request.stop] if isinstance(request.stop, str) else request.stop or ()
    if "" in marks:
        raise bad("A stop text must not be empty.", "stop")
    return tuple(marks)


def _extra(request: Shared) -> dict[str, Any]:
    """Fields that are none of ours: for the engine's server."""
    others = request.model_extra or {}
    for name, advice in _REFUSED.items():
        if others.get(name) is not None:
            raise bad(advice, name, "unsupported_parameter")
    return {name: value for name, value in others.items() if name not in _NO_EFFECT and value is not None}


def _budget(request: Shared) -> Budget | None:
    if request.abduce is None or request.abduce.budget is None:
        return None
    words = request.abduce.budget
    try:
        if isinstance(words, str):
            return Budget.parse(words)
        checked = check_budget(words)
        if not checked.faults:
            return Budget(**checked.params)
        fault = checked.faults[0]
        wrong = f"abduce.budget.{'.'.join(map(str, fault.path))}: {fault.message}"
    except UsageError as error:
        wrong = str(error)
    raise bad(wrong, "abduce.budget", "invalid_value")
