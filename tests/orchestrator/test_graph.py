"""The graph in the hands of LangGraph's users: as a node of their own, streamed, interrupted, resumed."""

from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from workflows import workflow

import abduce
from abduce.orchestrator import trace
from abduce.orchestrator.runs import Runs
from abduce.serving.errors import UsageError
from abduce.serving.scripted import Scripted

ASK = """
pipeline:
  - solve: {strategy: self_consistency, n: 2}
  - ask: {question: "Is {answer} right?", use: verdict}
  - solve: {strategy: chain_of_thought}
"""


class Mine(TypedDict, total=False):
    question: str
    answer: str
    verified: bool | None
    polished: str


def application(inner: Any, checkpointer: Any = None) -> Any:
    """A user's graph: our pipeline, then a node of their own."""

    def polish(state: Mine) -> Mine:
        return {"polished": f"It is {state['answer']}."}

    graph: Any = StateGraph(Mine)
    graph.add_node("abduce", inner)
    graph.add_node("polish", polish)
    graph.add_edge(START, "abduce")
    graph.add_edge("abduce", "polish")
    graph.add_edge("polish", END)
    return graph.compile(checkpointer=checkpointer)


async def test_a_pipeline_is_a_node_of_anothers_graph() -> None:
    pipeline = abduce.build(strategy="self_consistency", n=3, model=Scripted(["7", "7", "8"]))
    state = await application(pipeline.graph).ainvoke({"question": "?"})
    assert state == {"question": "?", "answer": "7", "verified": None, "polished": "It is 7."}


async def test_its_events_are_streamed_through_the_outer_graph() -> None:
    app = application(
        workflow("pipeline: [{solve: {strategy: chain_of_thought}}, {verify: {by: agreement}}]").graph
    )
    stream = app.astream({"question": "?"}, stream_mode="custom", subgraphs=True)
    events = [event async for _, event in stream]
    assert [event.kind for event in events] == [
        *("run_started", "node_started", "called", "noted", "node_ended"),
        *("node_started", "called", "node_ended", "run_ended"),
    ]


def test_synchronous_code_may_invoke_and_stream_it() -> None:
    step = workflow("pipeline: [{solve: {strategy: chain_of_thought}}, {verify: {by: agreement}}]")
    assert step.graph.invoke({"question": "?"})["complete"] is True
    kinds = [event.kind for event in step.graph.stream({"question": "?"}, stream_mode="custom")]
    assert (kinds[0], kinds[-1], kinds.count("node_ended")) == ("run_started", "run_ended", 2)
    pipeline = abduce.build(strategy="self_consistency", n=3, model=Scripted(["7", "7", "8"]))
    assert application(pipeline.graph).invoke({"question": "?"})["polished"] == "It is 7."


async def test_it_may_be_invoked_synchronously_inside_a_loop() -> None:
    pipeline = abduce.build(strategy="self_consistency", n=3, model=Scripted(["7", "7", "8"]))
    assert pipeline.graph.invoke({"question": "?"})["answer"] == "7"


def test_a_synchronous_graph_is_interrupted_and_goes_on_like_any_other(tmp_path: Path) -> None:
    thread: Any = {"configurable": {"thread_id": "1"}}
    app = application(workflow(ASK).compile(store=Runs(tmp_path / "runs")), InMemorySaver())
    assert "__interrupt__" in app.invoke({"question": "?"}, thread)
    assert app.invoke(Command(resume="yes"), thread)["polished"].startswith("It is ")


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_an_interrupt_asks_the_human_and_the_run_goes_on_with_the_answer(
    tmp_path: Path, kind: str
) -> None:
    store, config = Runs(tmp_path / "runs"), {"configurable": {"thread_id": "1"}}
    inner = workflow(ASK).compile(store=store)
    if kind == "memory":
        checkpointer = InMemorySaver()
        app = application(inner, checkpointer)
        first = await app.ainvoke({"question": "?"}, config)
        state = await app.ainvoke(Command(resume="yes"), config)
    else:  # as from another process: graph and connection are made anew
        async with store.checkpointer() as saver:
            first = await application(inner, saver).ainvoke({"question": "?"}, config)
        async with store.checkpointer() as saver:
            app = application(workflow(ASK).compile(store=Runs(tmp_path / "runs")), saver)
            state = await app.ainvoke(Command(resume="yes"), config)
    [interrupt] = first["__interrupt__"]
    assert interrupt.value == {"question": "Is 7 right?", "choices": ["yes", "no"]}
    assert state["polished"] == "It is 7."
    [name] = store.names()
    events = trace.read(store.open(name).trace)
    assert [event["node"] for event in events if event["event"] == "node_started"] == [
        "solve",
        "ask",
        "solve-2",
    ]
    assert [event["event"] for event in events][0 :: len(events) - 1] == ["run_started", "run_ended"]
    result = store.open(name).result
    assert result is not None
    assert result["usage"]["calls"] == 2  # nothing was asked twice


async def test_a_node_that_asks_after_a_search_repeats_no_call(tmp_path: Path) -> None:
    """An `Ask` in the middle of a strategy: LangGraph enters the node again, the journal replays it."""
    from dataclasses import dataclass

    from abduce.serving.flow import Ask, Flow, Generate, Prompt
    from abduce.strategies.base import Result, Task

    @dataclass(frozen=True)
    class Careful:
        def solve(self, task: Task, *, seed: int) -> Flow[Result]:
            said = []
            for i in range(2):
                [drawn] = yield [Generate(Prompt.user(f"{task.question} {i}"))]
                [reply] = yield [Ask(f"{drawn[0].text}?")]
                said.append(reply)
            return Result(" ".join(said), "")

    engine = Scripted(["one", "two"])
    pipeline = abduce.build(strategy=Careful(), model=engine)
    app = application(pipeline.compile(store=Runs(tmp_path)), InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    asked = []
    state = await app.ainvoke({"question": "?"}, config)
    while interrupts := state.get("__interrupt__"):
        asked.append(interrupts[0].value["question"])
        state = await app.ainvoke(Command(resume=f"answer {len(asked)}"), config)
    assert asked == ["one?", "two?"]
    assert state["answer"] == "answer 1 answer 2"


async def test_threads_of_one_graph_are_runs_of_their_own(tmp_path: Path) -> None:
    store = Runs(tmp_path)
    app = application(
        workflow("pipeline: [{solve: {strategy: chain_of_thought}}, {verify: {by: agreement}}]").compile(
            store=store
        )
    )
    for i in range(3):
        await app.ainvoke({"question": f"{i}?"})
    questions = [store.open(name).record["task"]["question"] for name in store.names()]
    assert questions == ["0?", "1?", "2?"]


async def test_checks_and_choices_are_given_as_plain_data() -> None:
    graph = workflow("pipeline: [{solve: {strategy: chain_of_thought}}, {verify: {by: checks}}]").graph
    task = {"checks": [{"id": "numeric", "kwargs": {"value": 7}}]}
    assert (await graph.ainvoke({"question": "?", "task": task}))["verified"] is True


async def test_an_empty_question_is_refused() -> None:
    graph = workflow("pipeline: [{solve: {strategy: chain_of_thought}}, {verify: {by: checks}}]").graph
    with pytest.raises(UsageError, match="The question is empty"):
        await graph.ainvoke({"question": " "})


@pytest.mark.parametrize("stored", [False, True])
async def test_a_second_question_of_a_thread_knows_nothing_of_the_first(tmp_path: Path, stored: bool) -> None:
    steps = """
pipeline:
  - ask: {question: "What helps with {question}?", use: hint}
  - solve: {strategy: chain_of_thought}
"""
    store = Runs(tmp_path) if stored else None
    app = workflow(steps).compile(store=store, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    seen = []
    for question in ("first", "second"):
        await app.ainvoke({"question": question}, thread)
        await app.ainvoke(Command(resume=f"hint of {question}"), thread)
        seen.append((await app.aget_state(thread)).values)
    assert [state["hints"] for state in seen] == [["hint of first"], ["hint of second"]]
    assert [state["visit"] for state in seen] == [2, 2]
    assert [state["usage"]["calls"] for state in seen] == [1, 1]
    if store is not None:
        for name in store.names():
            assert trace.read(store.open(name).trace)[0]["event"] == "run_started"


async def test_a_budget_in_money_needs_prices_here_too() -> None:
    class Unpriced(Scripted):
        def priced(self) -> bool:
            return False

    inner = abduce.build(strategy="self_consistency", n=1, model=Unpriced("3"), budget="5 usd").graph
    with pytest.raises(UsageError, match="no price of"):
        await application(inner).ainvoke({"question": "Which?"})


async def test_a_question_that_is_no_text_is_refused() -> None:
    pipeline = abduce.build(strategy="self_consistency", n=2, model=Scripted(["7"]))
    with pytest.raises(UsageError, match="A question is a text, got 5"):
        await pipeline.graph.ainvoke({"question": 5})


@pytest.mark.parametrize("name", ["human", "begin", "answer", "question"])
async def test_a_node_may_be_named_as_a_node_of_ours_or_a_part_of_the_state(
    tmp_path: Path, name: str
) -> None:
    steps = f"""
nodes:
  solve: {{solve: {{strategy: chain_of_thought}}}}
  {name}: {{ask: {{question: Right, use: verdict}}}}
edges: [solve -> {name}]
"""
    made = workflow(steps)
    assert (await made.asolve("?", human=lambda *_: "yes")).diagnostics["verified"] is True  # type: ignore
    app = made.compile(store=Runs(tmp_path), checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "1"}}
    assert "__interrupt__" in await app.ainvoke({"question": "?"}, thread)
    assert (await app.ainvoke(Command(resume="yes"), thread))["verified"] is True


async def test_an_answer_that_is_no_choice_is_asked_for_again(tmp_path: Path) -> None:
    app = application(workflow(ASK).compile(store=Runs(tmp_path)), InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    await app.ainvoke({"question": "?"}, config)
    state = await app.ainvoke(Command(resume="perhaps"), config)
    assert state["__interrupt__"][0].value["refused"] == "perhaps"
    state = await app.ainvoke(Command(resume="Y"), config)
    assert state["polished"] == "It is 7."
