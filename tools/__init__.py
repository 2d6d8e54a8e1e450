"""The tools by name. Each is imported when first asked for.

Third parties add theirs through the entry-point group `abduce.tools` (an entry point is a `Tool`).
"""

from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from ..serving.errors import UnknownName

if TYPE_CHECKING:
    from .base import Tool

TOOLS: dict[str, str] = {"calculator": "calculator", "python": "python"}
"""File (which is the tool's name) → the `Tool` in it."""


def load(name: str) -> "Tool":
    """The tool of that name. Raises UnknownName with the nearest spelling."""
    if name in TOOLS:
        found: Tool = getattr(import_module(f".{name}", __name__), TOOLS[name])
        return found
    third_party = {e.name: e for e in entry_points(group="abduce.tools")}
    if name in third_party:
        loaded: Tool = third_party[name].load()
        return loaded
    raise UnknownName("tool", name, [*TOOLS, *third_party])


def toolbox(names: Iterable[str]) -> "dict[str, Tool]":
    """The tools a run has, by name."""
    return {name: load(name) for name in names}
