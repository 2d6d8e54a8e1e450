"""Parameters checked against the dataclass they are for: a strategy's, a reward's, a policy's, the budget's.

The class is the only list of what may be written: a new field of a strategy is a new recipe key.
"""

import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from ...serving.errors import UnknownName, UsageError


class Fault(NamedTuple):
    """A mistake, and where it is below the part."""

    path: tuple[str | int, ...]
    message: str


class Checked(NamedTuple):
    """Parameters as the class wants them (lists made tuples, integers made floats), and the mistakes."""

    params: dict[str, Any]
    faults: tuple[Fault, ...]


def check_fields(
    kind: type,
    params: Mapping[str, Any],
    *,
    what: str,
    given: Iterable[str] = (),
    converted: Iterable[str] = (),
) -> Checked:
    """`params` against the fields of `kind`: not those that are `given` by others, and without judging
    those `converted` by others."""
    if not is_dataclass(kind):
        return Checked(dict(params), ())
    hidden = set(given)
    known = {
        f.name: f for f in fields(kind) if f.init and f.name not in hidden and not f.name.startswith("_")
    }
    hints = _hints(kind)
    checked: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, value in params.items():
        if key not in known:
            faults.append(Fault((key,), near(f"{key!r} is not a parameter of {what}", key, known)))
            continue
        if key not in converted and isinstance(value, Mapping):
            below = _below(hints.get(key), value, key)
            faults += [Fault((key, *fault.path), fault.message) for fault in below]
            if below:
                continue
        try:
            checked[key] = _converted(Any if key in converted else hints.get(key, Any), value)
        except ValidationError as error:
            faults.append(Fault((key,), f"{_expectation(error)}, got {value!r}."))
    return Checked(checked, tuple(faults))


def _below(hint: Any, value: Mapping[str, Any], what: str) -> tuple[Fault, ...]:
    """What is wrong with a mapping that is to become a dataclass, which pydantic would read leniently."""
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if is_dataclass(kind)]
    if len(kinds) != 1:
        return ()
    return check_fields(typing.cast(type, kinds[0]), value, what=what).faults


def near(problem: str, key: object, known: Iterable[str]) -> str:
    """`problem`, the nearest spelling, and everything allowed, as one sentence line."""
    names = sorted(set(known))
    close = get_close_matches(str(key).strip().casefold(), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if key in _DRAWN and "tokens" not in names:  # a budget has them
        hint = f" It stands under the policy: policy.sampling.{key}, as in {{sampling: {{{key}: …}}}}."
    return f"{problem}.{hint} Allowed: {', '.join(names) or 'none'}."


_DRAWN = ("temperature", "top_p", "top_k", "min_p", "max_tokens")


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError:  # a type imported for the type checker only
        return {}


def _converted(hint: Any, value: Any) -> Any:
    """`value` as `hint` wants it. Text is never read as a number, nor a boolean as one."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    try:
        config = None if is_dataclass(hint) else ConfigDict(arbitrary_types_allowed=True)
        adapter = TypeAdapter(hint, config=config)
    except (PydanticSchemaGenerationError, PydanticUserError):
        return value  # a type of our own that only the constructor can judge
    found = adapter.validate_python(value)
    if isinstance(value, (str, bool)) and type(found) is not type(value):
        adapter.validate_python(value, strict=True)
    return found


def _expectation(error: ValidationError) -> str:
    """The first complaint in words; of a union, all that would do."""
    told = []
    for each in error.errors():
        words = re.sub(r"^(Input should|Value error,)", "must", each["msg"]).partition(", unable")[0]
        words = (
            words.replace("must be a valid", "must be a")
            .replace("a integer", "an integer")
            .replace("a tuple", "a list")
        )
        if words not in told:
            told.append(words)
    return " or ".join([told[0], *(words.removeprefix("must be ") for words in told[1:])])


# ---------------------------------------------------------------- the parts of a recipe


def check_strategy(name: str, params: Mapping[str, Any]) -> Checked:
    """A strategy and its parameters; policy and reward are parts of the recipe, not parameters. `outcome`,
    a second reward, is one, by name."""
    from ...strategies import strategy
    from ...strategies.base import Reward

    checked = _part(strategy, name, params, given=("policy", "reward"), converted=("outcome",))
    outcome = checked.params.get("outcome")
    if outcome is None or isinstance(outcome, Reward):
        return checked
    spec = {"kind": outcome} if isinstance(outcome, str) else outcome
    if not isinstance(spec, Mapping) or "kind" not in spec:
        wrong = Fault(("outcome",), f"must be a reward's name or {{kind: name, …}}, got {outcome!r}.")
        return Checked(checked.params, (*checked.faults, wrong))
    spec = dict(spec)
    kind = spec.pop("kind")
    below = check_reward(kind, spec)
    faults = (Fault(("outcome", *fault.path), fault.message) for fault in below.faults)
    return Checked(checked.params | {"outcome": {"kind": kind, **below.params}}, (*checked.faults, *faults))


def check_reward(name: str, params: Mapping[str, Any]) -> Checked:
    """A reward and its parameters. `model` is the engine that plays the role "reward"."""
    from ...strategies.rewards import reward_class

    # A reward without a model of its own refuses one.
    own = {key: value for key, value in params.items() if key != "model" or not _asks_a_model(name)}
    checked = _part(reward_class, name, own, given=("policy", "model"))
    return Checked({**params, **checked.params}, checked.faults)


def check_policy(name: str, params: Mapping[str, Any]) -> Checked:
    """A policy preset and what it changes. A router's `large` is the engine that plays this role."""
    from ...serving.flow import Sampling
    from ...strategies.policy import POLICIES, StepPolicy, policy

    if name == "glimp_router":
        return _check_router(params)
    if name == "acting":
        return _check_acting(params)
    if not isinstance(name, str) or name not in POLICIES:
        return Checked(
            dict(params),
            (Fault(("name",), str(UnknownName("policy", name, [*POLICIES, "acting", "glimp_router"]))),),
        )
    # These have forms of their own, which `policy` reads.
    checked = check_fields(StepPolicy, params, what="a policy", converted=("sampling", "examples", "stop"))
    faults = list(checked.faults)
    sampling = checked.params.get("sampling", {})
    if isinstance(sampling, Mapping):
        below = check_fields(Sampling, sampling, what="sampling", given=("stop",))
        faults += [Fault(("sampling", *fault.path), fault.message) for fault in below.faults]
    elif not isinstance(sampling, Sampling):
        faults.append(
            Fault(("sampling",), f"must be a mapping such as {{temperature: 0.7}}, got {sampling!r}.")
        )
    if not faults:
        faults += _refusals(lambda **all_of: policy({"preset": name, **all_of}), checked.params)
    return Checked(checked.params, tuple(faults))


def _check_router(params: Mapping[str, Any]) -> Checked:
    from ...strategies.glimp_router import GlimpRouter, glimp_router

    own = {key: value for key, value in params.items() if key != "large"}
    checked = check_fields(GlimpRouter, own, what="glimp_router", converted=("policy",))
    faults = [*checked.faults, *_faults_inside(own)]
    if "large" in params:
        faults += [Fault(("large", *fault.path), fault.message) for fault in check_model(params["large"])]
    if not faults:
        faults += _refusals(lambda **all_of: glimp_router(all_of), checked.params)
    return Checked({**params, **checked.params}, tuple(faults))


def _check_acting(params: Mapping[str, Any]) -> Checked:
    from ...strategies.acting import Acting, acting

    checked = check_fields(Acting, params, what="acting", converted=("policy",))
    faults = [*checked.faults, *_faults_inside(params)]
    if not faults:
        faults += _refusals(lambda **all_of: acting(all_of), checked.params)
    return Checked({**params, **checked.params}, tuple(faults))


def _faults_inside(params: Mapping[str, Any]) -> Iterator[Fault]:
    """What is wrong with the policy that another is around."""
    spec = params.get("policy", "cot")
    inner = {"preset": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    below = check_policy(inner.pop("preset", "cot"), inner)
    yield from (Fault(("policy", *fault.path), fault.message) for fault in below.faults)


def check_model(spec: str | Mapping[str, Any]) -> Iterator[Fault]:
    """An engine; made, to be judged by itself, but not started."""
    from ...serving import engine

    yield from _refusals(engine, {"spec": spec})


def check_tools(specs: Iterable[str | Mapping[str, Any]]) -> Iterator[Fault]:
    """Tools by name, with their settings; none is made, since that may start a server."""
    from ...tools import part

    for i, spec in enumerate(specs):
        settings = (
            {} if isinstance(spec, str) else {key: spec[key] for key in spec if key not in ("name", "as")}
        )
        name = spec if isinstance(spec, str) else spec["name"]
        try:
            kind = part(name)
        except UsageError as error:
            yield Fault((i,), str(error))
            continue
        if isinstance(kind, type):
            checked = check_fields(kind, settings, what=f"the tool {name}", given=("name",))
            yield from (Fault((i, *fault.path), fault.message) for fault in checked.faults)
        elif settings:
            yield Fault((i, next(iter(settings))), f"the tool {name} has no settings.")


def check_budget(params: Mapping[str, Any]) -> Checked:
    """Limits, by resource."""
    from ..ledger import Budget

    checked = check_fields(Budget, params, what="the budget")
    if not checked.faults:
        return Checked(checked.params, tuple(_refusals(Budget, checked.params)))
    return checked


def _asks_a_model(name: str) -> bool:
    from ...strategies.rewards import reward_class

    with suppress(UnknownName):
        kind = reward_class(name)
        return not is_dataclass(kind) or any(f.name == "model" for f in fields(kind))
    return True


def _part(
    look_up: Callable[[str], type],
    name: str,
    params: Mapping[str, Any],
    given: Iterable[str] = (),
    converted: Iterable[str] = (),
) -> Checked:
    try:
        kind = look_up(name)
    except UnknownName as error:
        return Checked(dict(params), (Fault(("name",), str(error)),))
    checked = check_fields(kind, params, what=name, given=given, converted=converted)
    if checked.faults or not is_dataclass(kind):
        return checked
    parts = {f.name: _stand_in(f.name) for f in fields(kind) if f.init and f.name in ("policy", "reward")}
    faults = (_placed(fault, checked.params) for fault in _refusals(kind, parts | checked.params))
    return Checked(checked.params, tuple(faults))


def _stand_in(part: str) -> Any:
    """A policy or reward for a constructor that only looks at its other arguments."""
    from ...strategies.base import Policy
    from ...strategies.rewards.agreement import Agreement

    return Policy() if part == "policy" else Agreement(policy=Policy())


def _placed(fault: Fault, params: Mapping[str, Any]) -> Fault:
    """The fault at the one parameter it speaks of, if it is one."""
    named = [key for key in params if re.search(rf"\b{re.escape(key)}\b", fault.message)]
    return Fault((named[0],), fault.message) if len(named) == 1 else fault


def _refusals(kind: Callable[..., Any], params: Mapping[str, Any]) -> Iterator[Fault]:
    """What the constructor itself has against its arguments."""
    try:
        kind(**params)
    except UsageError as error:
        yield Fault((), str(error))
    except (TypeError, ValueError) as error:  # of a form that only the constructor could judge
        yield Fault((), f"{error}.")
