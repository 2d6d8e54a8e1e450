"""`call`: a function of the user's, as a node."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from ...serving.flow import CallTool, Failure, Flow, ToolResult
from ..codec import dumps
from ..services import Halt, Services
from .base import Update, Visit

MAY_SET = frozenset({"answer", "text", "hints", "route", "verified", "why"})
_SHOWN = (*MAY_SET, "notes", "question", "complete", "said", "score")


@dataclass(frozen=True)
class CallNode:
    """The driver calls the function as it calls a tool: once in a run, also where the run is resumed."""

    services: Services
    function: str

    def visit(self, at: Visit) -> Flow[Update]:
        """Changes what the function returns."""
        state = {key: at.state[key] for key in _SHOWN if key in at.state}  # type: ignore[literal-required]
        [reply] = yield [CallTool(self.function, {"question": at.task.question, **state})]
        if isinstance(reply, Failure):
            return {"why": reply.message}
        changed: Update = json.loads(reply.text)
        return changed


@dataclass(frozen=True)
class AsTool:
    """A function of the state, plain or async, that returns what changes of it."""

    name: str
    function: Callable[[dict[str, Any]], Any]

    async def call(self, arguments: Mapping[str, Any]) -> ToolResult:
        """Call it. Raises Halt for what it raises: the run can go on once it is mended."""
        try:
            changed = self.function(dict(arguments))
            if inspect.isawaitable(changed):
                changed = await changed
        except Exception as error:
            raise Halt(f"The function {self.name!r} failed: {type(error).__name__}: {error}") from error
        changed = {} if changed is None else changed
        if not isinstance(changed, Mapping) or not changed.keys() <= MAY_SET:
            wrong = sorted(changed) if isinstance(changed, Mapping) else f"{changed!r:.80}"
            allowed = ", ".join(sorted(MAY_SET))
            raise Halt(
                f"The function {self.name!r} returned {wrong}. Return a mapping of some of: {allowed}."
            )
        if not isinstance(verified := changed.get("verified"), bool | None):
            raise Halt(
                f"The function {self.name!r} returned verified={verified!r:.80}. Write True, False or None."
            )
        return ToolResult(orjson.dumps(orjson.loads(dumps(dict(changed)))).decode())
