"""MAXS with tools: pure ones are run in the look-ahead, those with effects once they are committed to."""

import math

import pytest

from abduce.orchestrator.solve import build
from abduce.orchestrator.trace import Noted
from abduce.serving.errors import UsageError
from abduce.serving.scripted import Scripted
from abduce.strategies.maxs import MAXS
from abduce.strategies.policy import StepPolicy
from abduce.strategies.toys import ToyTree
from abduce.tools.base import tool

NEVER = -1.0

POLICY = StepPolicy(
    prompt="few_shot",
    chat=False,
    delimiter="\n",
    examples=(("2 x 2", "Action: double[2]\nObservation: 4\n4"),),
)


class Agent(Scripted):
    """Says lines by what stands in the text so far: {end of the text: lines that may follow}."""

    def __init__(self, lines, **options):
        def said(request, seed):
            text = request.prompt.prefix.rpartition("Answer:\n")[2]
            fitting = [follow for end, follow in lines.items() if text.endswith(end)]
            return fitting[-1] if text else lines[""]

        super().__init__(said, **options)


def counting(effect):
    called = []

    @tool(effect=effect)
    def double(x: int) -> int:
        """Twice a number."""
        called.append(x)
        return 2 * x

    return double, called


LINES = {
    "": ["Action: double[3]\n", "I think.\n", "Action: double[3]\n", "It is hard.\n"],
    "Observation: 6\n": ["The answer is 6.\n"],
    "think.\n": ["The answer is 5.\n"],
    "hard.\n": ["Action: double[3]\n"],
}


async def acted(effect, lines=LINES, **parameters):
    double, called = counting(effect)
    events = []
    pipeline = build(
        strategy=MAXS(policy=POLICY, **{"delta": NEVER, **parameters}), model=Agent(lines), tools=[double]
    )
    result = await pipeline.asolve("3 x 2", observers=[events.append])
    return result, called, [e.data for e in events if isinstance(e, Noted) and e.note == "maxs"]


async def test_a_pure_tool_is_run_in_the_look_ahead_and_once_for_equal_calls():
    result, called, [first, *_] = await acted("pure")
    assert called == [3]
    assert [candidate["calls"] for candidate in first["candidates"]] == [
        ["double"],
        [],
        ["double"],
        ["double"],
    ]
    assert [candidate["N"] for candidate in first["candidates"]] == [[1], [1], [1], [2]]
    assert result.diagnostics["tool_advantage"][0] is not None
    assert result.complete


@pytest.mark.parametrize("effect", ["once", "idempotent"])
async def test_a_tool_with_effects_is_run_when_its_step_is_committed_to_and_not_before(effect):
    lines = {"": ["Action: double[3]\n", "Action: double[4]\n"], "Observation: 6\n": ["The answer is 6.\n"]}
    lines["Observation: 8\n"] = ["The answer is 8.\n"]
    result, called, [first, *_] = await acted(effect, lines)
    assert [candidate["N"] for candidate in first["candidates"]] == [[0]] * 4  # cut there
    assert len(called) == 1
    assert result.answer == str(2 * called[0])
    assert f"Observation: {2 * called[0]}\n" in result.text


async def test_where_look_ahead_stops_at_a_call_with_effects_it_is_run_once():
    lines = {
        "": ["First this.\n", "First that.\n"],
        "this.\n": ["Action: double[3]\n"],
        "that.\n": ["Action: double[3]\n"],
        "Observation: 6\n": ["The answer is 6.\n"],
    }
    result, called, _ = await acted("once", lines, delta=1.0)
    assert (called, result.answer, result.diagnostics["halted"]) == ([3], "6", True)


async def test_a_branch_goes_on_in_the_state_its_own_programs_left(monkeypatch):
    monkeypatch.setenv("ABDUCE_SANDBOX", "unsafe")  # whether there are walls is not the question here
    lines = {
        "": ["Action: python[x = 6]\n", "Action: python[x = 1]\n"],
        "printed)\n": ["Action: python[print(x * 7)]\n"],
        "Observation: 42\n": ["The answer is 42.\n"],
        "Observation: 7\n": ["The answer is 7.\n"],
    }
    pipeline = build(strategy=MAXS(policy=POLICY, delta=NEVER), model=Agent(lines), tools=["python"])
    result = await pipeline.asolve("7 x")
    assert result.answer == ("42" if "x = 6" in result.text else "7")
    assert "Error" not in result.text


async def test_results_have_no_log_probability_of_their_own():
    _, _, [first, *_] = await acted("pure")
    # Every token of the script has probability 1/2, those of results none.
    assert {round(candidate["F"], 9) for candidate in first["candidates"]} == {round(math.log(0.5), 9)}


async def test_with_tools_the_policy_must_be_one_that_can_offer_them():
    double, _ = counting("pure")
    pipeline = build(strategy=MAXS(policy=ToyTree(2, 3, seed=0)), model=Scripted("x"), tools=[double])
    with pytest.raises(UsageError, match="cannot call tools"):
        await pipeline.asolve("3 x 2")
