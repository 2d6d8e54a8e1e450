"""The outer graph in LangGraph's terms: a node for each step, which says itself where the run goes from it.

    START ─► begin ─► step ─► step ─► … ─► END      begin: where there is a store or a checkpointer
                       ▲ │
                       │ ▼   a question to the human, where nobody is there to ask
                      human  (an interrupt; Command(resume=answer) goes on)

Our own runs (`Workflow.asolve`) bring their session and are durable by their journal. In a graph of the
user's each visit opens the run in the store that was given: where LangGraph enters a node again, its journal
is replayed and no completed call is repeated.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph import END as GRAPH_END
from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime, get_runtime
from langgraph.types import Command, interrupt

from ..serving.errors import AbduceError
from ..serving.flow import Usage
from ..strategies.base import Check, Task
from .background import wait_for
from .doors import asked, priced
from .nodes import Progress
from .recipe.laws import conditions
from .runs import Runs
from .services import AnswerNeeded, Halt, Human, meant
from .session import Session
from .steps import END, AskHuman
from .workflow import Workflow

BEGIN, HUMAN = "(begin)", "(human)"  # names that no node of a recipe can have


@dataclass(frozen=True)
class Own:
    """What a run of our own brings along, as LangGraph's context."""

    session: Session
    task: Task
    human: Human
    state: Progress = field(default_factory=Progress)  # as far as the nodes have come


class Question(TypedDict, total=False):
    """What the graph is given. `task` holds further fields: `choices`, `checks`, `metadata`."""

    question: str
    task: dict[str, Any]
    seed: int


class Answer(TypedDict, total=False):
    """What the graph gives back; fields as of `Progress`."""

    answer: Any
    text: str
    complete: bool
    verified: bool | None
    score: float | None
    candidates: list[dict[str, Any]]
    route: str | None
    usage: dict[str, Any]
    diagnostics: dict[str, Any]


class Visitor(Runnable[Progress, Command[str]]):
    """A node of the graph: asynchronous, and from synchronous code by way of the background loop."""

    def __init__(self, visit: Callable[[Progress, Runtime[Any]], Coroutine[Any, Any, Command[str]]]) -> None:
        self._visit = visit

    async def ainvoke(self, input: Progress, config: RunnableConfig | None = None, **_: Any) -> Command[str]:
        """Visit the step."""
        return await self._visit(input, get_runtime())

    def invoke(self, input: Progress, config: RunnableConfig | None = None, **_: Any) -> Command[str]:
        """Visit the step, and wait for it."""
        return wait_for(self._visit(input, get_runtime()))


def compile_graph(
    workflow: Workflow, *, store: Runs | None = None, checkpointer: Any = None
) -> "CompiledStateGraph[Progress, Any, Question, Answer]":
    """The graph, ready to be invoked, streamed (mode "custom" gives our trace events), or added to another
    graph as a node."""
    graph: Any = StateGraph(Progress, input_schema=Question, output_schema=Answer)
    [first, *_] = workflow.nodes
    if store is None and not checkpointer:
        graph.add_edge(START, first)
    else:
        graph.add_node(BEGIN, _begin(workflow, store))
        graph.add_edge(START, BEGIN)
        graph.add_edge(BEGIN, first)
    asking = [name for name in workflow.nodes if _may_ask(workflow, name)]
    for name in workflow.nodes:
        ways: dict[str, str | None] = {
            GRAPH_END if edge.target == END else edge.target: ", ".join(conditions(edge)) or None
            for edge in workflow.steps.edges
            if edge.source == name
        }
        ways |= {HUMAN: "asks"} if name in asking else {}
        graph.add_node(name, _visitor(workflow, name, store), destinations=ways or (GRAPH_END,))
    if asking:
        graph.add_node(HUMAN, _ask_human, destinations=tuple(asking))
    compiled: CompiledStateGraph[Progress, Any, Question, Answer]
    compiled = graph.compile(checkpointer=checkpointer, name="abduce")
    return compiled


def _begin(workflow: Workflow, store: Runs | None) -> Callable[[Progress], Mapping[str, Any]]:
    def begin(state: Progress) -> Mapping[str, Any]:
        """Forget the question before this one, which the thread remembers, and make the run that the next
        nodes are journaled in."""
        stale = state.keys() - Question.__annotations__.keys()
        update: dict[str, Any] = dict.fromkeys(stale) | _FRESH if stale else {}
        if store is not None:
            seed = state.get("seed", workflow.seed)
            update["run"] = store.create({**workflow.settings, "task": asked(_task(state)), "seed": seed}).id
        return update

    return begin


_FRESH: dict[str, Any] = {"text": "", "complete": True, "why": "", "visit": 0, "elapsed_s": 0.0}


def _may_ask(workflow: Workflow, name: str) -> bool:
    """Whether a node may ask the human: a step that does, or a strategy that is not of this package."""
    strategy = getattr(workflow.nodes[name], "strategy", None)
    ours = type(strategy).__module__.startswith(__package__.partition(".")[0])
    return isinstance(workflow.steps.nodes[name], AskHuman) or (strategy is not None and not ours)


def _visitor(workflow: Workflow, name: str, store: Runs | None) -> Visitor:
    async def visit(state: Progress, runtime: Runtime[Any]) -> Command[str]:
        if isinstance(own := runtime.context, Own):
            update = await workflow.visit(name, state, own.task, own.session, own.human)
            own.state.update(update)  # type: ignore[typeddict-item]
            return _onward(workflow, name, state, update)
        state = {**state, "seed": state.get("seed", workflow.seed)}
        task = asked(_task(state))
        if workflow.budget.cost_usd is not None:
            priced(workflow.engines)
        told = state.get("answers_of_human") or {}
        with _session(workflow, state, runtime, store) as session:
            if not state.get("visit"):
                session.begin(task.question, state["seed"], workflow.settings)
            try:
                update = await workflow.visit(name, state, task, session, _desk(told))
            except AnswerNeeded as need:
                question = {"question": need.question, "choices": list(need.choices), "node": name}
                return Command(goto=HUMAN, update={"question_to_human": question})
            except Halt as halt:
                raise AbduceError(str(halt)) from halt
            onward = _onward(workflow, name, state, {**update, "answers_of_human": {}})
            if onward.goto == GRAPH_END:
                session.end(workflow.result({**state, **update}))
        return onward

    return Visitor(visit)


def _onward(workflow: Workflow, name: str, state: Progress, update: Mapping[str, Any]) -> Command[str]:
    target, taken = workflow.after(name, {**state, **update})  # type: ignore[typeddict-item]
    return Command(goto=GRAPH_END if target == END else target, update={**update, "taken": taken})


def _session(workflow: Workflow, state: Progress, runtime: Runtime[Any], store: Runs | None) -> Session:
    return Session(
        store.open(state["run"]) if store is not None else None,
        budget=workflow.budget,
        observers=[runtime.stream_writer],
        concurrency=workflow.concurrency,
        visit=state.get("visit", 0),
        spent=Usage(**state["usage"]) if state.get("usage") else None,
        elapsed_s=state.get("elapsed_s", 0.0),
    )


def _desk(told: Mapping[str, str]) -> Human:
    """Answers what the human has been asked already."""

    async def answer(question: str, choices: Sequence[str]) -> str:
        if question in told:
            return told[question]
        raise AnswerNeeded(question, choices)

    return answer


def _ask_human(state: Progress) -> Command[str]:
    """Interrupt; the value with which the graph is resumed is the answer. One that is none of the choices is
    asked for again."""
    asked = state["question_to_human"]
    assert asked is not None
    question, choices = asked["question"], asked["choices"]
    said = str(interrupt({"question": question, "choices": choices}))
    while choices and not (chosen := meant(said, choices)):
        said = str(interrupt({"question": question, "choices": choices, "refused": said}))
    told = {**(state.get("answers_of_human") or {}), question: chosen if choices else said}
    return Command(goto=asked["node"], update={"answers_of_human": told, "question_to_human": None})


def _task(state: Progress) -> Task:
    row = dict(state.get("task") or {})
    parts: dict[str, Any] = {"metadata": row.get("metadata", {}), "choices": tuple(row.get("choices", ()))}
    parts["checks"] = tuple(Check(**check) for check in row.get("checks", ()))
    return Task(state.get("question", ""), **parts)
