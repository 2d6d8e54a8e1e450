"""Commands that change what is asked next: the recipe, by key or by part. Alone, each shows what there is."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from ...serving import ENGINES
from ...serving.errors import UsageError
from ...strategies import STRATEGIES
from ...strategies.base import Check
from ...tools import TOOLS
from ..commands.options import parse_checks
from .language import words
from .memory import memory

if TYPE_CHECKING:
    from .sitting import Sitting


def _set(sitting: "Sitting", text: str) -> RenderableType:
    from .sitting import pairs

    if text:
        sitting.change(pairs("set", text))
    return Text(sitting.recipe.yaml().rstrip(), style="dim")


def _strategy(sitting: "Sitting", text: str) -> RenderableType:
    return _part(sitting, "strategy", text, list(STRATEGIES), sitting.recipe.strategy.name)


def _model(sitting: "Sitting", text: str) -> RenderableType:
    return _part(sitting, "model", text, list(ENGINES), sitting.recipe.model.name)


def _part(sitting: "Sitting", part: str, text: str, known: Sequence[str], used: str) -> RenderableType:
    """One of the recipe's parts by name: changed, or all names, the one in use marked."""
    if text:
        [name] = words(part, text, 1, 1)
        sitting.change([f"{part}={name}"])
        return Text(f"{part} {name}: for what is asked next, and for fork", style="dim")
    return _marked(known if used in known else (*known, used), [used])


def _tools(sitting: "Sitting", text: str) -> RenderableType:
    if text:
        names = [] if text == "off" else text.split()
        sitting.change([f"tools=[{', '.join(names)}]"])
    used = [tool if isinstance(tool, str) else str(tool["name"]) for tool in sitting.recipe.tools]
    return _marked(list(dict.fromkeys([*TOOLS, *used])), used)


def _budget(sitting: "Sitting", text: str) -> RenderableType:
    if text:
        sitting.change([f"budget={'{}' if text == 'off' else text}"])
    limits = ", ".join(f"{limit:g} {name}" for name, limit in sitting.recipe.budget.items() if limit)
    told = Text(f"next: {limits or 'no limit'}", style="dim")
    return told if text or sitting.current is None else Group(sitting.look("budget", ""), told)


COMMANDS: Mapping[str, Callable[["Sitting", str], RenderableType]] = {
    "set": _set,
    "strategy": _strategy,
    "model": _model,
    "tools": _tools,
    "budget": _budget,
    "memory": memory,
}


def checks(text: str) -> tuple[Check, ...]:
    """Checks as typed: `numeric=72`. Raises UsageError for one that does not exist."""
    try:
        return parse_checks(shlex.split(text))
    except (UsageError, ValueError) as error:
        raise UsageError(str(error).replace("--check ", "check ")) from None


def told(check: Check) -> str:
    """A check as it may be typed."""
    return f"{check.id}={next(iter(check.kwargs.values()), '')}"


def _marked(names: Sequence[str], used: Sequence[str]) -> RenderableType:
    """Names, those in use marked."""
    line = Text()
    for i, name in enumerate(names):
        mark = name in used
        line.append("  " if i else "")
        line.append(f"▸{name}" if mark else name, style="bold green" if mark else "")
    return line
