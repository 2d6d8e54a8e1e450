"""The tools by name. Each is imported when first asked for.

Third parties add theirs through the entry-point group `abduce.tools` (an entry point is a `Tool`).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..serving import registry

if TYPE_CHECKING:
    from .base import Tool

TOOLS: dict[str, str] = {"calculator": "calculator", "python": "python"}
"""File (which is the tool's name) → the `Tool` in it."""


def load(name: str) -> "Tool":
    """The tool of that name. Raises UnknownName with the nearest spelling."""
    found: Tool = registry.find("tool", name, TOOLS, __name__, "abduce.tools")
    return found


def toolbox(names: Iterable[str]) -> "dict[str, Tool]":
    """The tools a run has, by name."""
    return {name: load(name) for name in names}
