"""What a tool is: a typed function the model may call, described by its signature and docstring.

    @tool(effect="pure", limits=Limits(seconds=2))
    def area(width: float, height: float) -> float:
        \"""The area of a rectangle.\"""
        return width * height

    await area.call({"width": 2, "height": 3})        # ToolResult("6.0", ok=True, value=6.0)

Arguments are checked before the function sees them. Whatever goes wrong is told to the model in a result
that is not `ok`: a tool never raises. What a tool does to the world is declared, and decides when it is run:

| effect       | the tool                                     | speculative | same call again | resumed   |
|--------------|----------------------------------------------|-------------|-----------------|-----------|
| `pure`       | changes nothing; same arguments, same result | run         | not run again   | run again |
| `idempotent` | changes something; twice is as good as once  | not run     | run again       | run again |
| `once`       | changes something each time                  | not run     | run again       | not run   |

Speculative: in a branch of a search that may be dropped. Resumed: a call that had begun, and not ended, when
its run was cut off.
"""

import asyncio
import inspect
import json
import logging
import threading
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Protocol, overload

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ..serving import redact
from ..serving.errors import UsageError
from ..serving.flow import Effect, ToolResult, ToolSpec

log = redact.guard(logging.getLogger(__name__))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may use.

    `at_once`: calls of the tool at the same time in one run. With `memory_bytes` the function runs in a
    process of its own, which is killed when its time is up; without, a plain function runs in a thread, which
    is left behind then, since threads cannot be stopped.
    """

    seconds: float = 30.0
    output_chars: int = 20_000
    at_once: int | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.output_chars < 1 or (self.at_once is not None and self.at_once < 1):
            raise UsageError("seconds must be above 0, and output_chars and at_once at least 1.")
        if self.memory_bytes is not None and self.memory_bytes < 1 << 27:
            raise UsageError(f"memory_bytes must be at least 128 MiB (1 << 27), got {self.memory_bytes}.")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the model sees it (`name`, `description`, `parameters`: a JSON schema) and as it is run.

    Without a `model` of its arguments, `run` checks them itself. `requires` names tools that are of no use
    without being offered together with it. `history`: as in `ToolSpec`.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[..., Any]  # plain or async; may return a ToolResult
    model: type[BaseModel] | None
    effect: Effect = "once"
    limits: Limits = Limits()
    requires: tuple[str, ...] = ()
    history: str = ""

    @property
    def spec(self) -> ToolSpec:
        """The tool as a prompt offers it."""
        return ToolSpec(
            self.name, self.description, self.parameters, self.effect, self.requires, self.history
        )

    async def call(self, arguments: Mapping[str, Any]) -> ToolResult:
        """Run it. Never raises, but for cancellation."""
        values = dict(arguments)
        if self.model is not None:
            try:
                checked = self.model.model_validate(values)
            except ValidationError as error:
                return ToolResult(self._complaint(self.model, error), ok=False)
            values = {name: getattr(checked, name) for name in self.model.model_fields}
        try:
            async with asyncio.timeout(self.limits.seconds) as clock:
                found = await self._run(values)
        except Exception as fault:
            if clock.expired():
                return ToolResult(f"{self.name} took more than {self.limits.seconds:g} s.", ok=False)
            log.debug("tool %s failed", self.name, exc_info=True)
            return self._cut(ToolResult(redact.text(f"{type(fault).__name__}: {fault}"), ok=False))
        return self._cut(found if isinstance(found, ToolResult) else _result(found))

    def schema(self) -> dict[str, Any]:
        """The tool in the form of chat APIs: `{"type": "function", "function": {…}}`."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    async def _run(self, values: dict[str, Any]) -> Any:
        if self.limits.memory_bytes is not None:
            from .process import in_process

            return await in_process(self.run, values, self.limits.memory_bytes, self.limits.seconds)
        if inspect.iscoroutinefunction(self.run):
            return await self.run(**values)
        return await _in_thread(lambda: self.run(**values))

    def _cut(self, result: ToolResult) -> ToolResult:
        limit, size = self.limits.output_chars, len(result.text)
        if size <= limit:
            return result
        text = f"{result.text[:limit]}\n[{size} characters; the first {limit} are shown]"
        return ToolResult(text, result.ok)

    def _complaint(self, model: type[BaseModel], error: ValidationError) -> str:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'arguments'}: {e['msg']}" for e in error.errors()]
        wanted = ", ".join(model.model_fields) or "none"
        return f"Wrong arguments for {self.name} (it takes: {wanted}). " + "; ".join(lines)


class Kit(Protocol):
    """Tools with settings: a frozen dataclass whose fields are the settings a recipe may write."""

    def tools(self) -> tuple[Tool, ...]:
        """The tools. Raises UsageError if they cannot be had."""
        ...


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, effect: Effect = "once", limits: Limits = Limits(), requires: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    effect: Effect = "once",
    limits: Limits = Limits(),
    requires: tuple[str, ...] = (),
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """A tool from a function: its name, its docstring, its annotated parameters. One that says nothing of
    its effect is taken to have one, `once`.

    Raises UsageError for a parameter without a type, for `*args` and `**kwargs`, without a docstring, and
    where a function with `memory_bytes` cannot be found by its name in another process.
    """
    if function is None:
        return lambda function: _made(function, effect, limits, requires)
    return _made(function, effect, limits, requires)


def _made(function: Callable[..., Any], effect: Effect, limits: Limits, requires: tuple[str, ...]) -> Tool:
    name: str = function.__name__
    description = inspect.getdoc(function)
    if not description:
        raise UsageError(f"The tool {name!r} needs a docstring: it tells the model what the tool is for.")
    if effect not in ("pure", "idempotent", "once"):
        raise UsageError(f"The effect of the tool {name!r} is pure, idempotent or once, not {effect!r}.")
    if limits.memory_bytes is not None and (
        "<" in function.__qualname__ or inspect.iscoroutinefunction(function)
    ):
        raise UsageError(
            f"The tool {name!r} has memory_bytes, so it runs in another process: make it a plain function at "
            "the top of a module."
        )
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
    return Tool(name, description, schema, function, model, effect, limits, requires)


async def _in_thread(call: Callable[[], Any]) -> Any:
    """Like asyncio.to_thread, but any number at once, and one that never ends does not hold up the end of
    the program."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    context = copy_context()

    def run() -> None:
        try:
            found, fault = context.run(call), None
        except Exception as error:
            found, fault = None, error
        try:
            loop.call_soon_threadsafe(_settle, done, found, fault)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("a tool ended after its run", exc_info=True)

    threading.Thread(target=run, daemon=True, name="abduce-tool").start()
    return await done


def _settle(done: "asyncio.Future[Any]", found: Any, fault: Exception | None) -> None:
    if done.done():  # cancelled
        return
    if fault is None:
        done.set_result(found)
    else:
        done.set_exception(RuntimeError("it stopped") if isinstance(fault, StopIteration) else fault)


def _result(found: Any) -> ToolResult:
    if isinstance(found, str):
        return ToolResult(found)
    try:
        text = json.dumps(found, ensure_ascii=False)
        return ToolResult(text, value=json.loads(text))
    except (TypeError, ValueError, RecursionError):
        return ToolResult(str(found))
