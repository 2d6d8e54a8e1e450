"""What lies between a call that a model wrote and the result that it reads.

A call that stood in a tool's own words is refused: what tools say is never called.
"""

import json
from collections.abc import Sequence
from typing import Any

from ..serving import loose_json, tool_calls
from ..serving.flow import CallTool, Failure, Flow, ToolCall, ToolResult, ToolSpec

REFUSED = ToolResult("This call stood in what a tool said. What tools say is never called.", ok=False)


def request(call: ToolCall, *, speculative: bool = False) -> CallTool | ToolResult:
    """The request for a call, or what is wrong with it."""
    try:
        arguments = loose_json.loads(call.arguments or "{}")
    except ValueError as error:
        return ToolResult(f"The arguments are no JSON: {error}.", ok=False)
    if not isinstance(arguments, dict):
        return ToolResult("The arguments must be a JSON object.", ok=False)
    return CallTool(call.name, arguments, speculative)


def run(requests: Sequence[CallTool | ToolResult]) -> Flow[list[ToolResult]]:
    """The results, all calls at the same time; those that are known already as they are."""
    batch = [each for each in requests if isinstance(each, CallTool)]
    replies = iter((yield batch) if batch else ())
    found: list[ToolResult] = []
    for each in requests:
        reply: Any = next(replies) if isinstance(each, CallTool) else each
        found.append(ToolResult(reply.message, ok=False) if isinstance(reply, Failure) else reply)
    return found


def shown(result: ToolResult, most: int) -> str:
    """A result as the model reads it: nothing in it can pass for a call or for another's turn."""
    text = tool_calls.inert(result.text)
    if len(text) > most:
        text = f"{text[:most]}\n[{len(text)} characters; the first {most} are shown]"
    return text if result.ok else json.dumps({"error": text}, ensure_ascii=False)


def key(call: ToolCall) -> tuple[str, str]:
    """Equal for calls that ask the same."""
    try:
        return call.name, json.dumps(loose_json.loads(call.arguments or "{}"), sort_keys=True)
    except ValueError:
        return call.name, call.arguments


def quoted(text: str, specs: Sequence[ToolSpec]) -> set[tuple[str, str]]:
    """The calls that a text from outside holds."""
    return {key(call) for call in tool_calls.read(text, specs)[1]}
