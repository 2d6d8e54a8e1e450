"""Python for a model: what a program prints, or the end of its complaint.

Programs run behind walls (`sandbox/`). Where this machine cannot build them none is run, unless
`sandbox: unsafe` was said: in the recipe (`tools: [{name: python, sandbox: unsafe}]`) or for all runs
(`ABDUCE_SANDBOX=unsafe`). Then an audit hook keeps an honest program's mistakes harmless, and nothing more.

A branch of a search names its state by the programs it has run; the model is not told of it:

    CallTool("python", {"code": "print(x * 7)", "after": ["x = 6"]})
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from ..serving import redact, settings
from ..serving.errors import demand
from ..serving.flow import ToolResult
from .base import Limits as CallLimits
from .base import Tool, tool
from .sandbox import ENDED, Limits, Sandbox, SandboxRefused

__all__ = ["ENDED", "Limits", "Python", "run_python"]

Walls = Literal["isolated", "unsafe"]

log = redact.guard(logging.getLogger(__name__))


def run_python(code: str, limits: Limits | None = None, *, sandbox: Walls | None = None) -> ToolResult:
    """Run a program in an interpreter of its own, to its end; blocks for `wall_s` at most. `ok` if it exits
    with code 0.

    ok: everything printed. Not ok: what was printed, the end of the traceback, and a line that starts with
    `ENDED`. Raises SandboxRefused where it cannot be isolated, and OSError if no process can be started.
    """
    session = _sandbox(limits or Limits(), sandbox).start()
    try:
        return session.run(code)
    finally:
        session.close()


@dataclass(frozen=True)
class Python:
    """The tool `python`. `sandbox`: "isolated" or "unsafe"; else as ABDUCE_SANDBOX says, else isolated.
    `seconds` and `memory_mb` are of one program."""

    sandbox: Walls | None = None
    seconds: float = 10.0
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        if self.sandbox is not None:
            demand(self.sandbox in get_args(Walls), "sandbox", self.sandbox, "write isolated or unsafe")
        self.limits  # noqa: B018  complains

    @property
    def limits(self) -> Limits:
        """What one program may use."""
        seconds = self.seconds
        return Limits(wall_s=seconds, cpu_s=max(1, round(seconds)), memory_bytes=self.memory_mb << 20)

    def tools(self) -> tuple[Tool, ...]:
        """The one tool, with states of its own."""
        from .sandbox.states import States

        states = States(_sandbox(self.limits, self.sandbox))

        async def python(code: str, after: list[str] = []) -> ToolResult:  # noqa: B006  never changed
            """Run a Python program and return what it prints. Print the result.

            There is no network, and no file is kept.
            """
            return await _run(states, code, after)

        limits = CallLimits(seconds=10 * self.seconds, output_chars=4 * self.limits.output_bytes)
        made = tool(effect="pure", limits=limits)(python)
        return (replace(made, parameters=_without_after(made.parameters), history="after"),)


async def _run(states: Any, code: str, after: list[str]) -> ToolResult:
    from .sandbox.states import Stop

    stop = Stop()
    try:
        return await asyncio.to_thread(partial(states.run, code, after, stop))
    except SandboxRefused as refusal:
        if str(refusal) not in _said:
            _said.add(str(refusal))
            log.warning("%s", refusal)
        return ToolResult(f"No program is run: {refusal}", ok=False)
    except asyncio.CancelledError:
        stop.now()  # the waiting thread sees the program end at once
        raise


def _sandbox(limits: Limits, choice: Walls | None) -> Sandbox:
    return Sandbox(limits, unsafe=choice == "unsafe" if choice else settings.unsafe_sandbox())


def _without_after(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema as the model sees it: its branch is not its own affair."""
    seen = {name: told for name, told in schema["properties"].items() if name != "after"}
    return {**schema, "properties": seen}


_said: set[str] = set()
