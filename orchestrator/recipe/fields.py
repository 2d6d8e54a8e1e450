"""The normal form of a recipe, field by field, each checked against the class it is for.

Nothing is converted: text is never read as a number, nor a boolean as one. What is wrong is collected, all of
it, with its place in the normal form.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ...serving.errors import UsageError
from ..steps import KINDS, Bound, Branch, Call, Edge, Named, Revise, Solve, Solver, Step, Way, When
from ..strict_yaml import Path
from . import laws, secrets
from .model import WORDS, Memory, Recipe, Settings, scored, spec, told
from .parts import (
    Checked,
    Fault,
    check_budget,
    check_model,
    check_policy,
    check_reward,
    check_strategy,
    check_tools,
    near,
)
from .shorthand import short

_Model = TypeVar("_Model", bound=BaseModel)

FIELDS = frozenset(Recipe.model_fields)
"""The keys of a recipe's normal form, but for the short `strategy`."""
KEYS = (*Recipe.model_fields, "include", "pipeline", "strategy")
"""All that a recipe's file may say."""

_EDGE = {"source": "from", "target": "to"}
_FIELD = {"from": "source", "to": "target"}


class Fields:
    """One recipe's fields. `recipe()` reads them, `check_graph` judges them; what is wrong is in `faults`."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.faults: list[Fault] = []
        self._data = {key: value for key, value in data.items() if value is not None}
        self._roles = set(_keys(self._data.get("models")))

    def recipe(self) -> Recipe | None:
        """The recipe, if nothing is wrong with it."""
        data = self._data
        self.faults += secrets.faults(data)
        for key in data:
            if key not in FIELDS:
                self._wrong((key,), near(f"{key!r} is not a key of a recipe", key, KEYS))
        plain = {key: data[key] for key in Settings.model_fields if key in data}
        settings = self._read(Settings, plain, ())
        if isinstance(data.get("budget"), Mapping):
            self._judge(check_budget(data["budget"]), ("budget",))
        if settings is not None:
            self.faults += [Fault(("tools", *f.path), f.message) for f in check_tools(settings.tools)]
        found: dict[str, Any] = {
            key: self._part(data[key], (key,), key) for key in ("model", "policy", "reward") if key in data
        }
        found["models"] = self._models(data.get("models"), ("models",))
        recall = settings.memory.recall if settings and settings.memory else 4
        found["solvers"] = {
            name: self._solver(part, ("solvers", name)) for name, part in self._named("solvers")
        }
        found["nodes"] = {
            name: self._step(part, ("nodes", name), recall) for name, part in self._named("nodes")
        }
        edges = data.get("edges", [])
        if not isinstance(edges, list):
            self._wrong(("edges",), f"must be a list of edges, got {short(edges)}.")
        found["edges"] = [
            self._edge(part, i) for i, part in enumerate(edges if isinstance(edges, list) else ())
        ]
        if self.faults or settings is None:
            return None
        return Recipe.model_validate(found | {key: getattr(settings, key) for key in plain})

    def check_graph(self, recipe: Recipe) -> None:
        """Hold the whole against the laws of its graph."""
        self.faults += laws.faults(recipe)
        if not self.faults:
            self.faults += _roles(recipe)

    def _named(self, key: str) -> Iterable[tuple[str, Any]]:
        value = self._data.get(key, {})
        if isinstance(value, Mapping):
            return value.items()
        self._wrong((key,), f"must be a mapping of names, got {short(value)}.")
        return ()

    # ------------------------------------------------------------ parts

    def _part(self, value: Any, path: Path, key: str) -> Named | None:
        """A model, reward, policy or strategy: a name, or a mapping that says it under the key's word."""
        word = WORDS[key]
        at = (*path, word) if isinstance(value, Mapping) else path  # where its name stands
        if isinstance(value, str):
            value = {word: value}
        if not isinstance(value, Mapping):
            self._wrong(path, f"must be a name or a mapping with its parameters, got {short(value)}.")
            return None
        name = value.get(word, "cot" if key == "policy" else None)
        params = {each: part for each, part in value.items() if each != word}
        if name is None:
            self._wrong(path, f"the key {word!r} is missing. It has: {told(tuple(value)) or 'nothing'}.")
        elif not isinstance(name, str) or not 0 < len(name) <= 200:
            self._wrong(at, f"must be a name, got {short(name)}.")
        elif "name" in params:
            self._wrong((*path, "name"), f"'name' is not a key here. The name stands under {word!r}.")
        else:
            self._judge(self._checked(key, name, params), path, at)
            return Named(name=name, **params)
        return None

    def _checked(self, key: str, name: str, params: Mapping[str, Any]) -> Checked:
        """A part against the class it names."""
        if key == "model":
            return Checked({}, tuple(check_model(spec(Named(name=name, **params), "model"))))
        if key != "reward":
            return (check_policy if key == "policy" else check_strategy)(name, params)
        checked, model = check_reward(name, params), params.get("model")
        if model is None or model in ("policy", "reward", *self._roles) or checked.faults:
            return checked
        faults = tuple(Fault(("model", *fault.path), fault.message) for fault in check_model(model))
        return Checked(checked.params, faults)

    def _models(self, value: Any, path: Path) -> dict[str, Named]:
        if value is not None and not isinstance(value, Mapping):
            self._wrong(path, f"must be a mapping of roles such as {{judge: embedded}}, got {short(value)}.")
        roles = value if isinstance(value, Mapping) else {}
        found = {role: self._part(model, (*path, role), "model") for role, model in roles.items()}
        return {role: model for role, model in found.items() if model is not None}

    def _solver(self, value: Any, path: Path) -> Solver | None:
        if not isinstance(value, Mapping):
            self._wrong(path, f"must be a mapping such as {{strategy: best_of_n}}, got {short(value)}.")
            return None
        for key in value:
            if key not in Solver.model_fields:
                self._wrong((*path, key), near(f"{key!r} is not a key of a solver", key, Solver.model_fields))
        roles = set(_keys(value.get("models")))
        self._roles |= roles
        own = {
            key: self._part(value[key], (*path, key), key)
            for key in ("strategy", "model", "policy", "reward")
            if value.get(key) is not None
        }
        models = self._models(value.get("models"), (*path, "models"))
        if "strategy" not in own:
            self._wrong(path, "the key 'strategy' is missing.")
        strategy = own.pop("strategy", None)
        if strategy is None:
            return None
        if own.get("reward") is not None and not _takes_reward(strategy.name):
            self._wrong((*path, "reward"), f"the strategy {strategy.name!r} uses no reward. Leave it out.")
        return Solver(strategy=strategy, models=models, **own)

    # ------------------------------------------------------------ steps and edges

    def _step(self, value: Any, path: Path, recall: int) -> Step | None:
        if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in KINDS:
            self._wrong(path, f"must be one step such as {{solve: …}}, got {short(value)}.")
            return None
        [(kind, body)] = value.items()
        at = (*path, kind)
        if kind in ("solve", "revise"):
            solver = self._who(body, at)
            return None if solver is None else (Solve if kind == "solve" else Revise)(solver=solver)
        if kind == "call":
            return self._read(Call, {"function": body}, at)
        if not isinstance(body, Mapping):
            self._wrong(at, f"must be a mapping of its keys, got {short(body)}.")
            return None
        body = dict(body)
        parts: dict[str, Any] = {}
        if kind == "recall":
            body.setdefault("k", recall)
        if kind == "branch":
            parts["solver"] = self._who(body.pop("solve", None), (*at, "solve"))
            body["solver"] = "its own"  # checked already, as is the reward
        if kind == "verify" and body.get("reward") is not None:
            parts["reward"] = self._part(body.pop("reward"), (*at, "reward"), "reward")
        found: Any = self._read(KINDS[kind], body, at)
        step: Step | None = found.model_copy(update=parts) if found is not None else None
        return step

    def _who(self, value: Any, path: Path) -> str | Solver | None:
        """Who solves in a step: one of the solvers by name, or one written there."""
        if not isinstance(value, str):
            return self._solver(value, path)
        known = [*_keys(self._data.get("solvers"))]
        if value not in known:
            self._wrong(path, laws.no_solver(value, known))
        return value

    def _edge(self, value: Any, i: int) -> Edge | None:
        if not isinstance(value, Mapping):
            self._wrong(("edges", i), f"must be an edge such as a -> b, got {short(value)}.")
            return None
        for key in value:
            if key in _EDGE:
                self._wrong(("edges", i, key), f"{key!r} is not a key of an edge. Write {_EDGE[key]}.")
        data = {_FIELD.get(str(key), str(key)): part for key, part in value.items()}
        return self._read(Edge, data, ("edges", i))

    # ------------------------------------------------------------ what is wrong

    def _read(self, of: type[_Model], data: Mapping[str, Any], path: Path) -> _Model | None:
        """The data as that class; None if something is wrong with it."""
        try:
            return of.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            for each in error.errors(include_url=False):
                self._refused(of, each, path)
            return None

    def _refused(self, of: type[BaseModel], error: Mapping[str, Any], path: Path) -> None:
        loc: Path = tuple(error["loc"])
        if loc[-1:] in (("int",), ("float",)) and loc[-2:-1] in (("at_least",), ("at_most",)):
            if loc[-1] == "int":
                return  # a number may be either: what it is not is told once
            loc = loc[:-1]
        inside = tuple(_EDGE.get(str(key), key) for key in loc if not (of is Call and key == "function"))
        where = (*path, *inside)
        if error["type"] == "extra_forbidden":
            what, known = _known(of, loc[:-1])
            self._wrong(where, near(f"{where[-1]!r} is not a key of {what}", where[-1], known))
        elif error["type"] == "missing":
            self._wrong(where[:-1], f"the key {str(where[-1])!r} is missing.")
        elif error["type"] == "value_error":
            self._wrong(where, f"{_words(error['msg'])}.")
        else:
            words, given = _words(error["msg"]), error["input"]
            if isinstance(given, str):
                words = words.replace(_LIST, f"a list such as [{short(given)[1:-1]}]")
            self._wrong(where, f"{words}, got {short(given)}.")

    def _judge(self, checked: Checked, path: Path, named: Path = ()) -> None:
        """The faults of a part, those of its name where that stands."""
        for fault in checked.faults:
            self._wrong(named if fault.path == ("name",) else (*path, *fault.path), fault.message)

    def _wrong(self, path: Path, message: str) -> None:
        self.faults.append(Fault(path, message))


def _roles(recipe: Recipe) -> Iterable[Fault]:
    """Models in roles that no step asks."""
    own = {("solvers", name): solver for name, solver in recipe.solvers.items() if solver.models}
    try:
        asked = (
            {role for solver in recipe.solvers_used() for role in recipe.roles(solver)}
            if recipe.models
            else set()
        )
        roles = {at: recipe.roles(solver) for at, solver in own.items()}
    except UsageError as error:  # parts that are sound by themselves, but not together
        yield Fault((), str(error))
        return
    places: list[tuple[Path, set[str]]] = [(("models", role), asked) for role in recipe.models]
    places += [((*at, "models", role), roles[at]) for at, solver in own.items() for role in solver.models]
    for path, known in places:
        if path[-1] not in known:
            yield Fault(path, near("no step asks a model in this role", path[-1], known))


def _keys(value: Any) -> Iterable[str]:
    return value if isinstance(value, Mapping) else ()


def _takes_reward(strategy: str) -> bool:
    try:
        return scored(strategy)
    except UsageError:
        return True  # there is no such strategy, which is told already


def _known(of: Any, path: Iterable[Any]) -> tuple[str, list[str]]:
    """What stands at a place below a class, in words, and the keys that it may have."""
    for key in path:
        if key in of.model_fields:
            of = _model_in(of.model_fields[key].annotation) or of
    what = next((f"the step {kind!r}" for kind, step in KINDS.items() if step is of), _NOUNS.get(of, "it"))
    if of is Settings:
        return what, list(KEYS)
    names = {"solver": "solve"} if of is Branch else _EDGE if of is Edge else {}
    return what, [names.get(name, name) for name in of.model_fields]


_NOUNS = {
    Settings: "a recipe",
    Memory: "a memory",
    Edge: "an edge",
    When: "a condition",
    Way: "a way",
    Bound: "a limit",
}


def _model_in(annotation: Any) -> Any:
    """The model class in a type such as `Memory | None` or `Mapping[str, Way]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(part) for part in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found is not None), None)


def _words(message: str) -> str:
    message = message.removeprefix("Value error, ").removesuffix(".")
    for theirs, ours in _OURS.items():
        message = message.replace(theirs, ours)
    return message


_LIST = "a list such as [a, b]"
_OURS = {
    "Input should": "must",
    "String should match pattern '^[a-z0-9][a-z0-9._-]*$'": "must be of letters a-z, digits, . _ and -",
    "String should have": "must have",
    "Dictionary should have": "must have",
    "an object": "a mapping",
    "a valid array": _LIST,
    "a valid dictionary": "a mapping such as {tokens: 8000}",
    "a valid integer": "an integer",
    "a valid string": "text",
    "a valid number": "a number",
    "a valid boolean": "true or false",
}
