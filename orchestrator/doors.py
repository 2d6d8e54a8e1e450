"""The ways to run what solves tasks, the same for one search and for a graph of steps.

await asolve(task)   solve(task)   async for event in stream(task)   graph
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..serving import ENGINES
from ..serving.base import Capability, Engine
from ..serving.constraints import Constraint, JsonSchema
from ..serving.errors import AbduceError, MissingCapability, UnknownName, UsageError
from ..serving.flow import ToolSpec
from ..strategies.base import Result, Task
from .background import wait_for
from .driver import Gate
from .ledger import Budget
from .runs import Run, Runs
from .services import AnswerNeeded, Halt, Human, Services
from .session import Session, streamed
from .trace import Event, Observer

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph


class Doors(ABC):
    """`Pipeline` (one search) and `Workflow` (a graph of steps) differ in what a run is, `_run`, and in
    nothing else."""

    services: Services
    budget: Budget
    concurrency: int | None
    settings: Mapping[str, Any]
    seed: int

    async def asolve(
        self,
        task: Task | str,
        *,
        seed: int | None = None,
        observers: Iterable[Observer] = (),
        store: Runs | None = None,
        run: Run | None = None,
        gate: Gate | None = None,
        human: Human | None = None,
    ) -> Result:
        """Solve a task. With a `store` the run is journaled and traced there; with `run` that one goes on.

        A task that names no tools may use all there are. Whoever gives a `gate` holds the run there, batch by
        batch. `human`, a function plain or async, answers with text what is asked; where a step of a workflow
        asks and nobody is there, the result is not complete and says so, and a stored run can go on once
        there is somebody."""
        task = self._prepared(task)
        if store is not None and not isinstance(store, Runs):
            raise UsageError(f"A store is e.g. abduce.Runs('runs'), got {store!r:.80}.")
        if run is not None and not isinstance(run, Run):
            raise UsageError(f"A run is what a store opens, e.g. store.open('last'), got {run!r:.80}.")
        if callable(observers) or not isinstance(observers, Iterable):
            raise UsageError(f"observers is a list of functions of an event, got {observers!r:.80}.")
        if self.budget.cost_usd is not None:
            priced(self.engines)
        seed = self.seed if seed is None else seed
        if run is None and store is not None:
            run = store.create({**self.settings, "task": task, "seed": seed})
        with Session(
            run, budget=self.budget, observers=observers, concurrency=self.concurrency, gate=gate
        ) as session:
            session.begin(task.question, seed, self.settings)
            try:
                result = await self._run(session, task, seed, _heard(human or self.services.human))
            except AnswerNeeded as need:
                waits = {"stopped": f"waits for an answer to: {need.question}"}
                return Result(None, "", complete=False, usage=session.ledger.usage, diagnostics=waits)
            except Halt as halt:
                raise AbduceError(str(halt)) from halt
            session.end(result)
        return result

    def solve(self, task: Task | str, **options: Any) -> Result:
        """`asolve`, synchronously; also inside a running event loop."""
        return wait_for(self.asolve(task, **options))

    def stream(self, task: Task | str, **options: Any) -> AsyncIterator[Event]:
        """The events of a run as they happen; the last one holds the answer. Options as of `asolve`."""
        watching = list(options.pop("observers", ()))
        return streamed(lambda observer: self.asolve(task, observers=[*watching, observer], **options))

    @property
    def engines(self) -> tuple[Engine, ...]:
        """All that may be asked, each once."""
        return tuple({id(engine): engine for engine in self.services.engines.values()}.values())

    @property
    def graph(self) -> "CompiledStateGraph[Any, Any, Any, Any]":
        """The LangGraph graph, to be run or to be a node of another graph."""
        return self.compile()

    @abstractmethod
    def compile(
        self, *, store: Runs | None = None, checkpointer: Any = None
    ) -> "CompiledStateGraph[Any, Any, Any, Any]":
        """The LangGraph graph. With a `store` its runs are journaled there, so that no completed call is
        repeated where a node is entered again, as after an interrupt."""

    @abstractmethod
    async def _run(self, session: Session, task: Task, seed: int, human: Human | None) -> Result:
        """The run itself. Raises Halt where it cannot go on now."""

    def _prepared(self, task: Task | str) -> Task:
        task = asked(task)
        if task.constraint is not None:
            self._check_form(task.constraint)
        if self.services.tools or task.tools:
            task = replace(task, tools=self._specs(task))
        return task

    def _specs(self, task: Task) -> tuple[ToolSpec, ...]:
        """What there is to know of the tools the task names, or of all."""
        known = {name: tool.spec for name, tool in self.services.tools.items() if hasattr(tool, "spec")}
        if not task.tools:
            return tuple(known.values())
        for tool in task.tools:
            if isinstance(tool, str) and tool not in known:
                raise UnknownName("tool in this run", tool, known)
        return tuple(known[tool] if isinstance(tool, str) else tool for tool in task.tools)

    def _check_form(self, constraint: Constraint) -> None:
        """Refuse a task whose answer's form the engine cannot keep."""
        served = self.services.engine("policy")
        simple = isinstance(constraint, JsonSchema)
        enough: set[Capability] = {"constraint", "json_schema"} if simple else {"constraint"}
        if not served.capabilities & enough:
            able = [name for name, gives in ENGINES.items() if gives.capabilities & enough]
            raise MissingCapability(
                f"The engine {served.name!r} cannot hold an answer to {'JSON' if simple else 'this form'}. "
                f"Engines that can: {', '.join(able) or 'none'}."
            )


def priced(engines: Iterable[Engine]) -> None:
    """Raise UsageError unless all engines tell what they cost: a limit in money is none for the others."""
    for engine in engines:
        if not engine.priced():
            model = getattr(engine, "model", engine.name)
            raise UsageError(
                f"A limit in money was set, and no price of {model} is known. Say what a million input and "
                "output tokens cost, as in {engine: litellm, model: …, usd_per_million: [0.15, 0.6]}; [0, 0] "
                "is free. Or limit tokens."
            )


def asked(task: Task | str) -> Task:
    """The task. Raises UsageError if there is none."""
    task = Task(task) if isinstance(task, str) else task
    if not isinstance(task, Task):
        raise UsageError(f"What is to be solved is a text or a Task, got {task!r:.200}.")
    if not isinstance(task.question, str):
        raise UsageError(f"A question is a text, got {task.question!r:.200}.")
    if not task.question.strip():
        raise UsageError('The question is empty. Write e.g. "7 x 8 =".')
    return task


def _heard(human: Human | None) -> Human | None:
    """The human as the run hears them. A mistake in the function that speaks for them halts the run, which
    can go on once it is mended: to the steps it would look like somebody who does not answer."""
    if human is None:
        return None

    async def answer(question: str, choices: Sequence[str]) -> str:
        try:
            said: object = human(question, choices)
            if inspect.isawaitable(said):
                said = await said
        except Halt:
            raise
        except Exception as error:
            raise Halt(f"The human could not be asked: {type(error).__name__}: {error}") from error
        if not isinstance(said, str):
            raise Halt(f"The human answered {said!r:.80}. Answer with text.")
        return said

    return answer
