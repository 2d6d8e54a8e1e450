"""What lies between a call that a model wrote and the result that it reads.

A call that stood in a tool's own words is refused: what tools say is never called.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
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


def in_state(asked: CallTool, spec: ToolSpec, before: Iterable[CallTool | ToolResult]) -> CallTool:
    """A call of a tool that keeps a state for each branch, with what the branch has called the tool with
    `before`, in that order. A branch is so named by its calls alone: a child finds the state of its parent,
    and none that a sibling has changed. What the model itself says of its state is left out."""
    if not spec.history:
        return asked
    first = next(iter(spec.parameters.get("properties", ())), "")
    same = [each for each in before if isinstance(each, CallTool) and each.name == spec.name]
    done = [each.arguments[first] for each in same if first in each.arguments]
    told = {name: value for name, value in asked.arguments.items() if name != spec.history}
    return replace(asked, arguments=told | ({spec.history: done} if done else {}))


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
    """The calls that a text from outside holds. One that begins in the middle of a line is one too: a model
    that copies it may begin a line with it."""
    each = {text, _ACTION.sub("\n", text)}
    return {key(call) for said in each for call in tool_calls.read(said, specs)[1]}


_ACTION = re.compile(r"[^\n](?=Action[ \t*]*:)")
