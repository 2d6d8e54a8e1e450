"""Tool calls as text: the one form in which they travel through a search.

A model that asks for a tool writes `<tool_call>` blocks, the form in which SmolLM2, Qwen and Hermes models
are trained. Engines whose servers tell calls apart from text write them back into it, so that a step, a
vote or a trace holds all that the model said; a gateway reads them out again at the very end.

>>> text = write([ToolCall("", "add", '{"a": 1, "b": 2}')])
>>> text
'<tool_call>\\n{"name": "add", "arguments": {"a": 1, "b": 2}}\\n</tool_call>'
>>> read("Let me add." + text)
('Let me add.', (ToolCall(id='call_0', name='add', arguments='{"a": 1, "b": 2}'),))
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from .flow import Message, ToolCall, ToolSpec

_BLOCK = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)


def write(calls: Iterable[ToolCall]) -> str:
    """The calls as a model writes them. Arguments that are no JSON are kept as a string."""
    told = (f'{{"name": {json.dumps(call.name)}, "arguments": {_json(call.arguments)}}}' for call in calls)
    return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in told)


def read(text: str) -> tuple[str, tuple[ToolCall, ...]]:
    """The text without its calls, and the calls. A block that holds none is left in the text."""
    calls: list[ToolCall] = []

    def take(block: re.Match[str]) -> str:
        try:
            told = json.loads(block[1])
            name, arguments = told["name"], told.get("arguments", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return block[0]
        if not isinstance(name, str) or not name:
            return block[0]
        as_text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        calls.append(ToolCall(f"call_{len(calls)}", name, as_text))
        return ""

    rest = _BLOCK.sub(take, text)
    return (rest.strip() if calls else text), tuple(calls)


def plain(message: Message) -> dict[str, str]:
    """A message for a chat template, its calls in its text: few templates have a place for them."""
    content = "\n".join(filter(None, (message.content, write(message.tool_calls))))
    answers = {"tool_call_id": message.tool_call_id} if message.role == "tool" else {}
    return {"role": message.role, "content": content, **answers}


def described(tool: ToolSpec) -> dict[str, Any]:
    """A tool as chat templates and OpenAI's protocol take it."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def offer(messages: Sequence[dict[str, str]], tools: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The messages with the tools in the system message: for a template that has no place for tools."""
    told = _OFFER.format("\n".join(map(json.dumps, tools)))
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{told}"}, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]


def _json(arguments: str) -> str:
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return json.dumps(arguments)
    return arguments


_OFFER = """\
You may call these functions, given by their JSON schemas:
<tools>
{}
</tools>
To call one, write its name and arguments as JSON within tags:
<tool_call>
{{"name": ..., "arguments": {{...}}}}
</tool_call>"""
