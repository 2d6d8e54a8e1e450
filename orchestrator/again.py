"""A run's record made into what it was made from: its task, its recipe, its pipeline.

So a run goes on, is forked with changes, or is shown, by what is written down of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from ..serving.errors import UsageError
from ..serving.flow import Message, ToolCall, ToolSpec
from ..strategies.base import Check, Task
from .solve import Pipeline, build, objects

if TYPE_CHECKING:
    from .recipe import Recipe
    from .workflow import Workflow

_WORDS = ("strategy", "model", "models", "policy", "reward", "tools", "memory", "budget", "concurrency")
"""Arguments of `solve.build` that a record without a recipe holds, beside the strategy's `params`."""


def again(record: Mapping[str, Any]) -> "Pipeline | Workflow":
    """The pipeline that carries the run out. Raises UsageError where it was made of Python objects, which
    are not written down."""
    _check_written_down(record)
    if "learn" in record:
        name = record.get("run")
        raise UsageError(f"Run {name} learns from problems. Go on with its abduce learn and: --resume {name}")
    if "recipe" in record:
        return _redrawn(recipe_of(record).pipeline(), record.get("redraw", 0))
    words = {key: record[key] for key in _WORDS if key in record}
    return build(**words, **record.get("params", {}))


def task_of(record: Mapping[str, Any]) -> tuple[Task, int]:
    """What was to be solved, and the seed."""
    try:
        return _task(record["task"]), int(record["seed"])
    except (KeyError, TypeError, ValueError):
        raise UsageError(
            f"Run {record.get('run')} is damaged: its run.json tells no task. Start it again."
        ) from None


def changed(record: Mapping[str, Any], changes: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run that differs in some settings of its recipe, such as `strategy.k=3`; or in what is
    sampled anew (`redraw=1`, `redraw=2` …), where it would otherwise go on as the run it came from did."""
    if "learn" in record:
        name = record.get("run")
        raise UsageError(f"Run {name} learns from problems, and has no forks. Start another: abduce learn.")
    if not changes:
        return {key: value for key, value in record.items() if key != "changes"}
    _check_written_down(record)
    if isinstance(changes, str):
        raise UsageError(f"Changes are a list of texts such as ['seed=5'], got {changes!r:.80}.")
    if isinstance(changes, Mapping):
        changes = [f"{key}={_text(value)}" for key, value in changes.items()]
    redraw = record.get("redraw", 0)
    for change in changes:
        if change.startswith("redraw="):
            redraw = _whole(change)
    of_recipe = [change for change in changes if not change.startswith("redraw=")]
    recipe = recipe_of(record, [f"seed={record.get('seed', 0)}", *of_recipe])
    kept = {key: value for key, value in record.items() if key not in (*_WORDS, "params")}
    new = {"recipe": recipe.data(), "seed": recipe.seed, "changes": list(changes)}
    return {**kept, **new, **({"redraw": redraw} if redraw else {})}


def recipe_of(record: Mapping[str, Any], changes: Sequence[str] = ()) -> "Recipe":
    """The recipe of a run, also of one that was started by words."""
    from .recipe import check
    from .recipe.model import scored
    from .strict_yaml import Document

    data = dict(record["recipe"]) if "recipe" in record else _in_words(record)
    whole = dict(change.split("=", 1) for change in changes if change.partition("=")[0] in _PARTS)
    rest = [change for change in changes if change.partition("=")[0] not in _PARTS]
    if "strategy" in whole and "reward" not in whole and not scored(whole["strategy"]):
        data.pop("reward", None)
    return check(Document(f"run {record.get('run')}", data), rest, whole)


_PARTS = ("strategy", "model", "policy", "reward")  # another name leaves nothing of the old one's parameters


def _in_words(record: Mapping[str, Any]) -> dict[str, Any]:
    """The words of `solve.build` as a recipe."""
    words = {key: record[key] for key in _WORDS if record.get(key) is not None}
    return {"name": "run", **words, "strategy": {"name": words["strategy"], **record.get("params", {})}}


def _redrawn(pipeline: "Pipeline | Workflow", redraw: int) -> "Pipeline | Workflow":
    if not redraw:
        return pipeline
    if isinstance(pipeline, Pipeline):
        return replace(pipeline, services=replace(pipeline.services, redraw=redraw))
    nodes: Any = {
        name: replace(node, services=replace(node.services, redraw=redraw))  # type: ignore[type-var]
        for name, node in pipeline.nodes.items()
    }
    return replace(pipeline, nodes=nodes)


def _whole(change: str) -> int:
    number = change.removeprefix("redraw=")
    if not number.isascii() or not number.isdigit():
        raise UsageError(f"{change}: write a whole number, such as redraw=1; another one draws otherwise.")
    return int(number)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _check_written_down(record: Mapping[str, Any]) -> None:
    """Refuse a run whose parts were Python objects: run.json tells only what they were."""
    for key, value in objects({key: record[key] for key in (*_WORDS, "params", "recipe") if key in record}):
        name = record.get("run")
        raise UsageError(
            f"Run {name} was started from Python with {key}={value}, which is not written down. Go on "
            f'with it there: pipeline.solve(task, seed=…, run=abduce.Runs(…).open("{name}")).'
        )


def _task(row: Mapping[str, Any]) -> Task:
    if row.get("constraint") is not None:
        raise UsageError(
            "The run's task demands a form of its answer, which is not written down. Start it again."
        )
    parts: dict[str, Any] = {"choices": tuple(row["choices"])}
    parts["tools"] = tuple(t if isinstance(t, str) else _spec(t) for t in row["tools"])
    parts["stop"] = tuple(row.get("stop", ()))
    parts["checks"] = tuple(Check(**check) for check in row["checks"])
    parts["offers"] = tuple(map(_spec, row.get("offers", ())))
    parts["messages"] = tuple(map(_message, row.get("messages", ())))
    return Task(**{**row, **parts})


def _spec(row: Mapping[str, Any]) -> ToolSpec:
    return ToolSpec(**{**row, "requires": tuple(row.get("requires", ()))})


def _message(row: Mapping[str, Any]) -> Message:
    return Message(**{**row, "tool_calls": tuple(ToolCall(**call) for call in row["tool_calls"])})
