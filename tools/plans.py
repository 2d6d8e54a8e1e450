r"""The language of plans: one tool call a line, `$3` for what call 3 returned, `join()` at the end.

    Thought: I need both populations.
    1. search("population of Oslo")
    2. search("population of Bergen")
    3. calculator("$1 / $2")
    4. join()<END_OF_PLAN>

Arguments are literals, never evaluated. A call may refer only to earlier ones, so a plan has no circles. A
reference is put in in one pass over what the planner wrote: a `$1` in what a tool returned is text.

Source: LLMCompiler, arXiv 2312.04511 (`planner.py`, `output_parser.py`), and TinyAgent, arXiv 2409.00608.
Deviates: calls are checked against the tools' schemas before anything runs, parameters may be named, a
reference that is a whole argument hands on the value itself, and `$1` is never found in `$12`.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..serving.flow import ToolResult, ToolSpec

JOIN = "join"
END_OF_PLAN = "<END_OF_PLAN>"

_LINE = re.compile(r"\s*(\d{1,6})\.\s*([\w.-]+)\((.*)\)\s*(?:#.*)?")
_THOUGHT = re.compile(r"\s*Thought:\s*(.*)")
REFERENCE = re.compile(r"\$(?:\{(\d+)\}|(\d+))")
_STRING = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""", re.DOTALL)


class PlanError(Exception):
    """What is wrong with a plan, for the planner to mend."""


@dataclass(frozen=True)
class Action:
    """One call of a plan; arguments by name, references in them as they were written."""

    id: int
    tool: str
    arguments: Mapping[str, Any]
    thought: str = ""

    @property
    def parents(self) -> tuple[int, ...]:
        """The calls whose results it needs, ascending."""
        return references(self.arguments)

    def __str__(self) -> str:
        said = ", ".join(
            json.dumps(value, ensure_ascii=False, default=str) for value in self.arguments.values()
        )
        return f"{self.id}. {self.tool}({said})"


class PlanReader:
    """Reads a plan as it is written, line by line. `first` is the number that its first call must at least
    have; `known` are calls of earlier plans that may be referred to.

    `finished` once the plan is over; `error` says what is wrong with it, and nothing is read after that.
    """

    def __init__(
        self, tools: Sequence[ToolSpec], *, first: int = 1, known: Iterable[int] = (), most: int = 32
    ) -> None:
        self.actions: list[Action] = []
        self.finished = False
        self.error = ""
        self._tools = {tool.name: tool for tool in tools}
        self._known = set(known)
        self._next = first
        self._most = most
        self._thought = ""
        self._rest = ""

    def feed(self, text: str) -> list[Action]:
        """The calls that are complete now."""
        *lines, self._rest = (self._rest + text).split("\n")
        return [action for line in lines for action in self._line(line)]

    def close(self, *, whole: bool = True) -> list[Action]:
        """There is no more. A last line that was not written to its end (`whole=False`) is left out."""
        rest, self._rest = self._rest, ""
        found = list(self._line(rest)) if whole else []
        self.finished = True
        return found

    def _line(self, line: str) -> Iterator[Action]:
        if self.finished:
            return
        ends = END_OF_PLAN in line
        line = line.partition(END_OF_PLAN)[0]
        if thought := _THOUGHT.match(line):
            self._thought = thought[1].strip()
        elif call := _LINE.fullmatch(line):
            if call[2] == JOIN:
                ends = True
            else:
                try:
                    yield self._action(int(call[1]), call[2], call[3])
                except PlanError as error:
                    self.error, ends = f"{line.strip()[:200]}: {error}", True
        self.finished = self.finished or ends

    def _action(self, id: int, name: str, written: str) -> Action:
        if id < self._next:
            raise PlanError(f"the number must be at least {self._next}; numbers increase and are used once.")
        if name not in self._tools:
            known = ", ".join((*self._tools, JOIN))
            raise PlanError(f"there is no tool {name}. There are: {known}.")
        if len(self.actions) >= self._most:
            raise PlanError(f"a plan has at most {self._most} calls.")
        arguments = named(*_arguments(written), self._tools[name])
        for parent in references(arguments):
            if parent not in self._known:
                raise PlanError(f"${parent} is no earlier call. For an amount of money write USD {parent}.")
        thought, self._thought = self._thought, ""
        self._known.add(id)
        self._next = id + 1
        self.actions.append(action := Action(id, name, arguments, thought))
        return action


def read_plan(text: str, tools: Sequence[ToolSpec]) -> list[Action]:
    """The calls of a whole plan. Raises PlanError if there is something wrong with it."""
    reader = PlanReader(tools)
    reader.feed(text)
    reader.close()
    if reader.error:
        raise PlanError(reader.error)
    return reader.actions


def references(value: Any) -> tuple[int, ...]:
    """The calls that a value refers to, in strings, lists and mappings, ascending.

    >>> references({"a": ["$1 of ${12}", {"b": "$1"}]})
    (1, 12)
    """
    return tuple(sorted(set(_references(value))))


def substituted(value: Any, outputs: Mapping[int, ToolResult]) -> Any:
    """The value with what was returned in the place of references: the value itself where the reference is
    the whole argument, its text within a longer one.

    >>> outputs = {1: ToolResult("[2, 3]", value=[2, 3]), 12: ToolResult("costs $1")}
    >>> substituted({"a": "$1", "b": ["${1}0 and $12"]}, outputs)
    {'a': [2, 3], 'b': ['[2, 3]0 and costs $1']}
    """
    if isinstance(value, str):
        whole = REFERENCE.fullmatch(value)
        if whole and (found := outputs.get(_number(whole))) is not None:
            return found.text if found.value is None else found.value
        return REFERENCE.sub(lambda ref: _output(ref, outputs), value)
    if isinstance(value, Mapping):
        return {key: substituted(part, outputs) for key, part in value.items()}
    return [substituted(part, outputs) for part in value] if isinstance(value, list) else value


def named(positional: Sequence[Any], by_name: Mapping[str, Any], tool: ToolSpec) -> dict[str, Any]:
    """The arguments by name. Raises PlanError if they do not fit the tool's schema."""
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    names = list(properties)
    if len(positional) > len(names):
        takes = ", ".join(names) or "nothing"
        raise PlanError(f"{tool.name} takes {takes}, and was given {len(positional)} arguments.")
    arguments = dict(zip(names, positional, strict=False))
    for name, value in by_name.items():
        if name in arguments or (name not in properties and not tool.parameters.get("additionalProperties")):
            raise PlanError(f"{tool.name} does not take {name} here. It takes: {', '.join(names)}.")
        arguments[name] = value
    if missing := [name for name in tool.parameters.get("required", ()) if name not in arguments]:
        raise PlanError(f"{tool.name} needs {', '.join(missing)} too.")
    for name, value in arguments.items():
        if not _fits(value, properties.get(name, {}), tool.parameters):
            wanted = json.dumps(properties.get(name, {}).get("type", "another type"))
            raise PlanError(f"{name} of {tool.name} must be {wanted}, not {value!r:.80}.")
    return arguments


def signature(tool: ToolSpec) -> str:
    """A tool as a planner reads it.

    >>> schema = {"properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}}}
    >>> print(signature(ToolSpec("weather", "The forecast.", {**schema, "required": ["city"]})))
    weather(city: string, days: integer = 1)
       The forecast.
    """
    required = tool.parameters.get("required", ())
    parts = []
    for name, schema in tool.parameters.get("properties", {}).items():
        kind = schema.get("type", "any") if isinstance(schema, Mapping) else "any"
        if isinstance(schema, Mapping) and "enum" in schema:
            kind = " | ".join(json.dumps(value) for value in schema["enum"])
        default = f" = {json.dumps(schema.get('default'))}" if name not in required else ""
        parts.append(f"{name}: {kind}{default}")
    about = " ".join(tool.description.split())
    return f"{tool.name}({', '.join(parts)})\n   {about}"


# ---------------------------------------------------------------- parts


def _arguments(written: str) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments; what is no literal is one argument as it was written."""
    quoted = "".join(
        part if i % 2 else REFERENCE.sub(lambda ref: json.dumps(ref[0]), part)
        for i, part in enumerate(_STRING.split(written))
    )
    try:
        call = ast.parse(f"f({quoted}\n)", mode="eval").body
        assert isinstance(call, ast.Call)
        positional = [_literal(arg) for arg in call.args]
        by_name = {str(word.arg): _literal(word.value) for word in call.keywords if word.arg}
        if len(by_name) < len(call.keywords) or not isinstance(call.func, ast.Name):
            raise ValueError
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError, AssertionError):
        return [written.strip()], {}
    return positional, by_name


def _literal(node: ast.expr) -> Any:
    return _plain(ast.literal_eval(node))


def _plain(value: Any) -> Any:
    """A literal as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(part) for part in value]
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    raise ValueError


def _references(value: Any) -> Iterator[int]:
    if isinstance(value, str):
        yield from map(_number, REFERENCE.finditer(value))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _references(part)
    elif isinstance(value, list):
        for part in value:
            yield from _references(part)


def _number(reference: re.Match[str]) -> int:
    return int((reference[1] or reference[2])[:9])


def _output(reference: re.Match[str], outputs: Mapping[int, ToolResult]) -> str:
    found = outputs.get(_number(reference))
    return reference[0] if found is None else found.text


_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def _fits(value: Any, schema: Any, root: Mapping[str, Any]) -> bool:
    """Whether a value may be meant: the tool itself checks all of its schema when it is called."""
    if not isinstance(schema, Mapping) or (isinstance(value, str) and REFERENCE.search(value)):
        return True
    for either in ("anyOf", "oneOf"):
        if isinstance(schema.get(either), Sequence):
            return any(_fits(value, each, root) for each in schema[either])
    if "enum" in schema:
        return value in schema["enum"]
    kinds = schema.get("type")
    names = [kinds] if isinstance(kinds, str) else list(kinds or ())
    if not names or "$ref" in schema:
        return True
    if isinstance(value, bool):
        return "boolean" in names
    if isinstance(value, float) and value.is_integer() and "integer" in names:
        return True
    return isinstance(value, tuple(kind for name in names for kind in _KINDS.get(name, (object,))))
