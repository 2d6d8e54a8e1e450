"""What a tool is: a typed function the model may call, described by its signature and docstring.

    @tool
    def area(width: float, height: float) -> float:
        \"""The area of a rectangle.\"""
        return width * height

    await area.call({"width": 2, "height": 3})        # ToolResult("6.0", ok=True)

Arguments are checked before the function sees them. Whatever goes wrong is told to the model in a result
that is not `ok`: a tool never raises.
"""

import asyncio
import inspect
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ..serving.errors import UsageError
from ..serving.flow import ToolResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the model sees it (`name`, `description`, `parameters`: a JSON schema) and as it is run."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[..., Any]  # plain or async; may return a ToolResult
    model: type[BaseModel]

    async def call(self, arguments: Mapping[str, Any]) -> ToolResult:
        """Run it; a plain function runs in a thread. Never raises, but for cancellation."""
        try:
            checked = self.model.model_validate(dict(arguments))
        except ValidationError as error:
            return ToolResult(self._complaint(error), ok=False)
        values = {name: getattr(checked, name) for name in type(checked).model_fields}
        try:
            if inspect.iscoroutinefunction(self.run):
                found = await self.run(**values)
            else:
                found = await asyncio.to_thread(self.run, **values)
        except Exception as fault:
            log.debug("tool %s failed", self.name, exc_info=True)
            return ToolResult(f"{type(fault).__name__}: {fault}", ok=False)
        return found if isinstance(found, ToolResult) else ToolResult(_text(found))

    def schema(self) -> dict[str, Any]:
        """The tool in the form of chat APIs: `{"type": "function", "function": {…}}`."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def _complaint(self, error: ValidationError) -> str:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors()]
        wanted = ", ".join(self.model.model_fields) or "none"
        return f"Wrong arguments for {self.name} (it takes: {wanted}). " + "; ".join(lines)


def tool(function: Callable[..., Any]) -> Tool:
    """A tool from a function: its name, its docstring, its annotated parameters.

    Raises UsageError for a parameter without a type, for `*args` and `**kwargs`, and without a docstring.
    """
    name: str = function.__name__
    description = inspect.getdoc(function)
    if not description:
        raise UsageError(f"The tool {name!r} needs a docstring: it tells the model what the tool is for.")
    hints = inspect.get_annotations(function, eval_str=True)
    wanted: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise UsageError(f"The tool {name!r} must take named parameters only, not {parameter}.")
        if parameter.name not in hints:
            raise UsageError(f"The parameter {parameter.name!r} of the tool {name!r} needs a type.")
        default = ... if parameter.default is parameter.empty else parameter.default
        wanted[parameter.name] = (hints[parameter.name], default)
    model = create_model(name, __config__=ConfigDict(extra="forbid"), **wanted)
    schema = model.model_json_schema()
    schema.pop("title", None)
    return Tool(name, description, schema, function, model)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)
