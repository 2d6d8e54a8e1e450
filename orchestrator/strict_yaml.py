"""YAML read strictly: plain data, and the line of every key; and the same data written.

Refused, with the line: duplicate keys, keys that are no text, anchors and aliases, tags, several documents,
numbers that are not finite, deep nesting, large files and many values. A recipe never needs them, and each
has surprised somebody. `yes`, `no`, `on`, `off` and `1:30` are text, as in YAML 1.2.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any, TypeAlias

import yaml

from ..serving.errors import UsageError

Path: TypeAlias = tuple[str | int, ...]

MAX_BYTES = 64 * 1024
MAX_DEPTH = 14
MAX_VALUES = 4000


@dataclass(frozen=True)
class Document:
    """What a file says, and where it says it."""

    file: str
    data: dict[str, Any]
    lines: Mapping[Path, int] = field(default_factory=dict)
    files: Mapping[Path, str] = field(default_factory=dict)  # of values that another file holds

    def where(self, path: Path) -> str:
        """`file:line` of a value; of the part that holds it if the value itself is not in the file."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return f"{self.files.get(path[:end], self.file)}:{self.lines[path[:end]]}"
        return self.file


def read(file: File) -> Document:
    """The document in a file."""
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {error.strerror or error}.") from None
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{file} is larger than {MAX_BYTES // 1024} KB, which no recipe needs.")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    return parse(text, file=str(file))


def parse(text: str, *, file: str = "recipe", max_values: int = MAX_VALUES) -> Document:
    """The document in a text. Its top level must be a mapping."""
    try:
        loader = _Loader(text)
        loader.max_values = max_values
        try:
            root = loader.get_single_node()
            lines: dict[Path, int] = {(): 1}
            data = _plain(loader, root, (), lines) if root is not None else {}
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UsageError(
            f"{file}:{line}: {_sentence(error.problem or error.context or 'not YAML')}"
        ) from None
    except yaml.YAMLError as error:
        raise UsageError(f"{file}: {_sentence(' '.join(str(error).split()))}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{file}:1: a recipe is a mapping of keys to values; write e.g. `name: my-recipe`.")
    return Document(file, data, lines)


def scalar(text: str) -> Any:
    """A value as it would be read in a file: `8` is a number, `[a, b]` a list, `x` a text."""
    return parse(f"value: {text}", file=repr(text)).data["value"]


def write(data: Mapping[str, Any]) -> str:
    """A text that `parse` reads as the same data: a line for each part, and for each part of a large one."""
    folded = {key: _folded(value) for key, value in data.items()}
    text: str = yaml.dump(
        folded, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )
    return text


class _Loader(yaml.SafeLoader):
    depth = 0
    values = 0
    max_values = MAX_VALUES

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused("anchors and aliases (& and *) are not allowed; write the value out", event)
        self.depth += 1
        self.values += 1
        if self.depth > MAX_DEPTH:
            raise _refused(f"nested deeper than {MAX_DEPTH} levels", event)
        if self.values > self.max_values:
            raise _refused(f"more than {self.max_values} values, which no recipe needs", event)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class Dumper(yaml.SafeDumper):
    """Writes what `parse` reads as the same."""

    def ignore_aliases(self, data: Any) -> bool:
        """Values that are the same object are written twice."""
        return True

    def text(self, data: str) -> yaml.Node:
        """Line breaks of Unicode are kept only as escapes, which only double quotes have."""
        style = '"' if re.search("[\x85\u2028\u2029\ufeff]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


class _OneLine(dict[str, Any]):
    """A mapping to be written on one line, with everything in it."""


Dumper.add_representer(str, Dumper.text)
Dumper.add_representer(
    _OneLine,
    lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", dict(data), flow_style=True),
)


_TYPES = {  # (first characters, form); all else is text
    "bool": ("tTfF", r"(true|True|TRUE|false|False|FALSE)$"),
    "int": ("-+0123456789", r"[-+]?(0|[1-9]\d*)$"),
    "float": ("-+.0123456789", r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$"),
    "null": (["~", "n", "N", ""], r"(~|null|Null|NULL|)$"),
    "merge": ("<", r"<<$"),
}
_Loader.yaml_implicit_resolvers = {}  # the dumper keeps its own too: what others misread stands in quotes
for kind in (_Loader, Dumper):
    for name, (first, form) in _TYPES.items():
        kind.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(form), list(first))
    for sign in "-+.":  # not finite: read as numbers only to be refused
        kind.add_implicit_resolver(
            "tag:yaml.org,2002:float", re.compile(r"[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"), [sign]
        )


def _folded(part: Any) -> Any:
    """A part of a recipe whose own parts stand on one line each."""
    if isinstance(part, dict):
        return {key: _OneLine(value) if isinstance(value, dict) else value for key, value in part.items()}
    if isinstance(part, list):
        return [_OneLine(value) if isinstance(value, dict) else value for value in part]
    return part


def _plain(loader: _Loader, node: yaml.Node, path: Path, lines: dict[Path, int]) -> Any:
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if key_node.tag != "tag:yaml.org,2002:str":
                raise _refused(f"the key {key!r} is not read as text; put it in quotes", key_node)
            if key in found:
                first = lines[(*path, key)]
                raise _refused(f"the key {key!r} stands twice (first on line {first}); keep one", key_node)
            lines[(*path, key)] = key_node.start_mark.line + 1
            found[key] = _plain(loader, value_node, (*path, key), lines)
        return found
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        items = []
        for i, item in enumerate(node.value):
            lines[(*path, i)] = item.start_mark.line + 1
            items.append(_plain(loader, item, (*path, i), lines))
        return items
    if node.tag.rpartition(":")[2] in ("str", "int", "float", "bool", "null"):
        return _scalar(loader, node)
    raise _refused(f"the tag {node.tag!r} is not allowed; write plain values", node)


def _scalar(loader: _Loader, node: yaml.Node) -> Any:
    try:
        found = loader.construct_object(node)
    except (ValueError, LookupError):  # more digits than Python reads, or a tag that does not fit its text
        raise _refused(f"{node.value[:40]!r} cannot be read as a value", node) from None
    if isinstance(found, float) and not math.isfinite(found):
        raise _refused(f"{node.value[:40]!r} is not a finite number", node)
    return found


def _refused(problem: str, at: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _sentence(problem: str) -> str:
    if problem.startswith("mapping values are not allowed"):
        return "a second ': ' in one line; put text that holds one in quotes."
    return problem if problem.endswith(".") else problem + "."
