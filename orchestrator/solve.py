"""`solve` and `asolve`: one question, one strategy, one result.

build(strategy="particle_filter", model="embedded", reward="self_eval") ─► Pipeline
Pipeline.asolve(task)  ─► Session.drive(strategy.solve(task)) ─► Result       (the other doors: doors.py)
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from ..memory.base import Store
from ..serving import ENGINES, engine
from ..serving.base import Engine
from ..serving.errors import MissingCapability, UnknownName, UsageError
from ..strategies import strategy as strategy_class
from ..strategies.base import Policy, Result, Reward, Strategy, Task, requirements
from .background import wait_for
from .doors import Doors
from .ledger import Budget
from .nodes.solve import solved
from .runs import Runs
from .services import Human, Services
from .session import Session
from .trace import Observer

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

    from .recipe.parts import Checked


@dataclass(frozen=True)
class Pipeline(Doors):
    """A strategy with everything it needs, ready to solve tasks."""

    strategy: Strategy
    services: Services
    budget: Budget = field(default_factory=Budget)
    concurrency: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # what it was built from, as JSON
    seed: int = 0  # of a search that is given none

    def __post_init__(self) -> None:
        at_once = self.concurrency
        if at_once is not None and (not isinstance(at_once, int) or at_once < 1):
            raise UsageError(f"concurrency must be at least 1, got {at_once!r}. Leave it out for no limit.")
        for role, needed in requirements(self.strategy).items():
            served = self.services.engine(role)
            if missing := needed - served.capabilities:
                able = ", ".join(name for name, gives in ENGINES.items() if needed <= gives.capabilities)
                instead = f"Give the role an engine of its own, as models: {{{role}: …}}"
                if role == "policy":
                    instead = "Take another model"
                elif role == "reward":
                    instead += ", or take another reward: judge asks for text only"
                raise MissingCapability(
                    f"The engine {served.name!r} (role {role!r}) cannot give {' or '.join(sorted(missing))}, "
                    f"which {type(self.strategy).__name__} needs here. {instead}. "
                    f"Engines that can: {able or 'none'}."
                )

    def compile(
        self, *, store: Runs | None = None, checkpointer: Any = None
    ) -> "CompiledStateGraph[Any, Any, Any, Any]":
        """A LangGraph graph whose only node is this search."""
        from .workflow import as_workflow

        return as_workflow(self).compile(store=store, checkpointer=checkpointer)

    async def _run(self, session: Session, task: Task, seed: int, human: Human | None) -> Result:
        services = replace(self.services, human=human)
        result = await session.drive(solved(self.strategy, task, seed=seed), services, seed=seed)
        return replace(result, usage=session.ledger.usage)


def build(
    *,
    strategy: str | Strategy = "best_of_n",
    model: str | Engine | Mapping[str, Any] = "embedded",
    models: Mapping[str, str | Engine | Mapping[str, Any]] | None = None,
    policy: str | Policy | Mapping[str, Any] | None = None,
    reward: str | Reward | Mapping[str, Any] | None = None,
    tools: Iterable[str] = (),
    memory: str | Store | None = None,
    budget: str | Budget | Mapping[str, Any] | None = None,
    concurrency: int | None = None,
    **params: Any,
) -> Pipeline:
    """A pipeline from names or objects; `params` are the strategy's own parameters.

    `models` gives further roles their engines: "reward" for a model that scores, "critic" for one that
    gives feedback; `model` plays those that have none. A reward's own `model`, as in
    `{"kind": "judge", "model": "embedded"}`, is short for that. The policy is "cot", the reward "self_eval"
    where none is given. `memory`, for a strategy that recalls and remembers, is a store or what a recipe
    calls one, such as "concepts.db". Raises UsageError for anything that does not exist or does not fit,
    MissingCapability if an engine cannot do what is asked of it.
    """
    from ..tools import toolbox

    if models is not None and not isinstance(models, Mapping):
        raise UsageError(f"models is a mapping of roles to engines, got {models!r:.200}.")
    if isinstance(tools, str) or not isinstance(tools, Iterable):
        raise UsageError(f"tools is a list of names such as ['calculator'], got {tools!r:.200}.")
    tools, roles = list(tools), dict(models or {})
    if isinstance(strategy, str):
        policy = "cot" if policy is None else policy
        made = _strategy(strategy, policy, reward, params, roles)
    elif not hasattr(strategy, "solve"):
        if params:
            raise UsageError(_INTO_THE_OBJECT.format(", ".join(params)))
        raise UsageError(
            f"A strategy is a name or an object with solve(task, seed=…), got {strategy!r:.200}."
        )
    else:
        given = {**params, "policy": policy, "reward": reward}
        if beside := [key for key, value in given.items() if value is not None]:
            raise UsageError(_INTO_THE_OBJECT.format(", ".join(beside)))
        made = strategy
    asked = {"policy", *requirements(made)}
    for role in roles:
        if role not in asked:
            raise UnknownName("role of a model", role, asked)
    words: dict[str, Any] = {"strategy": strategy, "model": model, "models": models, "policy": policy}
    words |= {"reward": reward, "tools": tools, "memory": memory, "budget": budget}
    words["concurrency"] = concurrency
    words["params"] = params
    engines = {role: _engine(spec) for role, spec in {"policy": model, **roles}.items()}
    services = Services(engines, tools=toolbox(tools), memory=_memory(memory, strategy))
    return Pipeline(made, services, _budget(budget), concurrency, _settings(words))


def roles(
    *,
    strategy: str,
    policy: str | Policy | Mapping[str, Any] = "cot",
    reward: str | Reward | Mapping[str, Any] | None = None,
    models: Mapping[str, Any] | None = None,
    **options: Any,
) -> set[str]:
    """The roles of engines that a pipeline built with these options asks."""
    params = {key: value for key, value in options.items() if key not in _OPTIONS}
    return {"policy", *requirements(_strategy(strategy, policy, reward, params, dict(models or {})))}


_INTO_THE_OBJECT = "{}: parameters go into the strategy object, since one was given."


def _strategy(
    name: str,
    policy: str | Policy | Mapping[str, Any],
    reward: str | Reward | Mapping[str, Any] | None,
    params: Mapping[str, Any],
    roles: dict[str, Any],
) -> Strategy:
    """The strategy of that name with its parts. What they say of engines is added to `roles`."""
    from .recipe.parts import check_strategy

    kind = strategy_class(name)
    known = {f.name for f in fields(kind)}
    own = known - {"policy", "reward"}
    for key in params:
        if key not in own and key in _OF_A_POLICY:
            raise UsageError(f"{key} belongs to the policy. Write policy={_OF_A_POLICY[key]}.")
        if key not in own:
            raise UnknownName(f"parameter of {name}", key, own | _OPTIONS)
    checked = _sound("", check_strategy(name, params))
    parts: dict[str, Any] = {"policy": _policy(policy, roles)}
    if "reward" in known:
        parts["reward"] = _reward("reward", "self_eval" if reward is None else reward, parts["policy"], roles)
    elif reward is not None:
        raise UsageError(f"The strategy {name!r} uses no reward. Leave reward out.")
    if (outcome := checked.get("outcome")) is not None:
        parts["outcome"] = _reward("outcome", outcome, parts["policy"], roles)
    made: Strategy = kind(**{**checked, **parts})
    return made


_OF_A_POLICY = {
    key: f"{{'preset': 'cot', 'sampling': {{'{key}': …}}}}"
    for key in ("temperature", "top_p", "top_k", "min_p", "max_tokens")
} | {key: f"{{'preset': 'cot', '{key}': …}}" for key in ("system", "prompt", "stop")}


def _policy(spec: str | Policy | Mapping[str, Any], roles: dict[str, Any]) -> Policy:
    """The policy. `large` of a router is the engine of that role."""
    from ..strategies.policy import policy
    from .recipe.parts import check_policy

    if isinstance(spec, Policy):
        return spec
    if isinstance(spec, str):
        return policy(spec)
    if not isinstance(spec, Mapping):
        raise UsageError(f"A policy is a name, a mapping or a Policy, got {spec!r:.200}.")
    params = dict(spec)
    name = params.pop("preset", "cot")
    checked = _sound("policy", check_policy(name, params))
    if (large := checked.pop("large", None)) is not None:
        if "large" in roles:
            raise UsageError("The engine of 'large' is given twice: in models, and as large of the policy.")
        roles["large"] = large
    return policy({"preset": name, **checked})


def _reward(
    part: str, spec: str | Reward | Mapping[str, Any], policy: Policy, roles: dict[str, Any]
) -> Reward:
    """The reward, or the outcome reward. Its `model`, unless it is the name of a role, is the engine of a
    role named like the part."""
    from ..strategies.rewards import reward
    from .recipe.parts import check_reward

    if isinstance(spec, Reward):
        return spec
    if isinstance(spec, str):
        spec = {"kind": spec}
    if not isinstance(spec, Mapping):
        raise UsageError(f"{part} is a name, a mapping or an object with score(states), got {spec!r:.200}.")
    if "kind" not in spec:
        raise UsageError(f"A reward is a name or {{kind: name, …}}; 'kind' is missing in {dict(spec)!r}.")
    params = {key: value for key, value in spec.items() if key != "kind"}
    checked = _sound(part, check_reward(spec["kind"], params))
    model = checked.get("model")
    if model is not None and not (isinstance(model, str) and model in {"policy", "reward", *roles}):
        if part in roles:
            raise UsageError(f"The engine of {part!r} is given twice: in models, and as model of the {part}.")
        roles[part] = model
        checked["model"] = part
    return reward({"kind": spec["kind"], **checked}, policy=policy)


def _sound(part: str, checked: "Checked") -> dict[str, Any]:
    """The parameters, if nothing is wrong with them."""
    if checked.faults:
        paths = [[part, *(str(key) for key in fault.path if key != "name")] for fault in checked.faults]
        told = zip(paths, checked.faults, strict=True)
        raise UsageError(
            "\n".join(f"{'.'.join(filter(None, path))}: {fault.message}" for path, fault in told)
        )
    return checked.params


_OPTIONS = {
    name for name, option in signature(build).parameters.items() if option.kind is Parameter.KEYWORD_ONLY
}


async def asolve(
    question: str | Task,
    *,
    seed: int = 0,
    observers: Iterable[Observer] = (),
    store: Runs | None = None,
    **options: Any,
) -> Result:
    """Solve a question; `options` are those of `build`. Returns the best result found, always.

    A run that was ended early has `complete=False` and says in `diagnostics["stopped"]` by what.
    """
    return await build(**options).asolve(question, seed=seed, observers=observers, store=store)


def solve(question: str | Task, **options: Any) -> Result:
    """`asolve`, synchronously; also inside a running event loop, such as a notebook's.

    solve("7 x 8 =", strategy="best_of_n", n=4, model="embedded", policy="cot", reward="self_eval",
          tools=["calculator"], budget="8k tokens, 60 s", seed=0, store=abduce.Runs("runs"))

    What may stand there: `help(abduce.build)`, and `abduce strategies` for names; a strategy's parameters
    are the fields of its class.
    """
    return wait_for(asolve(question, **options))


_engines: dict[tuple[int, str], Engine] = {}
_KEPT = ("embedded", "litellm")


def _engine(spec: str | Engine | Mapping[str, Any]) -> Engine:
    """The engine of a spec. Those that load a model, or keep a provider's rate limits, are kept, one for each
    spec in a process; the others are cheap, and may be used up."""
    if isinstance(spec, Engine):
        return spec
    if not isinstance(spec, (str, Mapping)):
        raise UsageError(f"A model is a name, a mapping with its engine or an Engine, got {spec!r:.200}.")
    name = spec.partition(":")[0] if isinstance(spec, str) else spec.get("engine")
    key = os.getpid(), repr(spec)
    if key in _engines:
        return _engines[key]
    try:
        made = engine(spec)
    except (TypeError, ValueError) as error:  # of its constructor
        raise UsageError(f"The engine {name!r} cannot be made: {error}.") from None
    if name in _KEPT:
        _engines[key] = made
    return made


def _budget(words: str | Budget | Mapping[str, Any] | None) -> Budget:
    from .recipe.parts import check_budget

    if words is None or isinstance(words, Budget):
        return words or Budget()
    if isinstance(words, str):
        return Budget.parse(words)
    if not isinstance(words, Mapping):
        raise UsageError(
            f"A budget is a text such as '8k tokens, 60 s', a mapping or a Budget, got {words!r:.200}."
        )
    known = [f.name for f in fields(Budget)]
    for key in words:
        if key not in known:
            raise UnknownName("budget", key, known)
    return Budget(**_sound("budget", check_budget(words)))


def _memory(spec: str | Store | None, strategy: str | Strategy) -> Store | None:
    """The store, opened by its name. A strategy object is believed to ask it; of a named one it is known."""
    if spec is None:
        return None
    if isinstance(strategy, str) and not getattr(strategy_class(strategy), "remembers", False):
        raise UsageError(
            f"The strategy {strategy!r} asks no memory. Leave memory out, or write a recipe with the steps "
            "recall and remember around it."
        )
    if isinstance(spec, str):
        from ..memory.registry import open_store

        return open_store(spec)
    if not (hasattr(spec, "search") and hasattr(spec, "write")):
        raise UsageError(f"A memory is a name such as 'concepts.db' or a store, got {spec!r:.200}.")
    return spec


def _settings(words: Mapping[str, Any]) -> dict[str, Any]:
    """What can be written down of a pipeline's parts; objects appear by their type."""
    return {key: _named(value) for key, value in words.items() if value not in (None, [], {})}


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _named(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_named(part) for part in value]
    plain = value is None or isinstance(value, (str, int, float, Budget))
    return value if plain else f"<{type(value).__name__} object>"


def objects(settings: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Where settings hold what was an object, which cannot be made again, and of which type."""
    if isinstance(settings, Mapping):
        for key, part in settings.items():
            yield from objects(part, f"{path}.{key}" if path else str(key))
    elif isinstance(settings, (list, tuple)):
        for i, part in enumerate(settings):
            yield from objects(part, f"{path}.{i}")
    elif isinstance(settings, str) and re.fullmatch(r"<\w+ object>", settings):
        yield path, settings
