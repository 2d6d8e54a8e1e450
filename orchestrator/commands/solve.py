"""`abduce solve` and `abduce resume`."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from ...serving.errors import UsageError
from ...serving.flow import Message, ToolCall, ToolSpec
from ...strategies.base import Check, Result, Task
from ..codec import dumps
from ..ledger import Budget
from ..live import watch
from ..runs import Runs
from ..search_view import clean, printable
from ..solve import Pipeline, build, objects
from ..trace import Event, Observer, RunStarted
from .options import parse_checks, recipe_of


def run(chosen: argparse.Namespace) -> int:
    """Solve one question."""
    question = sys.stdin.read().strip() if chosen.question == "-" else chosen.question.strip()
    if not question:
        raise UsageError('The question is empty. Write it in quotes: abduce solve "7 x 8 ="')
    recipe = recipe_of(chosen)
    task = Task(question, checks=parse_checks(chosen.check))
    if recipe.reward is not None and recipe.reward.name == "checks" and not task.checks:
        raise UsageError("The reward 'checks' has nothing to check. Add e.g. --check numeric=56.")
    pipeline = recipe.pipeline()
    fetch_models(pipeline)

    def search(observers: Iterable[Observer]) -> Result:
        return pipeline.solve(task, observers=observers, store=store())

    return _watched(search, pipeline.budget, chosen)


def resume(chosen: argparse.Namespace) -> int:
    """Go on with a run: completed calls are replayed, not repeated."""
    run = store().open(chosen.run)
    record = run.record
    options = {key: record[key] for key in _OPTIONS if key in record}
    params = record.get("params", {})
    _written_down(run.id, options | {"params": params})
    try:
        task, seed = _task(record["task"]), record["seed"]
    except (KeyError, TypeError):
        raise UsageError(f"Run {run.id} is damaged: its run.json tells no task. Start it again.") from None
    pipeline = build(**options, **params)
    fetch_models(pipeline)

    def search(observers: Iterable[Observer]) -> Result:
        return pipeline.solve(task, seed=seed, observers=observers, run=run)

    return _watched(search, pipeline.budget, chosen)


def _written_down(name: str, options: Mapping[str, Any]) -> None:
    """Refuse a run whose parts were Python objects: run.json tells only what they were."""
    for key, value in objects(options):
        raise UsageError(
            f"Run {name} was started from Python with {key}={value}, which is not written down. Go on "
            f'with it there: pipeline.solve(task, seed=…, run=abduce.Runs(…).open("{name}")).'
        )


def _task(row: Mapping[str, Any]) -> Task:
    if row.get("constraint") is not None:
        raise UsageError(
            "The run's task demands a form of its answer, which is not written down. Start it again."
        )
    parts = {key: tuple(row[key]) for key in ("choices", "tools")}
    parts["stop"] = tuple(row.get("stop", ()))
    parts["checks"] = tuple(Check(**check) for check in row["checks"])
    parts["offers"] = tuple(ToolSpec(**spec) for spec in row.get("offers", ()))
    parts["messages"] = tuple(map(_message, row.get("messages", ())))
    return Task(**{**row, **parts})


def _message(row: Mapping[str, Any]) -> Message:
    return Message(**{**row, "tool_calls": tuple(ToolCall(**call) for call in row["tool_calls"])})


_OPTIONS = ("strategy", "model", "models", "policy", "reward", "tools", "budget", "concurrency")


def fetch_models(pipeline: Pipeline) -> None:
    """Have the weights on this machine before the run's clock starts, with a progress bar."""
    from ...serving.weights import progress_bar, resolve

    for engine in pipeline.services.engines.values():
        if engine.name == "embedded":
            with progress_bar("Fetching the model") as bar:
                resolve(getattr(engine, "model", None), progress=bar)


def store() -> Runs:
    """Where runs are kept."""
    from ...serving.settings import home

    return Runs(home() / "runs")


class _Named:
    """An observer that remembers the run's name, for what is said after Ctrl-C."""

    name = ""

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.name = event.run


def _watched(
    search: Callable[[Iterable[Observer]], Result], budget: Budget, chosen: argparse.Namespace
) -> int:
    named = _Named()
    try:
        with ExitStack() as screen:
            observers: list[Observer] = [named]
            if not (chosen.no_trace or chosen.json):
                observers.append(screen.enter_context(watch(budget)))
            result = search(observers)
    except KeyboardInterrupt:
        again = f" Go on with: abduce resume {named.name}" if named.name else ""
        print(f"\nabduce: stopped.{again}", file=sys.stderr)
        return 130
    return _report(result, named.name, chosen)


def _report(result: Result, name: str, chosen: argparse.Namespace) -> int:
    """The answer on standard output, everything about it on standard error."""
    failures = result.diagnostics.get("failures") or ()
    if chosen.json:
        print(json.dumps({"run": name, **json.loads(dumps(result))}, ensure_ascii=False, indent=2))
    elif result.answer is not None:
        print(clean(str(result.answer)))
    elif result.text:
        print(printable(result.text))
    if not result.complete:
        stopped = clean(str(result.diagnostics.get("stopped", "ended early")))
        print(f"abduce: incomplete: {stopped}.", file=sys.stderr)
    for failure in failures:
        print(f"abduce: some calls failed: {clean(str(failure))}", file=sys.stderr)
    if name and not chosen.json:
        print(f"abduce: look again with: abduce trace show {name}", file=sys.stderr)
    solved = result.answer is not None and (result.complete or not failures)
    return 0 if solved else 1
