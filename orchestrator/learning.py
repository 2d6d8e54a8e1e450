"""A pipeline that learns from a list of problems: one run, journalled, that can be stopped and gone on with.

    learned = await learn(recipe.load("arcmemo-grids"), tasks, batch=10, passes=2, store=Runs("runs"))

The flow is `strategies/arcmemo/continual.py`; here it gets its services, its journal and its trace. A run
that goes on gets its replies from the journal, the memory's too, so that it comes to where it was.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..serving.errors import UsageError
from ..serving.seeds import derive
from ..strategies.arcmemo import ArcMemo, Learned
from ..strategies.arcmemo import learn as course
from ..strategies.base import Result, Task
from .doors import priced
from .runs import Run, Runs
from .session import Session
from .solve import Pipeline
from .trace import Observer

if TYPE_CHECKING:
    from ..strategies.arcmemo.puzzle import Labels
    from .workflow import Workflow


async def learn(
    pipeline: "Pipeline | Workflow",
    tasks: Sequence[Task],
    *,
    batch: int = 10,
    passes: int = 1,
    freeze: bool = False,
    oracle: "Mapping[str, Labels] | None" = None,
    seed: int | None = None,
    observers: Iterable[Observer] = (),
    store: Runs | None = None,
    run: Run | None = None,
) -> Learned:
    """Solve the tasks in their order and learn from them (`strategies.arcmemo.learn`). The budget is that of
    the whole run. With `run`, that one goes on; one that its budget ended does with a larger budget. Raises
    UsageError unless the pipeline is one arcmemo search with a memory, and for a run of other problems or
    settings."""
    if not isinstance(pipeline, Pipeline) or not isinstance(pipeline.strategy, ArcMemo):
        raise UsageError(
            "What learns is a recipe with arcmemo as its only step. Write --recipe arcmemo-grids."
        )
    if pipeline.services.memory is None and not freeze:
        raise UsageError("The recipe has no memory to write to. Write e.g. memory: concepts.db.")
    if pipeline.budget.cost_usd is not None:
        priced(pipeline.engines)
    if pipeline.services.memory is not None:
        await pipeline.services.memory.version()  # complains of one that cannot be reached
    seed = pipeline.seed if seed is None else seed
    digest = f"{derive(0, *(task.question for task in tasks)):016x}"
    how = {
        "problems": digest,
        "settings": _digest(pipeline.settings),
        "batch": batch,
        "passes": passes,
        "freeze": freeze,
        "oracle": oracle is not None,
    }
    title, goes_on = Task(f"learn from {len(tasks)} problems"), run is not None
    if run is None and store is not None:
        run = store.create({**pipeline.settings, "task": title, "seed": seed, "learn": how})
    elif run is not None:
        _check_the_same(run, how, seed)
    with Session(
        run, budget=pipeline.budget, observers=observers, concurrency=pipeline.concurrency
    ) as session:
        session.begin(title.question, seed, pipeline.settings)
        if goes_on and session.journal is not None:
            session.journal.forget(lambda end: getattr(pipeline.budget, end.resource) != end.limit)
        options: dict[str, Any] = {"batch": batch, "passes": passes, "freeze": freeze, "oracle": oracle}
        flow = course(pipeline.strategy, tasks, seed=seed, **options)
        learned = await session.drive(flow, pipeline.services, seed=seed)
        session.end(_result(learned, session))
    return learned


def _digest(settings: Mapping[str, Any]) -> str:
    """Of all that decides what is asked and written. A run may go on with a larger budget."""
    words = {**settings, **settings.get("recipe", {})}
    rest = {key: value for key, value in words.items() if key not in _FREE}
    return f"{derive(0, json.dumps(rest, sort_keys=True, default=str)):016x}"


_FREE = ("recipe", "name", "description", "budget", "concurrency", "seed")


def _check_the_same(run: Run, how: Mapping[str, Any], seed: int) -> None:
    told = run.record.get("learn")
    if told is None:
        raise UsageError(f"Run {run.id} is no run of abduce learn. Go on with it by: abduce resume {run.id}.")
    here = {**how, "seed": seed}
    different = sorted(
        key for key, value in ({**told, "seed": run.record["seed"]}).items() if here[key] != value
    )
    if different:
        raise UsageError(f"Run {run.id} differs in: {', '.join(different)}. Go on with the same as it.")


def _result(learned: Learned, session: Session) -> Result:
    solved = {name for each in learned.rounds for name in each.solved}
    rows = [f"{each.turn}. {', '.join(each.problems)}: version {each.version}" for each in learned.rounds]
    facts: dict[str, Any] = {"gate": learned.gate, "order": list(learned.order), "solved": sorted(solved)}
    if learned.stopped:
        facts["stopped"] = learned.stopped
    answer = f"{len(solved)} of {len(learned.solved)} solved"
    usage = session.ledger.usage
    return Result(answer, "\n".join(rows), complete=not learned.stopped, usage=usage, diagnostics=facts)
