"""Recipes: a run written down in YAML, read strictly.

    name: particle-math
    model: embedded                    # or {engine: sglang, url: "http://127.0.0.1:30000"}
    reward: self_eval                  # or {kind: judge, model: {engine: litellm, model: …}, …}
    policy: cot                        # or {preset: cot, max_steps: 6}
    tools: [calculator]
    budget: {tokens: 8000, seconds: 120}
    pipeline:
      - solve: {strategy: particle_filter, particles: 8}

`strategy: particle_filter`, or `strategy: {name: particle_filter, particles: 8}`, is short for a pipeline
with that one step. An unknown key, a missing value or a wrong type is an error that names the file, the
line, the key, the value, what is allowed and the nearest spelling. Values can be replaced from outside:
`load("particle-math", ["budget.tokens=4000", "strategy.particles=16"])`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..serving.errors import UnknownName, UsageError
from . import strict_yaml
from .recipe_parts import (
    Checked,
    check_budget,
    check_model,
    check_policy,
    check_reward,
    check_strategy,
    check_tools,
    near,
)
from .strict_yaml import Document, Path

if TYPE_CHECKING:
    from .solve import Pipeline


class Named(BaseModel):
    """A part by name, with the part's own parameters beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def params(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class Recipe(BaseModel):
    """The fields of a recipe. `options()` are the arguments `solve.build` wants."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str = ""
    model: Named = Named(name="embedded")
    reward: Named | None = None
    policy: Named | None = None
    tools: tuple[str, ...] = ()
    budget: dict[str, Any] = {}
    seed: int = Field(0, ge=0, strict=True)
    strategy: Named

    @field_validator("model", "reward", "policy", "strategy", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("budget", mode="before")
    @classmethod
    def _amounts(cls, value: Any) -> Any:
        from .ledger import Budget

        if not isinstance(value, str):
            return value
        try:
            return Budget.parse(value).limits()
        except UsageError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _without_nothing(cls, data: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in data.items() if value is not None}

    def pipeline(self) -> "Pipeline":
        """The recipe ready to run."""
        from .solve import build

        return replace(build(**self.options()), seed=self.seed)

    def options(self) -> dict[str, Any]:
        """Arguments for `solve.build`."""
        found: dict[str, Any] = {"strategy": self.strategy.name, **self.strategy.params}
        found["model"] = _spec(self.model, "engine")
        if self.policy is not None:
            found["policy"] = _spec(self.policy, "preset")
        if self.reward is not None:
            params = self.reward.params
            if (judge := params.pop("model", None)) is not None:
                found["models"] = {"reward": judge}
            found["reward"] = _spec(Named(name=self.reward.name, **params), "kind")
        if self.tools:
            found["tools"] = self.tools
        if self.budget:
            found["budget"] = self.budget
        return found


def load(source: str | File, overrides: Iterable[str] = ()) -> "Pipeline":
    """The pipeline of a recipe: a file, or a packaged one by name, with `key.key=value` overrides."""
    return read(source, overrides).pipeline()


def read(source: str | File, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe itself, checked."""
    return check(document(source), overrides)


def document(source: str | File) -> Document:
    """What a recipe's file says, unchecked."""
    return strict_yaml.read(_find(source))


def check(
    written: Document, overrides: Iterable[str] = (), replaced: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe a document holds, with whole parts `replaced` by name first and single keys overridden
    then. Raises UsageError with one line for each mistake."""
    reader = _Reader(written)
    reader.flatten()
    for key, value in (replaced or {}).items():
        reader.replace(key, value)
    for override in overrides:
        reader.override(override)
    return reader.recipe()


def default(strategy: str = "best_of_n") -> Document:
    """The recipe of a run that names none."""
    return Document("command line", {"name": "run", "strategy": strategy})


def packaged() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = files(__package__.rpartition(".")[0]) / "recipes"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def _find(source: str | File) -> File:
    file = File(source)
    if file.is_file():
        return file
    name = str(source)
    if file.suffix in (".yaml", ".yml") or len(file.parts) > 1:
        raise UsageError(f"No recipe file {name!r}. Packaged recipes: {', '.join(packaged())}.")
    if name not in packaged():
        raise UnknownName("recipe", name, packaged())
    return File(str(files(__package__.rpartition(".")[0]) / "recipes" / f"{name}.yaml"))


class _Reader:
    """One document on its way to a recipe; knows where each value was written."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._data: dict[str, Any] = document.data
        self._moved: dict[Path, Path] = {}  # path in the recipe → path in the file
        self._set: dict[Path, str] = {}  # path → the override that wrote it

    def flatten(self) -> None:
        """Turn the pipeline into the `strategy` it is short for, and every part into `{name: …}`."""
        data = dict(self._data)
        if "pipeline" in data:
            if "strategy" in data:
                raise self._error(("strategy",), "give either pipeline or strategy, not both.")
            data["strategy"] = self._solve_step(data.pop("pipeline"))
        for key, word in (("model", "engine"), ("reward", "kind"), ("policy", "preset")):
            part = data.get(key)
            if isinstance(part, dict):
                data[key] = self._renamed(part, word, (key,), optional=key == "policy")
        if isinstance(data.get("strategy"), str):
            data["strategy"] = {"name": data["strategy"]}
        self._data = data

    def _solve_step(self, pipeline: Any) -> dict[str, Any]:
        where: Path = ("pipeline",)
        steps = pipeline if isinstance(pipeline, list) else []
        for i, step in enumerate(steps):
            names = list(step) if isinstance(step, dict) else [step]
            if names != ["solve"]:
                told = " and ".join(map(repr, names)) or "nothing"
                raise self._error((*where, i), f"no step is named {told}. Allowed: solve.")
        if len(steps) != 1 or not isinstance(steps[0], dict):
            raise self._error(where, "must be a list with one step: `- solve: {strategy: best_of_n, n: 8}`.")
        [step] = steps
        body = step["solve"]
        if not isinstance(body, dict):
            raise self._error(
                (*where, 0, "solve"), f"must be a mapping such as {{strategy: best_of_n}}, got {body!r}."
            )
        self._moved["strategy",] = (*where, 0, "solve")
        return self._renamed(body, "strategy", (*where, 0, "solve"))

    def _renamed(
        self, part: dict[str, Any], word: str, where: Path, *, optional: bool = False
    ) -> dict[str, Any]:
        """`{word: x, …}` as `{name: x, …}`."""
        if word not in part and not (optional or "name" in part):
            raise self._error(where, f"the key {word!r} is missing. It has: {', '.join(part) or 'nothing'}.")
        if word in part:
            here = ("strategy",) if word == "strategy" else where
            self._moved[*here, "name"] = (*where, word)
        rest = {key: value for key, value in part.items() if key != word}
        return {"name": part.get(word, part.get("name", _DEFAULT_NAMES.get(where[-1]))), **rest}

    def replace(self, key: str, value: Any) -> None:
        """Put a whole part in the place of the document's."""
        part = strict_yaml.scalar(value) if key == "seed" else value
        self._data[key] = {"name": part} if key in _PARTS else part
        self._set[key,] = f"--{key} {value}"

    def override(self, text: str) -> None:
        """Apply `a.b=value`. A first key that is no field of a recipe is a parameter of the strategy."""
        key, equals, value = text.partition("=")
        path: list[str] = key.strip().split(".")
        if not equals or not all(path):
            raise UsageError(f"--set {text}: write key=value, e.g. --set budget.tokens=4000.")
        if path[0] not in Recipe.model_fields:
            path.insert(0, "strategy")
        if len(path) == 1 and path[0] in _PARTS:
            path.append("name")
        at = self._data
        for i, step in enumerate(path[:-1]):
            below = at.get(step, _DEFAULT_NAMES.get(step) if i == 0 else None)
            if isinstance(below, str) and i == 0 and step != "budget":
                below = {"name": below}
            if below is not None and not isinstance(below, dict):
                raise UsageError(f"--set {text}: {step!r} holds {below!r} and has no parts.")
            at[step] = dict(below or {})
            at = at[step]
        try:
            at[path[-1]] = strict_yaml.scalar(value)
        except UsageError as error:
            problem = str(error).partition(": ")[2]
            raise UsageError(f"--set {text}: {problem} Put text in quotes: {key}='\"…\"'.") from None
        self._set[tuple(path)] = f"--set {text}"

    def recipe(self) -> Recipe:
        """The recipe, with every part checked against the class it names."""
        try:
            found = Recipe.model_validate(self._data)
        except ValidationError as error:
            raise UsageError("\n".join(self._told(each) for each in error.errors())) from None
        parts = {
            "strategy": check_strategy(found.strategy.name, found.strategy.params),
            "budget": check_budget(found.budget),
        }
        if found.reward is not None:
            parts["reward"] = check_reward(found.reward.name, found.reward.params)
        if found.policy is not None:
            parts["policy"] = check_policy(found.policy.name, found.policy.params)
        faults = [
            self._line((root, *fault.path), fault.message)
            for root, part in parts.items()
            for fault in part.faults
        ]
        model = check_model(_spec(found.model, "engine"))
        for root, wrong in {"model": model, "tools": check_tools(found.tools)}.items():
            faults += [self._line((root, *fault.path), fault.message) for fault in wrong]
        if faults:
            raise UsageError("\n".join(faults))
        return found.model_copy(
            update={root: _with(getattr(found, root), part) for root, part in parts.items()}
        )

    def _told(self, error: Mapping[str, Any]) -> str:
        path: Path = tuple(error["loc"])
        if error["type"] == "extra_forbidden":
            return self._line(path, near("is not a key of a recipe", path[-1], _KEYS))
        if error["type"] == "missing":
            hint = "pipeline (or strategy)" if path == ("strategy",) else str(path[-1])
            return self._line(path[:-1], f"the key {hint!r} is missing.", named=False)
        if error["type"] == "value_error":
            return self._line(path, f"{_plain(error['msg'])}.")
        return self._line(path, f"{_plain(error['msg'])}, got {_short(error['input'])}.")

    def _line(self, path: Path, message: str, *, named: bool = True) -> str:
        if (typed := self._typed(path)) is not None:
            return f"{typed}: {message}"
        key = ".".join(map(str, [p for p in path if p != "name" or len(path) == 1]))
        return f"{self._document.where(self._in_file(path))}: {f'{key}: ' if named and key else ''}{message}"

    def _typed(self, path: Path) -> str | None:
        """The option that wrote a value: the value itself, what it is part of, or a part of it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self._set:
                return self._set[path[:end]]
        return next((told for at, told in self._set.items() if at[: len(path)] == path != ()), None)

    def _in_file(self, path: Path) -> Path:
        for end in range(len(path), 0, -1):
            if path[:end] in self._moved:
                return (*self._moved[path[:end]], *path[end:])
        return path

    def _error(self, path: Path, message: str) -> UsageError:
        key = ".".join(map(str, path))
        return UsageError(f"{self._document.where(path)}: {key}: {message}")


_PARTS = ("model", "reward", "policy", "strategy")
_DEFAULT_NAMES: Mapping[str | int, str] = {"model": "embedded", "policy": "cot"}
_KEYS: Sequence[str] = (*Recipe.model_fields, "pipeline")


def _with(part: Named | dict[str, Any], checked: Checked) -> Named | dict[str, Any]:
    """The part with its parameters as the class wants them."""
    return Named(name=part.name, **checked.params) if isinstance(part, Named) else checked.params


def _spec(part: Named, word: str) -> str | dict[str, Any]:
    return {word: part.name, **part.params} if part.params else part.name


def _plain(message: str) -> str:
    message = message.removeprefix("Value error, ").removesuffix(".")
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message


_WORDS = {
    "Input should": "must",
    "String should match pattern '^[a-z0-9][a-z0-9._-]*$'": "must be of letters a-z, digits, . _ and -",
    "valid dictionary or instance of Named": "name or a mapping with its parameters",
    "valid dictionary": "mapping such as {tokens: 8000}",
    "valid tuple": "list such as [calculator]",
    "a valid integer": "an integer",
    "valid string": "text",
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
