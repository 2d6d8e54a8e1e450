"""The JSON schema of recipes, for editors: completion, descriptions, wrong keys underlined as they are typed.

    # yaml-language-server: $schema=recipe.schema.json

It is made from the same classes that check a recipe (`steps.py`, and the strategies', rewards' and policies'
own). It knows this package's parts; names of third parties pass it unseen. What only the whole can tell
(unknown nodes, loops, missing tools) `abduce recipe check` tells.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from ..steps import AskHuman, Branch, Call, Recall, Remember, Route, Verify, Way, When
from .model import WORDS, Memory, Settings

Schema = dict[str, Any]

_TITLE = "abduce recipe"
_HIDDEN = frozenset({"policy", "reward"})  # parts of the recipe, not parameters


def schema() -> Schema:
    """The schema, as JSON data (draft 7, which editors know best)."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": _TITLE,
        "description": "A run written down. Check it with: abduce recipe check FILE",
        "type": "object",
        "required": ["name"],
        "additionalProperties": False,
        "properties": _recipe(),
        "definitions": _definitions(),
    }


def _recipe() -> Schema:
    plain = Settings.model_json_schema()["properties"]
    return {
        "name": plain["name"] | {"description": "What it is called: letters a-z, digits, . _ and -."},
        "description": {"type": "string", "description": "One line for `abduce recipe list`."},
        "include": {"type": "string", "description": "A file in this folder or a packaged recipe."},
        "model": _ref("model"),
        "models": _named("model", "Models of further roles: reward, judge, large, critic, outcome."),
        "reward": _ref("reward"),
        "policy": _ref("policy"),
        "tools": _tools(),
        "memory": {"anyOf": [{"type": "string"}, _object(Memory)]},
        "budget": _ref("budget"),
        "seed": plain["seed"] | {"type": "integer", "description": "Same seed, same search."},
        "concurrency": {"type": "integer", "minimum": 1, "description": "Requests in flight at most."},
        "solvers": _named("solver", "Named sub-recipes: who solves."),
        "strategy": _ref("strategy"),
        "pipeline": {
            "type": "array",
            "minItems": 1,
            "items": _ref("pipelineStep"),
            "description": "The steps in their order.",
        },
        "nodes": _named("step", "The steps by name; it starts with the first.") | {"minProperties": 1},
        "edges": {
            "type": "array",
            "items": _ref("edge"),
            "description": "Of a node's, the first that holds.",
        },
    }


def _definitions() -> Schema:
    return {
        "model": _part("model", _engines()),
        "reward": _part("reward", _rewards()),
        "policy": _policy(),
        "strategy": _part("strategy", _strategies()),
        "budget": {"anyOf": [{"type": "string"}, _budget()]},
        "solver": _solver(),
        "solving": {"anyOf": [{"type": "string", "description": "One of the solvers."}, _ref("solver")]},
        "step": _step(pipeline=False),
        "pipelineStep": _step(pipeline=True),
        "edge": _edge(),
    }


# ---------------------------------------------------------------- parts


def _part(key: str, kinds: Mapping[str, Schema]) -> Schema:
    """A part: its name, or a mapping that says it under the key's word, with the parameters of its kind."""
    word, known = WORDS[key], _known(kinds)
    mapping: Schema = {"type": "object", "required": [word], "properties": {word: known}}
    if each := [_if(word, kind, {word: {}, **params}) for kind, params in kinds.items() if params]:
        mapping["allOf"] = each
    return {"anyOf": [known, mapping]}


def _policy() -> Schema:
    """A preset, or a mapping that changes it: all have the same parameters but those around another."""
    from ...strategies.policy import POLICIES, StepPolicy

    known = _known([*POLICIES, "acting", "glimp_router"])
    free: Schema = {"preset": {}, "sampling": {"type": "object"}, "examples": {"type": "array"}}
    around = {"properties": {"preset": {"enum": ["acting", "glimp_router"]}}, "required": ["preset"]}
    steps = {"properties": _parameters(StepPolicy) | free, "additionalProperties": False}
    mapping = {"type": "object", "properties": {"preset": known}, "if": around, "else": steps}
    return {"anyOf": [known, mapping]}


def _known(names: Iterable[str]) -> Schema:
    """A name: these are offered, a third party's pass."""
    return {"anyOf": [{"enum": list(names)}, {"type": "string"}]}


def _solver() -> Schema:
    """A strategy with what it has of its own; its parameters may stand beside its name."""
    own = {"model": _ref("model"), "models": _named("model", ""), "policy": _ref("policy")}
    own |= {"reward": _ref("reward"), "strategy": _ref("strategy")}
    flat = [_if("strategy", kind, {**own, **params}) for kind, params in _strategies().items()]
    return {"type": "object", "required": ["strategy"], "properties": own, "allOf": flat}


def _if(word: str, kind: str, properties: Schema) -> Schema:
    return {
        "if": {"properties": {word: {"const": kind}}, "required": [word]},
        "then": {"properties": properties, "additionalProperties": False},
    }


def _strategies() -> dict[str, Schema]:
    from ...strategies import STRATEGIES, strategy

    return {name: _parameters(strategy(name)) | {"outcome": _ref("reward")} for name in STRATEGIES}


def _rewards() -> dict[str, Schema]:
    from ...strategies.rewards import REWARDS, reward_class

    return {name: _parameters(reward_class(name)) | {"model": _ref("model")} for name in REWARDS}


def _engines() -> dict[str, Schema]:
    from ...serving import ENGINES

    return {name: {} for name in ENGINES}  # their parameters are known once their libraries are imported


def _budget() -> Schema:
    from ..ledger import Budget

    numbers = {f.name: {"type": "number", "minimum": 0} for f in fields(Budget)}
    return {"type": "object", "properties": numbers, "additionalProperties": False}


def _parameters(kind: type) -> Schema:
    """The fields of a dataclass, each with its type and default as far as JSON can say them."""
    if not is_dataclass(kind):
        return {}
    hints, found = get_type_hints(kind), dict[str, Any]()
    for f in fields(kind):
        if not f.init or f.name in _HIDDEN or f.name.startswith("_"):
            continue
        try:
            told = TypeAdapter(hints[f.name]).json_schema()
        except (PydanticSchemaGenerationError, PydanticUserError):
            told = {}
        simple = f.default is None or isinstance(f.default, str | int | float)
        found[f.name] = told if "$defs" not in told else {}
        found[f.name] |= {"default": f.default} if simple else {}
    return found


# ---------------------------------------------------------------- steps and edges


def _step(*, pipeline: bool) -> Schema:
    """Any step: a bare name, or a mapping with the one key."""
    bare: Schema = {"enum": ["recall", "remember"]}
    return {"anyOf": [bare, *(_one(kind, body) for kind, body in _bodies(pipeline).items())]}


def _bodies(pipeline: bool) -> dict[str, Schema]:
    verify, branch, way = _object(Verify), _object(Branch), _object(Way)
    verify["properties"]["reward"] = _ref("reward")
    verify["properties"]["with"] = verify["properties"]["by"]
    verify["anyOf"] = [{"required": ["by"]}, {"required": ["with"]}]
    del verify["required"]
    if pipeline:
        verify["properties"]["retries"] = {"type": "integer", "minimum": 0, "maximum": 100}
        way["properties"]["solve"] = _ref("solving")
        way["required"] = ["solve"]
    branch["properties"]["solve"] = _ref("solving")
    branch["required"] = ["solve"]
    del branch["properties"]["solver"]
    route = _object(Route)
    route["properties"]["ways"] = {"type": "object", "minProperties": 2, "additionalProperties": way}
    return {
        "recall": _object(Recall),
        "route": route,
        "solve": _ref("solving"),
        "verify": {"anyOf": [verify["properties"]["by"], verify]},
        "revise": _ref("solving"),
        "ask": {"anyOf": [{"type": "string"}, _object(AskHuman)]},
        "remember": _object(Remember),
        "branch": branch,
        "call": {"type": "string", "description": Call.__doc__},
    }


def _one(kind: str, body: Schema) -> Schema:
    return {"type": "object", "required": [kind], "properties": {kind: body}, "additionalProperties": False}


def _edge() -> Schema:
    properties: Schema = {"from": {"type": "string"}, "to": {"type": "string"}, "when": _object(When)}
    properties["at_most"] = {"type": "integer", "minimum": 1, "maximum": 100}
    written: Schema = {"type": "object", "required": ["from", "to"], "properties": properties}
    written["additionalProperties"] = False
    return {"anyOf": [{"type": "string", "pattern": "^[^>]+->[^>]+$"}, written]}


def _object(of: type[BaseModel]) -> Schema:
    """A class of ours with everything it refers to written out, and without pydantic's titles."""
    told = of.model_json_schema()
    plain: Schema = _plain(told, told.get("$defs", {}))
    return plain


def _plain(told: Any, definitions: Schema) -> Any:
    if isinstance(told, list):
        return [_plain(part, definitions) for part in told]
    if not isinstance(told, dict):
        return told
    if "$ref" in told:
        return _plain(definitions[told["$ref"].rpartition("/")[2]], definitions)
    named = told.get("properties")  # a key called title is one of ours
    found = {key: _plain(part, definitions) for key, part in told.items() if key not in ("title", "$defs")}
    return found | ({"properties": {k: _plain(v, definitions) for k, v in named.items()}} if named else {})


def _named(part: str, told: str) -> Schema:
    words = {"description": told} if told else {}
    return {"type": "object", "additionalProperties": _ref(part), **words}


def _tools() -> Schema:
    from ...tools import TOOLS

    settings = {"type": "object", "required": ["name"], "properties": {"name": _known(TOOLS)}}
    told = "What searches and steps may call, e.g. [calculator, python]."
    return {"type": "array", "items": {"anyOf": [_known(TOOLS), settings]}, "description": told}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}
