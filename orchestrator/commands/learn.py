"""`abduce learn`: problems in their order, with a memory that grows from batch to batch."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from ...serving.errors import UsageError
from ...strategies.arcmemo import Learned, read, scoring
from ...strategies.arcmemo.puzzle import Labels
from ...strategies.base import Task
from ...strategies.rewards.checks import validate
from ..background import wait_for
from ..evaluate import read_problems
from ..learning import learn
from ..trace import Event, Noted, RunStarted
from .options import recipe_of
from .show import show
from .solve import fetch_models, store


def run(chosen: argparse.Namespace) -> int:
    """Learn from a file of problems, or go on with a run that does."""
    tasks, labels = problems(Path(chosen.data), chosen.limit)
    recipe = recipe_of(chosen)
    pipeline, kept = recipe.pipeline(), store()
    fetch_models(pipeline)
    watching = _Watching()
    work = learn(
        pipeline,
        tasks,
        batch=chosen.batch,
        passes=chosen.passes,
        freeze=chosen.freeze,
        observers=[watching],
        store=kept,
        run=kept.open(chosen.resume) if chosen.resume else None,
    )
    try:
        learned = wait_for(work)
    except KeyboardInterrupt:
        again = f" Go on with the same command and: --resume {watching.name}" if watching.name else ""
        print(f"\nabduce: stopped.{again}", file=sys.stderr)
        return 130
    _print(figures(learned, labels), chosen.json)
    if learned.stopped:
        more = _MORE.format(watching.name) if "budget" in learned.stopped else ""
        print(f"abduce: incomplete: {learned.stopped}{more}", file=sys.stderr)
    return 1 if learned.stopped else 0


_MORE = (
    ". What was learned is kept; the budget is that of the whole run. Go on with the same command, a larger "
    "budget such as --budget '5M tokens, 9000 s', and: --resume {}"
)


def problems(file: Path, limit: int | None) -> tuple[list[Task], dict[str, Labels]]:
    """The tasks of a file, and the test outputs of those that are puzzles."""
    if file.suffix != ".jsonl":
        puzzles, labels = read(file)
        return [puzzles[name].task(name) for name in list(puzzles)[:limit]], labels
    rows = read_problems(file, limit)
    if not any(row.task.checks for row in rows):
        raise UsageError(
            f"{file}: no row has checks, so nothing could be verified and learned. The right answers are not "
            'looked at. Write e.g. {"question": …, "checks": [{"id": "regex", "kwargs": {"pattern": …}}]}.'
        )
    for row in rows:
        try:
            if row.task.checks:
                validate(row.task)
        except UsageError as error:
            raise UsageError(f"{file}: problem {row.id!r}: {error}") from None
    return [replace(row.task, metadata={"id": row.id}) for row in rows], {}


class _Watching:
    """Tells of each problem and each batch as it is done."""

    name = ""

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.name = event.run
            print(f"abduce: run {event.run}: {event.question}", file=sys.stderr)
        if isinstance(event, Noted) and event.note == "tried":
            tried: Any = event.data
            n, how = tried["attempts"], "solved" if tried["solved"] else "not solved"
            told = f"{how}, {n} attempt{'s' * (n != 1)}" if n else "not tried"
            print(f"abduce:   {tried['id']}: {told}", file=sys.stderr)
        if isinstance(event, Noted) and event.note == "learned":
            done: Any = event.data
            told = f"{len(done['solved'])} of {len(done['problems'])} solved, {len(done['written'])} written"
            versions = f"memory {done['read']} -> {done['version']}"
            print(f"abduce: pass {done['turn']}: {told}, {versions}", file=sys.stderr)
            for note in [*done["notes"], *filter(None, [done["withheld"]])]:
                print(f"abduce:   {note}", file=sys.stderr)


def figures(learned: Learned, labels: dict[str, Labels]) -> dict[str, Any]:
    """What came of it; scores by test outputs only of puzzles that have them."""
    last = {name: tries[-1] for name, tries in learned.solved.items()}
    rows = {
        name: [row for each in tries for row in scoring.rows(each.result.candidates, labels[name])]
        or [scoring.Row((False,) * len(labels[name]), False)]
        for name, tries in learned.solved.items()
        if name in labels
    }
    solved = {name for each in learned.rounds for name in each.solved}
    with_memory = {name for name in solved if scoring.attributed(last[name].result.text, last[name].selected)}
    return {
        "problems": len(last),
        "solved": len(solved),
        "official": round(scoring.official(rows), 3),
        "strict": round(scoring.strict(rows), 3),
        "scored": len(rows),
        "selected": sum(bool(each.selected) for each in last.values()),
        "attributed": len(with_memory),
        "version": learned.rounds[-1].version if learned.rounds else 0,
    }


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=2))
        return
    told = {
        "solved": f"{found['solved']} of {found['problems']}, by their training pairs or checks",
        "official": f"{found['official']:g} of {found['scored']}, by test outputs",
        "strict": f"{found['strict']:g} of {found['scored']}, training pairs and test outputs",
        "memory": f"version {found['version']}; something was selected for {found['selected']}",
        "attributed": f"{found['attributed']} of the solved have a selected concept in their program",
    }
    if not found["scored"]:
        del told["official"], told["strict"]
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in told.items():
        table.add_row(name, text)
    show(table)
