import asyncio
from pathlib import Path
from typing import Any

import pytest
from workflows import calls, visited, workflow

import abduce
from abduce.orchestrator import trace
from abduce.orchestrator.graph import compile_graph
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.nodes.base import Progress
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.steps import Bound, When
from abduce.orchestrator.trace import Event, NodeEnded, RunEnded
from abduce.orchestrator.workflow import as_workflow, holds
from abduce.serving.errors import AbduceError, UsageError
from abduce.serving.scripted import Scripted
from abduce.strategies.base import Check, Task

RETRY = """
pipeline:
  - solve: {strategy: chain_of_thought}
  - verify: {by: checks, retries: 2}
"""
WRONG = Task("?", checks=(Check("numeric", {"value": 8}),))
RIGHT = Task("?", checks=(Check("numeric", {"value": 7}),))


@pytest.mark.parametrize(("task", "tries", "verified"), [(RIGHT, 1, True), (WRONG, 3, False)])
async def test_what_fails_is_tried_again_and_no_more_often_than_allowed(task, tries, verified) -> None:
    events: list[Event] = []
    result = await workflow(RETRY).asolve(task, observers=[events.append])
    assert visited(events) == ["solve", "verify"] * tries
    assert (result.answer, result.diagnostics["verified"]) == ("7", verified)
    assert result.usage.calls == tries


async def test_each_try_draws_with_seeds_of_its_own() -> None:
    events: list[Event] = []
    await workflow(RETRY).asolve(WRONG, observers=[events.append])
    seeds = [call.request.seed for call in calls(events) if call.path[0] % 2 == 0]
    assert len(seeds) == 3
    assert len(set(seeds)) == 3


async def test_a_graph_of_one_search_is_that_search() -> None:
    pipeline = abduce.build(
        strategy="best_of_n", n=3, model=Scripted(["7", "8", "7"] * 2), reward="agreement"
    )
    alone = await pipeline.asolve("?", seed=3)
    in_graph = await as_workflow(pipeline).asolve("?", seed=3)
    assert (in_graph.answer, in_graph.text, in_graph.usage) == (alone.answer, alone.text, alone.usage)
    assert in_graph.candidates == alone.candidates


async def test_the_same_seed_leaves_the_same_trace(tmp_path: Path) -> None:
    kept = []
    for name in ("a", "b"):
        store = Runs(tmp_path / name)
        await workflow(RETRY).asolve(WRONG, store=store, seed=4)
        kept.append(trace.comparable(trace.read(store.open("last").trace)))
    assert kept[0] == kept[1]


async def test_one_budget_for_all_steps() -> None:
    events: list[Event] = []
    flow = workflow("budget: {calls: 2}\n" + RETRY)
    result = await flow.asolve(WRONG, observers=[events.append])
    assert result.usage.calls == 2
    assert not result.complete
    assert result.answer == "7"  # the answer before stays


async def test_a_run_that_has_ended_is_replayed_from_its_journal(tmp_path: Path) -> None:
    store = Runs(tmp_path)
    first = await workflow(RETRY).asolve(WRONG, store=store)
    events: list[Event] = []
    none_left = workflow(RETRY, model="model: {engine: scripted, replies: []}\n")
    again = await none_left.asolve(WRONG, run=store.open("last"), observers=[events.append])
    assert (again.answer, again.usage) == (first.answer, first.usage)
    assert all(call.replayed for call in calls(events))


async def test_stream_gives_the_events_and_ends_with_the_answer() -> None:
    events = [event async for event in workflow(RETRY).stream(RIGHT)]
    assert [event.kind for event in events] == [
        *("run_started", "node_started", "called", "noted", "node_ended"),
        *("node_started", "node_ended", "run_ended"),
    ]
    assert isinstance(events[-1], RunEnded)
    assert events[-1].answer == "7"


async def test_whoever_stops_listening_ends_the_run() -> None:
    flow = workflow(RETRY, model='model: {engine: scripted, replies: {"": "7"}, latency_s: 100}\n')
    stream = flow.stream(RIGHT)
    async for event in stream:
        if event.kind == "node_started":
            break
    await stream.aclose()  # type: ignore[attr-defined]
    assert asyncio.all_tasks() == {asyncio.current_task()}


ASK = """
pipeline:
  - solve: {strategy: chain_of_thought}
  - ask: {question: "Is {answer} right?", use: verdict}
"""


async def test_a_human_who_is_there_is_asked() -> None:
    asked: list[Any] = []

    async def human(question: str, choices: Any) -> str:
        asked.append((question, tuple(choices)))
        return "No"

    result = await workflow(ASK).asolve("?", human=human)
    assert asked == [("Is 7 right?", ("yes", "no"))]
    assert result.diagnostics["verified"] is False


async def test_where_nobody_is_there_the_run_waits_and_repeats_nothing(tmp_path: Path) -> None:
    store = Runs(tmp_path)
    waiting = await workflow(ASK).asolve("?", store=store)
    assert waiting.diagnostics["stopped"] == "waits for an answer to: Is 7 right?"
    assert not waiting.complete
    run = store.open("last")
    assert run.result is None

    async def human(question: str, choices: Any) -> str:
        return "yes"

    events: list[Event] = []
    result = await workflow(ASK).asolve("?", run=run, human=human, observers=[events.append])
    assert (result.answer, result.diagnostics["verified"]) == ("7", True)
    assert [call.replayed for call in calls(events)] == [True, False]


CALL = """
pipeline:
  - solve: {strategy: chain_of_thought}
  - call: double
"""


async def test_a_function_of_the_users_changes_the_answer_once_in_a_run(tmp_path: Path) -> None:
    count = []

    def double(state: dict[str, Any]) -> dict[str, Any]:
        count.append(state)
        return {"answer": int(state["answer"]) * 2}

    store = Runs(tmp_path)
    flow = workflow(CALL, functions={"double": double})
    assert (await flow.asolve("?", store=store)).answer == 14
    assert (await flow.asolve("?", run=store.open("last"))).answer == 14
    assert len(count) == 1
    assert count[0]["question"] == "?"


async def test_a_function_that_fails_ends_the_run_which_goes_on_once_it_is_mended(tmp_path: Path) -> None:
    def broken(state: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("x")

    store = Runs(tmp_path)
    with pytest.raises(AbduceError, match="The function 'double' failed: KeyError: 'x'"):
        await workflow(CALL, functions={"double": broken}).asolve("?", store=store)
    events: list[Event] = []
    mended = workflow(CALL, functions={"double": lambda state: {"answer": 1}})
    result = await mended.asolve("?", run=store.open("last"), observers=[events.append])
    assert result.answer == 1
    assert [call.replayed for call in calls(events)] == [True, False]


@pytest.mark.parametrize(("returned", "said"), [(3, "returned 3"), ({"x": 1}, r"returned \['x'\]")])
async def test_a_function_that_returns_something_else_is_told_what_to_return(returned, said) -> None:
    flow = workflow(CALL, functions={"double": lambda state: returned})
    with pytest.raises(AbduceError, match=f"{said}. Return a mapping of some of: answer, hints"):
        await flow.asolve("?")


def test_a_function_that_nobody_gave() -> None:
    with pytest.raises(UsageError, match="No function named 'double'"):
        workflow(CALL)


def test_a_recipe_says_no_path_for_its_memory() -> None:
    with pytest.raises(UsageError, match="must be the name of a file"):
        workflow("memory: {store: ../../x.db}\npipeline: [recall, {solve: {strategy: chain_of_thought}}]")


async def test_what_is_remembered_is_recalled_in_a_later_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path))
    steps = """
memory: {store: m.db}
pipeline:
  - recall
  - solve: {strategy: chain_of_thought}
  - remember: {when: always}
"""
    events: list[Event] = []
    await workflow(steps).asolve("How many dwarfs?")
    await workflow(steps).asolve("Which dwarfs?", observers=[events.append])
    recalled = next(event for event in events if isinstance(event, NodeEnded))
    assert recalled.update["notes"] == ['"How many dwarfs? Answer: 7"']
    assert len(recalled.update["recalled"]) == 1
    prompt = calls(events)[1].request.prompt.messages[-1].content
    assert '- "How many dwarfs? Answer: 7"\n\nWhich dwarfs?' in prompt


async def test_the_gate_holds_every_node() -> None:
    held: list[int] = []

    async def gate(path: trace.Path, batch: Any) -> None:
        held.append(path[0])

    await workflow(RETRY).asolve(RIGHT, gate=gate)
    assert set(held) == {0}  # verifying by checks asks nothing


@pytest.mark.parametrize(
    ("when", "state", "held"),
    [
        (When(), {}, True),
        (When(verified=False), {}, True),
        (When(verified=True), {"verified": None}, False),
        (When(route="a"), {"route": "a"}, True),
        (When(route="a", answered=True), {"route": "a"}, False),
        (When(score=Bound(at_least=0.5)), {"score": None}, False),
        (When(score=Bound(at_least=0.5)), {"score": 0.5}, True),
        (When(said="Yes"), {"said": " yes "}, True),
        (When(complete=False), {}, False),
    ],
)
def test_conditions(when: When, state: Progress, held: bool) -> None:
    assert holds(when, state) == held


def test_a_drawing_shows_the_human_only_where_one_may_be_asked() -> None:
    assert "human" in compile_graph(workflow(ASK)).get_graph().draw_mermaid()
    mermaid = compile_graph(workflow(RETRY)).get_graph().draw_mermaid()
    assert "human" not in mermaid
    assert "if not verified, at most 2 times" in mermaid


async def test_time_between_steps_is_part_of_the_budget() -> None:
    slow = 'model: {engine: scripted, replies: {"": "The answer is 7."}, latency_s: 0.15}\n'
    flow = workflow("budget: {seconds: 0.4}\n" + RETRY.replace("2", "9"), model=slow)
    assert flow.budget == Budget(seconds=0.4)
    result = await flow.asolve(WRONG)
    assert not result.complete
    assert 2 <= result.usage.calls <= 3


async def test_a_plain_function_may_speak_for_the_human() -> None:
    result = await workflow(ASK).asolve("?", human=lambda question, choices: choices[0])  # type: ignore
    assert result.diagnostics["verified"] is True


@pytest.mark.parametrize(
    ("human", "told"),
    [
        (5, "The human could not be asked: TypeError"),
        (lambda question: "yes", "The human could not be asked: TypeError"),
        (lambda question, choices: 5, "The human answered 5. Answer with text."),
    ],
)
async def test_a_mistake_in_who_speaks_for_the_human_is_told(tmp_path, human, told) -> None:
    store = Runs(tmp_path)
    with pytest.raises(AbduceError, match=told):
        await workflow(ASK).asolve("?", human=human, store=store)
    result = await workflow(ASK).asolve("?", human=lambda *_: "yes", run=store.open("last"))  # type: ignore
    assert result.complete


@pytest.mark.parametrize("wrong", [{"store": "runs"}, {"run": "last"}])
async def test_a_name_is_no_store_and_no_run(wrong) -> None:
    with pytest.raises(UsageError, match=r"abduce.Runs\('runs'\)|store.open\('last'\)"):
        await workflow(ASK).asolve("?", **wrong)


async def test_a_function_cannot_verify_with_a_word() -> None:
    flow = workflow(CALL, functions={"double": lambda state: {"verified": "no"}})
    with pytest.raises(AbduceError, match=r"returned verified='no'. Write True, False or None"):
        await flow.asolve("?")


def test_a_function_that_is_missing_is_told_how_to_be_given() -> None:
    with pytest.raises(UsageError, match=r"Known: none. Give it: abduce.load\(…, functions="):
        workflow(CALL)
