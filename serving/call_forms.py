"""Tool calls in the forms of other models than those that write `<tool_call>` blocks.

| form    | a call                                                                      |
|---------|-----------------------------------------------------------------------------|
| OpenAI  | `{"tool_calls": [{"function": {"name": "add", "arguments": "{\\"a\\": 1}"}}]}`  |
| Llama 3 | `{"name": "add", "parameters": {"a": 1}}`, `<function=add>{"a": 1}</function>`  |
| ReAct   | `Action: add` and `Action Input: {"a": 1}`, or `Action: add[1]`             |

JSON may stand in a code fence and have small defects (`loose_json.py`). What names no tool that was offered
is text: an answer may well be JSON.

>>> from .flow import ToolSpec
>>> add = ToolSpec("add", parameters={"properties": {"a": {}, "b": {}}, "required": ["a", "b"]})
>>> read_forms('I need a sum. {"name": "add", "parameters": {"a": 1, "b": 2,}}', [add])
('I need a sum. ', [('add', '{"a": 1, "b": 2}')])
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from . import loose_json
from .flow import ToolSpec

Told: TypeAlias = tuple[str, str]
"""A tool's name, and its arguments as JSON."""

_MOST = 64  # places where a call may begin that are looked at
_TAGGED = re.compile(r"<function=([\w.-]+)>\s*(.*?)\s*(?:</function>|\Z)", re.DOTALL)
_FENCED = re.compile(r"(?:```\w*\s*|<\|python_tag\|>\s*)*\Z")
_AFTER = re.compile(r"[\s;,]*(?:```|<\|eom_id\|>|<\|eot_id\|>)?")
_REACT = re.compile(
    r"^[ \t>*]*Action[ \t*]*:[ \t*`]*(?P<name>[\w.-]+)[ \t*`]*(?:[\[(](?P<inside>[^\n]*)[\])][ \t]*$"
    r"|\n+[ \t*]*Action Input[ \t*]*:[ \t*]*(?P<input>.*?)"
    r"(?=\n[ \t*]*(?:Observation|Thought|Action)[ \t*]*:|\Z))",
    re.DOTALL | re.MULTILINE,
)


def read_forms(text: str, offered: Sequence[ToolSpec]) -> tuple[str, list[Told]]:
    """The text without its calls, and the calls, in the first form of which there are any."""
    tools = {tool.name: tool for tool in offered}
    for form in (_tagged, _as_json, _react):
        rest, calls = form(text, tools)
        if calls:
            return rest, calls
    return text, []


def _tagged(text: str, tools: Mapping[str, ToolSpec]) -> tuple[str, list[Told]]:
    calls: list[Told] = []

    def take(found: re.Match[str]) -> str:
        if found[1] not in tools:
            return found[0]
        calls.append((found[1], _arguments(found[2], tools[found[1]])))
        return ""

    return _TAGGED.sub(take, text), calls


def _as_json(text: str, tools: Mapping[str, ToolSpec]) -> tuple[str, list[Told]]:
    calls: list[Told] = []
    kept, at = [], 0
    for begin in _places(text):
        if begin < at:
            continue
        try:
            value, end = loose_json.value_at(text, begin)
        except ValueError:
            continue
        found = list(_calls(value, tools))
        if found:
            calls += found
            kept.append(_FENCED.sub("", text[at:begin]))
            after = _AFTER.match(text, end)
            at = after.end() if after else end
    return "".join((*kept, text[at:])), calls


def _places(text: str) -> list[int]:
    return [place.start() for place, _ in zip(re.finditer(r"[{\[]", text), range(_MOST), strict=False)]


def _calls(value: Any, tools: Mapping[str, ToolSpec]) -> Iterator[Told]:
    """The calls in a value of JSON, in any of the shapes in which they are told."""
    if isinstance(value, list):
        for part in value:
            yield from _calls(part, tools)
    elif isinstance(value, dict):
        if isinstance(value.get("tool_calls"), list):
            yield from _calls(value["tool_calls"], tools)
        elif isinstance(value.get("function"), dict):
            yield from _calls(value["function"], tools)
        else:
            name = value.get("name", value.get("function", value.get("tool", value.get("action"))))
            if isinstance(name, str) and name in tools:
                given = (value.get(key) for key in ("arguments", "parameters", "args", "action_input"))
                arguments: Any = next((each for each in given if each is not None), {})
                yield name, _arguments(arguments, tools[name])


def _react(text: str, tools: Mapping[str, ToolSpec]) -> tuple[str, list[Told]]:
    """Only the first: what follows it, a model of this form has made up."""
    for found in _REACT.finditer(text):
        if found["name"] in tools:
            given = found["inside"] if found["inside"] is not None else found["input"]
            return text[: found.start()], [(found["name"], _arguments(given, tools[found["name"]]))]
    return text, []


def _arguments(given: Any, tool: ToolSpec) -> str:
    """The arguments as a JSON object. What is none is the value of the tool's first parameter."""
    if isinstance(given, str):
        plain = given.strip()
        try:
            read = loose_json.loads(plain)
        except ValueError:
            read = None
        if not isinstance(read, dict):
            quoted = isinstance(read, str)
            given = read if quoted else plain.removeprefix("```").removesuffix("```").strip()
        else:
            given = read
    if isinstance(given, Mapping):
        return json.dumps(given)
    properties = tool.parameters.get("properties", {})
    first = next(iter((*tool.parameters.get("required", ()), *properties)), None)
    if isinstance(given, str) and properties.get(first, {}).get("type") in ("integer", "number", "boolean"):
        with suppress(ValueError):
            given = loose_json.loads(given)
    return json.dumps({} if first is None or given == "" else {first: given})
