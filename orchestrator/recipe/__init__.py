"""Recipes: a run written down in YAML, read strictly.

    name: particle-math
    model: embedded                    # or {engine: sglang, url: "http://127.0.0.1:30000"}
    reward: self_eval                  # or {kind: judge, model: {engine: litellm, model: …}, …}
    policy: cot                        # or {preset: cot, max_steps: 6}
    tools: [calculator]
    budget: {tokens: 8000, seconds: 120}
    pipeline:
      - solve: {strategy: particle_filter, particles: 8}
      - verify: {by: calculator, retries: 2}

`strategy: particle_filter`, or `strategy: {name: particle_filter, particles: 8}`, is short for a pipeline
with that one step; `nodes` and `edges` say everything (`steps.py`). An unknown key, a missing value or a
wrong type is an error that names the file, the line, the key, the value, what is allowed and the nearest
spelling. Values can be replaced from outside: `load("particle-math", ["budget.tokens=4000",
"strategy.particles=16"])`.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

from ...serving.errors import UnknownName, UsageError
from .. import strict_yaml
from ..steps import plain
from ..strict_yaml import Document
from . import include
from .model import Memory, Recipe
from .reader import Reader

if TYPE_CHECKING:
    from ..solve import Pipeline
    from ..workflow import Workflow

__all__ = [
    "Document",
    "Memory",
    "Recipe",
    "check",
    "default",
    "document",
    "from_data",
    "load",
    "packaged",
    "read",
]


def load(
    source: str | File,
    overrides: Iterable[str] = (),
    *,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> "Pipeline | Workflow":
    """The pipeline of a recipe: a file, or a packaged one by name, with `key.key=value` overrides.
    `functions` are those that its `call` steps name."""
    return read(source, overrides).pipeline(functions=functions)


def read(source: str | File, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe itself, checked."""
    return check(document(source), overrides)


def document(source: str | File) -> Document:
    """What a recipe's file says, with what it includes, unchecked."""
    file = _find(source)
    return include.resolve(strict_yaml.read(file), file.parent, _packaged_file)


def check(
    written: Document, overrides: Iterable[str] = (), replaced: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe a document holds, with whole parts `replaced` by name first and single keys overridden
    then. Raises UsageError with one line for each mistake."""
    if isinstance(overrides, str | Mapping):
        listed = "['budget.tokens=4000']"
        raise UsageError(f"Changes are a list of texts such as {listed}, got {overrides!r:.80}.")
    reader = Reader(include.resolve(written, None, _packaged_file), overrides)
    for key, value in (replaced or {}).items():
        reader.replace(key, value)
    reader.override()
    return reader.recipe()


def from_data(data: Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """The recipe that plain data holds: what `Recipe.data()` gave, or what a file could say."""
    return check(Document(f"recipe {data.get('name', '')}".strip(), plain(data)), overrides)


def default(strategy: str = "best_of_n") -> Document:
    """The recipe of a run that names none."""
    return Document("command line", {"name": "run", "strategy": strategy})


def packaged() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = files(__package__.split(".")[0]) / "recipes"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def _find(source: str | File) -> File:
    file, name = File(source), str(source)
    try:
        if file.is_file():
            return file
        is_path = file.suffix in (".yaml", ".yml") or len(file.parts) > 1
    except (OSError, ValueError):  # a name that no file can have
        is_path = True
    if is_path:
        known = ", ".join(packaged())
        raise UsageError(f"No recipe file {name[:80]!r}.{_meant(file)} Packaged recipes: {known}.")
    if name not in packaged() and file.with_name(f"{name}.yaml").is_file():
        raise UsageError(f"No recipe named {name!r} comes with the package. For the file write {name}.yaml.")
    return _packaged_file(name)


def _meant(file: File) -> str:
    """A hint at the nearest recipe, in the same folder or in the package."""
    here: dict[str, str] = {}
    with suppress(OSError, ValueError):
        here = {each.stem: str(each) for each in file.parent.iterdir() if each.suffix in (".yaml", ".yml")}
    near = get_close_matches(file.stem, [*here, *packaged()], n=1)
    return f" Did you mean {here.get(near[0], near[0])!r}?" if near else ""


def _packaged_file(name: str) -> File:
    if name not in packaged():
        raise UnknownName("recipe", name, packaged())
    return File(str(files(__package__.split(".")[0]) / "recipes" / f"{name}.yaml"))
