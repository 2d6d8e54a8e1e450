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
from collections.abc import Iterable

from .flow import ToolCall

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


def _json(arguments: str) -> str:
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return json.dumps(arguments)
    return arguments
