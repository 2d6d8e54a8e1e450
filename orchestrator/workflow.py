"""A recipe of several steps, ready to run: the outer graph, on LangGraph, one node after another.

Recipe ──compile_workflow──► Workflow ──graph.py──► StateGraph
                                │ each visit of a node: Session.drive(node.visit(…))
                                ▼
                              Result        one journal, one trace, one budget for the whole run
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson

from ..memory.base import Store
from ..memory.registry import open_store
from ..serving import registry
from ..serving.base import Engine
from ..serving.errors import SearchEnded, UnknownName, UsageError
from ..serving.flow import Usage
from ..serving.seeds import derive
from ..strategies.base import Candidate, Policy, Result, Task
from .codec import dumps
from .doors import Doors
from .ledger import Budget
from .nodes import Node, Parts, Progress, SolveNode, Update, Visit, node
from .nodes.call import AsTool
from .runs import Runs
from .services import AnswerNeeded, Human, Services
from .session import Session
from .solve import Pipeline, build
from .steps import END, Call, Graph, Named, Solve, Solver, When, kind_of
from .trace import LAST, NodeEnded, NodeStarted

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

    from .recipe.model import Recipe


@dataclass(frozen=True)
class Workflow(Doors):
    """Steps and the ways between them, with everything they need."""

    steps: Graph
    nodes: Mapping[str, Node]
    services: Services  # of the steps that don't solve
    budget: Budget = field(default_factory=Budget)
    concurrency: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def engines(self) -> tuple[Engine, ...]:
        """All that may be asked in any step, each once."""
        known = [self.services, *(node.services for node in self.nodes.values())]
        return tuple({id(each): each for held in known for each in held.engines.values()}.values())

    def compile(
        self, *, store: Runs | None = None, checkpointer: Any = None
    ) -> "CompiledStateGraph[Any, Any, Any, Any]":
        """The LangGraph graph of the recipe, a node for each step (`graph.py`)."""
        from .graph import compile_graph

        return compile_graph(self, store=store, checkpointer=checkpointer)

    async def visit(
        self, name: str, state: Progress, task: Task, session: Session, human: Human | None
    ) -> Update:
        """One visit of a node: what changes of the state. Raises AnswerNeeded if only the human can say."""
        step, visit, seed = kind_of(self.steps.nodes[name]), state.get("visit", 0), state.get("seed", 0)
        session.emit(NodeStarted((visit,), name, step, session.elapsed_s))
        here = self.nodes[name]
        at = Visit(task, state, derive(seed, "visit", visit) if visit else seed)
        services = here.services if human is None else replace(here.services, human=human)
        try:
            found = await session.drive(here.visit(at), services, seed=at.seed, root=(visit,))
        except SearchEnded as end:
            told = state.get("diagnostics") or {}
            found = {"complete": False, "diagnostics": {**told, "stopped": str(end)}}
        update: Update = orjson.loads(dumps(found))
        session.emit(NodeEnded((visit, LAST), name, step, update, session.elapsed_s))
        session.flush()
        usage = orjson.loads(dumps(session.ledger.usage))
        return {**update, "visit": visit + 1, "usage": usage, "elapsed_s": session.elapsed_s}

    def after(self, name: str, state: Progress) -> tuple[str, dict[str, int]]:
        """Where a run goes from a node, and how often each edge with a limit has been taken then."""
        taken = dict(state.get("taken") or {})
        for i, edge in enumerate(self.steps.edges):
            if edge.source != name or not holds(edge.when, state):
                continue
            if edge.at_most is None:
                return edge.target, taken
            if (times := taken.get(str(i), 0)) < edge.at_most:
                return edge.target, taken | {str(i): times + 1}
        return END, taken

    def result(self, state: Mapping[str, Any]) -> Result:
        """What a run came to, from its last state."""
        diagnostics = {**(state.get("diagnostics") or {}), "verified": state.get("verified")}
        diagnostics |= {"route": state["route"]} if state.get("route") else {}
        return Result(
            _hashable(state.get("answer")),
            state.get("text", ""),
            tuple(
                Candidate(**{**c, "answer": _hashable(c["answer"])}) for c in state.get("candidates") or ()
            ),
            bool(state.get("complete", True)),
            Usage(**(state.get("usage") or {})),
            diagnostics,
        )

    async def _run(self, session: Session, task: Task, seed: int, human: Human | None) -> Result:
        """Always from the beginning: what the journal holds of the run is replayed. It is finer and costs
        less than LangGraph's checkpoints, so there are none."""
        from .graph import Own

        start: Progress = {"question": task.question, "seed": seed}
        own = Own(session, task, human or _nobody)
        config: Any = {"recursion_limit": _MAX_VISITS}
        await self._own_graph.ainvoke(
            start, config, context=own, output_keys=["visit"]
        )  # the rest would cost
        return self.result(own.state)

    @cached_property
    def _own_graph(self) -> "CompiledStateGraph[Any, Any, Any, Any]":
        return self.compile()


_MAX_VISITS = 10_000


async def _nobody(question: str, choices: Sequence[str]) -> str:
    raise AnswerNeeded(question, choices)


def holds(when: When, state: Progress) -> bool:
    """Whether a condition holds."""
    answered, score, said = state.get("answer") is not None, state.get("score"), state.get("said") or ""
    return (
        (when.route is None or when.route == state.get("route"))
        and (when.verified is None or when.verified == (state.get("verified") is True))
        and (when.complete is None or when.complete == state.get("complete", True))
        and (when.answered is None or when.answered == answered)
        and (when.score is None or (score is not None and when.score.holds(score)))
        and (when.said is None or when.said.casefold() == said.strip().casefold())
    )


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


# ---------------------------------------------------------------- from a recipe, or from a pipeline


def compile_workflow(
    recipe: "Recipe",
    *,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    memory: Store | None = None,
) -> Workflow:
    """The workflow of a recipe. `functions` are those that its `call` steps name; `memory` takes the place
    of the one that it names. Raises UsageError for what does not exist or does not fit."""
    base = build(**recipe.options(Solver(strategy=Named(name="chain_of_thought"))))
    called = {step.function for step in recipe.nodes.values() if isinstance(step, Call)}
    tools = {name: AsTool(name, _function(name, functions or {})) for name in called}
    if memory is None and recipe.memory is not None:
        memory = open_store(recipe.memory.store, embedder=recipe.memory.embedder)

    def equipped(services: Services) -> Services:
        return replace(services, tools={**services.tools, **tools}, memory=memory)

    def solver(solver: str | Solver) -> Pipeline:
        made = build(**recipe.options(solver))
        return replace(made, services=equipped(made.services))

    def scorer(reward: Named | None) -> Pipeline:
        one = Named.model_validate({"name": "best_of_n", "n": 1})  # a strategy that has the reward
        return solver(Solver(strategy=one, reward=reward or recipe.reward))

    policy: Policy = base.strategy.policy  # type: ignore[attr-defined]
    parts = Parts(equipped(base.services), policy, solver, scorer)
    return Workflow(
        recipe.graph(),
        {name: node(step, parts) for name, step in recipe.nodes.items()},
        parts.services,
        base.budget,
        recipe.concurrency,
        {"recipe": recipe.data()},
        recipe.seed,
    )


def as_workflow(pipeline: Pipeline) -> Workflow:
    """A pipeline as a graph with one node."""
    steps = Graph(nodes={"solve": Solve(solver=type(pipeline.strategy).__name__)})
    only = SolveNode(pipeline.services, pipeline.strategy)
    return Workflow(
        steps,
        {"solve": only},
        pipeline.services,
        pipeline.budget,
        pipeline.concurrency,
        pipeline.settings,
        pipeline.seed,
    )


def _function(name: str, given: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    if name in given:
        return given[name]
    try:
        found: Callable[..., Any] = registry.find("function", name, {}, __name__, "abduce.functions")
    except UnknownName as error:
        raise UsageError(f"{error} Give it: abduce.load(…, functions={{{name!r}: …}}).") from None
    return found
