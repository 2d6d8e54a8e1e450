"""The tools by name. Each is imported when first asked for.

    toolbox(["calculator", {"name": "search", "folder": "docs"}, my_tool])

Third parties add theirs through the entry-point group `abduce.tools`; an entry point is a `Tool`, or a class
whose fields are settings and whose `tools()` gives tools (`base.py`: `Kit`).
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..serving import registry
from ..serving.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from .base import Tool

TOOLS: dict[str, str] = {
    "algebra": "algebra_tool",
    "calculator": "calculator",
    "fetch": "Fetch",
    "mcp": "Mcp",
    "python": "Python",
    "search": "Search",
}
"""File (which is the tool's name) → the `Tool` in it, or the class of tools with settings."""

_UNIX = ("fcntl", "grp", "pwd", "resource", "termios")


def part(name: str) -> Any:
    """The tool of that name, or the class that makes it with settings. Raises UnknownName with the nearest
    spelling, MissingExtra where a package that it needs is not installed, UsageError on a system that lacks
    what it is made of."""
    try:
        return registry.find("tool", name, TOOLS, __name__, "abduce.tools")
    except ModuleNotFoundError as missing:
        if missing.name not in _UNIX:
            raise
        raise UsageError(
            f"The tool {name} cannot run on this system, which has no {missing.name!r}. Run abduce in a "
            "Linux virtual machine or in WSL 2, or leave the tool out."
        ) from None


def load(name: str, /, **settings: Any) -> "Tool":
    """The one tool of that name. Raises UnknownName with the nearest spelling, UsageError for settings that
    do not fit and where the name stands for many."""
    tools = kit(name, **settings)
    if len(tools) != 1:
        raise UsageError(f"{name} has {len(tools)} tools. Write toolbox([{{'name': {name!r}, …}}]).")
    return tools[0]


def kit(name: str, /, **settings: Any) -> "tuple[Tool, ...]":
    """The tools that a name stands for: of an MCP server many, else one. Raises UsageError for settings that
    do not exist or do not fit."""
    found = part(name)
    if not isinstance(found, type):
        if settings:
            raise UsageError(f"The tool {name} has no settings, such as {next(iter(settings))!r}.")
        return (found,)
    known = [f.name for f in found.__dataclass_fields__.values() if f.init]  # type: ignore[attr-defined]
    for key in settings:
        if key not in known:
            raise UnknownName(f"setting of the tool {name}", key, known)
    made: tuple[Tool, ...] = found(**{key: _plain(value) for key, value in settings.items()}).tools()
    return made


def toolbox(specs: "Iterable[str | Mapping[str, Any] | Tool]") -> "dict[str, Tool]":
    """The tools a run has, by name: from names, mappings of a name and its settings, and tools themselves.
    Raises UsageError if two have the same name."""
    tools: dict[str, Tool] = {}
    for spec in specs:
        for tool in _tools(spec):
            if tool.name in tools:
                raise UsageError(
                    f"Two tools are named {tool.name!r}. Leave one out, or give it another name where it has "
                    "one among its settings."
                )
            tools[tool.name] = tool
    return tools


def _tools(spec: Any) -> "tuple[Tool, ...]":
    if isinstance(spec, str):
        return kit(spec)
    if isinstance(spec, Mapping):
        settings = dict(spec)
        name = settings.pop("name", None)
        if not isinstance(name, str):
            example = "{name: search, folder: docs}"
            raise UsageError(f"A tool with settings needs its name: {example}, got {spec!r:.200}.")
        named = settings.pop("as", None)
        return kit(name, **settings, **({} if named is None else {"name": named}))
    if hasattr(spec, "call") and isinstance(getattr(spec, "name", None), str):
        return (spec,)
    raise UsageError(f"A tool is a name, a mapping with settings or a @tool function, got {spec!r:.200}.")


def _plain(value: Any) -> Any:
    """Lists of YAML as the tuples of a frozen dataclass."""
    return tuple(map(_plain, value)) if isinstance(value, list) else value
