"""`abduce solve`: one problem, watched on the screen."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ...serving import redact
from ...serving.errors import UsageError
from ...strategies.base import Result, Task
from ..codec import dumps
from ..ledger import Budget
from ..live import watch
from ..retention import Keep, prune
from ..runs import Runs
from ..search_view import clean, printable
from ..services import Human
from ..solve import Pipeline
from ..trace import Event, Observer, RunStarted
from .human import at_terminal
from .options import parse_checks, recipe_of
from .spans import spans

if TYPE_CHECKING:
    from ..workflow import Workflow


def run(chosen: argparse.Namespace) -> int:
    """Solve one question."""
    question = sys.stdin.read().strip() if chosen.question == "-" else chosen.question.strip()
    if not question:
        raise UsageError('The question is empty. Write it in quotes: abduce solve "7 x 8 ="')
    recipe = recipe_of(chosen)
    task = Task(question, checks=parse_checks(chosen.check))
    if recipe.reward is not None and recipe.reward.name == "checks" and not task.checks:
        raise UsageError("The reward 'checks' has nothing to check. Add e.g. --check numeric=56.")
    pipeline, kept, keep = recipe.pipeline(), store(), limits()
    fetch_models(pipeline)

    def search(observers: Iterable[Observer], human: Human) -> Result:
        return pipeline.solve(task, observers=observers, human=human, store=kept)

    code = watched(search, pipeline.budget, chosen)
    if keep is not None and (deleted := prune(kept, keep)):
        print(f"abduce: deleted {len(deleted)} older runs, as ABDUCE_KEEP says", file=sys.stderr)
    return code


def fetch_models(pipeline: "Pipeline | Workflow") -> None:
    """Have the weights on this machine before the run's clock starts, with a progress bar."""
    from ...serving.weights import progress_bar, resolve

    services = [pipeline.services]
    if not isinstance(pipeline, Pipeline):
        services += [node.services for node in pipeline.nodes.values()]
    for engine in {id(engine): engine for each in services for engine in each.engines.values()}.values():
        if engine.name == "embedded":
            with progress_bar("Fetching the model") as bar:
                resolve(getattr(engine, "model", None), progress=bar)


def store() -> Runs:
    """Where runs are kept."""
    from ...serving import settings

    return Runs(settings.store() or settings.home() / "runs")


def limits() -> Keep | None:
    """How much the user wants to be kept; None for everything."""
    from ...serving import settings

    if (words := settings.keep()) is None:
        return None
    try:
        return Keep.parse(words)
    except UsageError as error:
        raise UsageError(f"ABDUCE_KEEP: {error}") from None


class _Named:
    """An observer that remembers the run's name, for what is said after Ctrl-C."""

    name = ""

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.name = event.run


def watched(
    search: Callable[[Iterable[Observer], Human], Result], budget: Budget, chosen: argparse.Namespace
) -> int:
    """Search before the eyes of the user, and say what came of it."""
    named = _Named()
    try:
        with ExitStack() as screen:
            observers: list[Observer] = [named]
            if (telemetry := screen.enter_context(spans(chosen))) is not None:
                observers.append(telemetry)
            if not (chosen.no_trace or chosen.json):
                observers.append(screen.enter_context(watch(budget)))
            result = search(observers, at_terminal(observers))
    except KeyboardInterrupt:
        again = f" Go on with: abduce resume {named.name}" if named.name else ""
        print(f"\nabduce: stopped.{again}", file=sys.stderr)
        return 130
    return _report(result, named.name, chosen)


def _report(result: Result, name: str, chosen: argparse.Namespace) -> int:
    """The answer on standard output, everything about it on standard error."""
    failures = result.diagnostics.get("failures") or ()
    if chosen.json:
        print(
            json.dumps({"run": name, **json.loads(redact.line(dumps(result)))}, ensure_ascii=False, indent=2)
        )
    elif result.answer is not None:
        print(clean(str(result.answer)))
    elif result.text:
        print(printable(result.text))
    if not result.complete:
        stopped = clean(str(result.diagnostics.get("stopped", "ended early")))
        print(
            f"abduce: incomplete: {stopped}{'' if stopped.endswith(('.', '?', '!')) else '.'}",
            file=sys.stderr,
        )
    if result.answer is None and (unread := result.diagnostics.get("unanswered")):
        print(f"abduce: no answer: {clean(str(unread))}.", file=sys.stderr)
    for failure in failures:
        print(f"abduce: some calls failed: {clean(str(failure))}", file=sys.stderr)
    if str(result.diagnostics.get("stopped", "")).startswith("waits for") and name:
        print(f"abduce: answer it with: abduce resume {name}", file=sys.stderr)
    elif name and not chosen.json:
        print(f"abduce: look again with: abduce trace show {name}", file=sys.stderr)
    solved = result.answer is not None and (result.complete or not failures)
    return 0 if solved else 1
