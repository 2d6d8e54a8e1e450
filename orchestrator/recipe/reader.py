"""From a document to a recipe, by way of its normal form, with values replaced from outside.

A mistake is told with file, line, key, value, what is allowed and the nearest spelling: one line for each,
all of them at once. One in a replaced value is told with the option as it was typed.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ...serving.errors import UsageError
from .. import strict_yaml
from ..strict_yaml import Document, Path
from .fields import FIELDS, Fields
from .model import WORDS, Recipe, told
from .parts import Fault
from .shorthand import Normal, short

_MOST_TOLD = 20
_LONGEST = 600
_DEFAULTS: Mapping[Any, str] = {"model": "embedded", "policy": "cot"}


class Reader:
    """One document on its way to a recipe; knows where each value was written. Of the `overrides` those that
    name a place of its pipeline are laid over the document, and the others over its normal form, later."""

    def __init__(self, document: Document, overrides: Iterable[str] = ()) -> None:
        self._document = document
        self._set: dict[Path, str] = {}  # path → the option that wrote it
        self._set_in_file: dict[Path, str] = {}
        self._overrides = [_override(text) for text in overrides]
        written = dict(document.data)
        for option, path, value in self._overrides:
            if path[0] == "pipeline":
                self._put_in_pipeline(written, path, value, option)
        normal = Normal(written)
        self._data, self._moved, self._shape = normal.data, normal.moved, normal.faults

    def replace(self, key: str, value: Any) -> None:
        """Put a whole part in the place of the document's."""
        option = f"--{key} {value}"
        path = self._strategy(option) if key == "strategy" else (key,)
        self._put(path, strict_yaml.scalar(value) if key == "seed" else value, option)

    def override(self) -> None:
        """Apply the overrides. A first key that is no field of a recipe is a parameter of the strategy."""
        for option, path, value in self._overrides:
            if path[0] == "pipeline":
                continue
            if path[0] not in FIELDS:
                path = (*self._strategy(option), *path[path[0] == "strategy" :])
            self._put(path, value, option)

    def recipe(self) -> Recipe:
        """The recipe. Raises UsageError with a line for each mistake."""
        lines = [self._told_in_file(fault) for fault in self._shape]
        fields = Fields(self._data)
        found = fields.recipe()
        if found is not None and not lines:
            fields.check_graph(found)
        lines += [self._told(fault) for fault in fields.faults]
        if found is None or lines:
            told_once = sorted(dict.fromkeys(lines), key=self._place)
            more = len(told_once) - _MOST_TOLD
            rest = [f"{self._document.file}: {more} more mistakes."] if more > 0 else []
            raise UsageError("\n".join([*told_once[:_MOST_TOLD], *rest]))
        return found

    # ------------------------------------------------------------ changes

    def _put(self, path: Path, value: Any, option: str) -> None:
        self._set[_put(self._data, path, value, option)] = option

    def _put_in_pipeline(self, written: dict[str, Any], path: Path, value: Any, option: str) -> None:
        """Write a value where the file's pipeline has it, in the words of the file."""
        if not isinstance(written.get("pipeline"), list):
            form = next((key for key in ("strategy", "nodes") if written.get(key) is not None), "steps")
            instead = {"strategy": "strategy.KEY", "nodes": "nodes.NAME.KEY"}.get(form, "strategy")
            raise UsageError(f"{option}: the recipe has {form}, no pipeline. Write --set {instead}=….")
        self._set_in_file[_put(written, path, value, option)] = option

    def _strategy(self, option: str) -> Path:
        """Where the one strategy of the recipe stands."""
        places: list[Path] = []
        nodes = self._data.get("nodes")
        for name, step in nodes.items() if isinstance(nodes, Mapping) else ():
            if isinstance(step, Mapping) and "solve" in step:
                body = step["solve"]
                place: Path = ("solvers", body) if isinstance(body, str) else ("nodes", name, "solve")
                places += [place] if place not in places else []
        if len(places) != 1:
            found = " or ".join(f"{told((*place, 'strategy'))}=…" for place in places)
            several = f"the recipe has {len(places)} strategies. Write --set {found}"
            raise UsageError(f"{option}: {several if places else 'the recipe has no step that solves'}.")
        return (*places[0], "strategy")

    # ------------------------------------------------------------ what is wrong

    def _told(self, fault: Fault) -> str:
        if (typed := _typed(self._set, fault.path)) is not None:
            return _one_line(f"{typed}: {fault.message}")
        return self._told_in_file(Fault(self._in_file(fault.path), fault.message))

    def _told_in_file(self, fault: Fault) -> str:
        if (typed := _typed(self._set_in_file, fault.path)) is not None:
            return _one_line(f"{typed}: {fault.message}")
        return self._line(fault.path, fault.message)

    def _line(self, path: Path, message: str) -> str:
        """A mistake at a place in the file."""
        key = told(path)
        return _one_line(f"{self._document.where(path)}: {f'{key}: ' if key else ''}{message}")

    def _place(self, line: str) -> tuple[str, int]:
        """Where a mistake stands in the order of the file; what was typed comes first."""
        file, number, _ = f"{line}::".split(":", 2)
        return (file, int(number)) if number.isdecimal() else ("", 0)

    def _in_file(self, path: Path) -> Path:
        for end in range(len(path), 0, -1):
            if path[:end] in self._moved:
                return (*self._moved[path[:end]], *path[end:])
        return path


def _override(text: str) -> tuple[str, Path, Any]:
    """`a.b=value` as the option that was typed, the path and the value."""
    key, equals, value = text.partition("=")
    option = f"--set {text}"
    path: Path = tuple(key.strip().split("."))
    if not equals or "" in path:
        raise UsageError(f"{option}: write key=value, e.g. --set budget.tokens=4000.")
    try:
        return option, path, strict_yaml.scalar(value)
    except UsageError as error:
        problem = str(error).partition(": ")[2]
        raise UsageError(f"{option}: {problem} Put text in quotes: {key}='\"…\"'.") from None


def _put(data: dict[str, Any], path: Path, value: Any, option: str) -> Path:
    """Write a value and return its path; the mappings above it are made where they are missing, and what is
    written short is written out."""
    at: Any = data
    for i in range(len(path)):
        if isinstance(at, list):
            path = (*path[:i], _index(at, path[i], option), *path[i + 1 :])
        if i + 1 == len(path):
            break
        key: Any = path[i]
        below = at[key] if isinstance(at, list) or key in at else _DEFAULTS.get(key) if i == 0 else None
        if isinstance(below, str):
            below = _written_out(below, path[: i + 2], option)
        if below is None:
            below = {}
        if not isinstance(below, dict | list):
            raise UsageError(f"{option}: {key!r} holds {short(below)} and has no parts.")
        at[key] = below.copy()
        at = at[key]
    at[path[-1]] = value
    return path


def _written_out(short_form: str, path: Path, option: str) -> Any:
    """What a name is short for, if it is: it stands where the path has its last key but one."""
    *above, key, below = path
    if path[0] == "pipeline":
        if key in ("solve", "revise"):
            instead = f"solvers.{short_form}.strategy.{below}"
            raise UsageError(
                f"{option}: {key!r} names the solver {short(short_form)}. Write --set {instead}=…."
            )
        if below == short_form:  # a step without parts
            return {short_form: {}}
    word = "engine" if above[-1:] == ["models"] else {**WORDS, **_STEP_WORDS}.get(str(key))
    return {word: short_form} if word else short_form


_STEP_WORDS = {"verify": "by", "ask": "question"}


def _typed(options: Mapping[Path, str], path: Path) -> str | None:
    """The option that wrote a value: the value itself, what it is part of, or a part of it."""
    for end in range(len(path), 0, -1):
        if path[:end] in options:
            return options[path[:end]]
    return next((option for at, option in options.items() if at[: len(path)] == path != ()), None)


def _index(items: list[Any], key: str | int, option: str) -> int:
    text = str(key)
    if not (text.isascii() and text.isdecimal() and int(text) < len(items)):
        raise UsageError(f"{option}: no number {text!r} in a list of {len(items)}.")
    return int(text)


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
