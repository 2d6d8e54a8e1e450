"""What a task says besides its question: a conversation, tools of the caller's, a demanded form.

A policy sends the conversation with its question in the place of the last user message; a judge reads all of
it as one text; a vote compares answers of a demanded form in their canonical writing.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..serving import tool_calls
from ..serving.constraints import Choices, Constraint, JsonSchema, Product, Regex
from ..serving.flow import Message, ToolCall
from .base import Task


def turns(task: Task, question: str, system: str | None = None) -> tuple[Message, ...]:
    """The conversation with `question` in the place of its last user message; `system` goes before it
    unless it has a system message of its own."""
    said = task.messages or (Message("user", task.question),)
    if system is not None and not any(message.role == "system" for message in said):
        said = (Message("system", system), *said)
    asked = [i for i, message in enumerate(said) if message.role == "user"]
    if not asked:
        return said
    last = asked[-1]
    return (*said[:last], replace(said[last], content=question), *said[last + 1 :])


def told(task: Task) -> str:
    """The task as one text, for whoever judges its solutions: the question, with the conversation it ends,
    the tools offered and the form demanded, as far as there are any.

    >>> told(Task("7 x 8 ="))
    '7 x 8 ='
    >>> print(told(Task("And 9?", messages=(Message("user", "7 x 8?"), Message("assistant", "56"),
    ...     Message("user", "And 9?")), constraint=JsonSchema({"type": "integer"}))))
    [user] 7 x 8?
    [assistant] 56
    [user] And 9?
    <BLANKLINE>
    The answer must be JSON that keeps this schema: {"type": "integer"}
    """
    if not (task.messages or task.in_one_piece):
        return task.question
    lines = [_line(message) for message in turns(task, task.question)] if task.messages else [task.question]
    if task.offers:
        tools = [{"name": t.name, "description": t.description, **_schema(t.parameters)} for t in task.offers]
        lines.append(f"\nTools that may be called: {json.dumps(tools, ensure_ascii=False)}")
    if task.constraint is not None:
        lines.append(f"\nThe answer must be {_demand(task.constraint)}")
    return "\n".join(lines)


def canonical(task: Task, text: str) -> str | None:
    """The answer of a text that was to have a form, as equal answers write it; None where the text is none.

    >>> canonical(Task("", constraint=JsonSchema({})), '{"b": 1,\\n "a": 2}')
    '{"a": 2, "b": 1}'
    """
    if task.constraint is None:
        _, calls = tool_calls.read(text, task.offers)
        return tool_calls.write(map(_sorted_call, calls)) if calls else None
    return _sorted(text) if _wants_json(task.constraint) else text.strip() or None


def _sorted(text: str) -> str | None:
    try:
        return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None


def _sorted_call(call: ToolCall) -> ToolCall:
    return replace(call, arguments=_sorted(call.arguments) or call.arguments)


def _wants_json(constraint: Constraint) -> bool:
    parts = constraint.parts if isinstance(constraint, Product) else (constraint,)
    return any(isinstance(part, JsonSchema) for part in parts)


def _line(message: Message) -> str:
    calls = tool_calls.write(message.tool_calls) if message.tool_calls else ""
    return f"[{message.role}] {message.content}{calls}"


def _schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"parameters": dict(parameters)} if parameters else {}


def _demand(constraint: Constraint) -> str:
    if isinstance(constraint, JsonSchema):
        return f"JSON that keeps this schema: {json.dumps(dict(constraint.schema), ensure_ascii=False)}"
    if isinstance(constraint, Regex):
        return f"a text that matches the pattern {constraint.pattern}"
    if isinstance(constraint, Choices):
        return f"one of: {', '.join(constraint.options)}"
    if isinstance(constraint, Product):
        return " and ".join(map(_demand, constraint.parts))
    return "of the form asked for"
