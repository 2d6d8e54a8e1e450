import re

import pytest

from abduce.serving.errors import UnknownName, UsageError
from abduce.serving.flow import CallTool, Failure, ToolResult
from abduce.strategies.base import Check, Task
from abduce.strategies.rewards.checks import CHECKS, Checks, passes, program
from abduce.tools.python import ENDED, run_python

IS_56 = Check("numeric", {"value": 56})
NO_COMMA = Check("punctuation:no_comma")


def test_finished_solutions_get_their_share_and_partial_ones_the_benefit_of_doubt(sent, solved, policy):
    checks = (IS_56, NO_COMMA)
    states = [
        solved("so 56", checks=checks),
        solved("well, 56", checks=checks),
        solved("well, 57", checks=checks),
        solved("well, ", checks=checks, last=False),
    ]
    batches, scores = sent(Checks(policy=policy).score(states))
    assert batches == []
    assert scores == [1.0, 0.5, 0.0, 1.0]
    _, scores = sent(Checks(policy=policy, all_or_nothing=True).score(states))
    assert scores == [1.0, 0.0, 0.0, 1.0]


def test_loose_reading_is_for_ifeval_checks(sent, solved, policy):
    state = solved("Sure, here it is:\nfifty six", checks=[NO_COMMA])
    assert sent(Checks(policy=policy).score([state]))[1] == [0.0]
    assert sent(Checks(policy=policy, loose=True).score([state]))[1] == [1.0]


def test_a_task_without_checks_says_how_to_write_them(solved, policy):
    with pytest.raises(UsageError, match=re.escape("Check('numeric', {'value': 56})")):
        next(Checks(policy=policy).score([solved("56")]))


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (Check("numerik", {"value": 1}), "Did you mean 'numeric'"),
        (Check("numeric", {}), "lacks 'value'"),
        (Check("numeric", {"value": "seven"}), "must be a number"),
        (Check("numeric", {"value": 7, "tol": 1}), "does not take 'tol'"),
        (Check("regex", {"pattern": "("}), "not a regular expression"),
        (Check("regex", {"pattern": r"(a)\1"}), "bounded time"),
        (Check("length_constraints:number_words", {"num_words": 3}), "lacks 'relation'"),
        (Check("unit_tests", {"tests": "x", "entry_point": "f()"}), "function's name"),
    ],
)
def test_mistakes_are_told_before_anything_is_finished(solved, policy, check, told):
    with pytest.raises((UsageError, UnknownName), match=told):
        next(Checks(policy=policy).score([solved("a", last=False, checks=[check])]))


@pytest.mark.parametrize(
    ("check", "answer", "text", "met"),
    [
        (IS_56, "56", "", True),
        (IS_56, "57", "56", False),
        (IS_56, None, "56", False),
        (Check("numeric", {"value": "1/2"}), "0.5", "", True),
        (Check("numeric", {"value": 0.1}), "1/10", "", True),
        (Check("numeric", {"value": 3.14, "tolerance": 0.01}), "3.1416", "", True),
        (Check("numeric", {"value": 3.14, "tolerance": 0.001}), "3.1416", "", False),
        (Check("equals", {"value": "Paris"}), "paris", "", True),
        (Check("equals", {"value": "Paris"}), "London", "", False),
        (Check("equals", {"value": 0.5}), "1/2", "", True),
        (Check("equals", {"value": ""}), None, "", False),
        (Check("regex", {"pattern": r"^def \w+\("}), None, "def f(x):", True),
        (Check("regex", {"pattern": r"^def \w+\("}), "def f(", "class A:", False),
        (Check("choice", {"value": "B"}), "B", "", True),
        (Check("choice", {"value": "blue"}), "B", "", True),
        (Check("choice", {"value": "A"}), "B", "", False),
        (Check("choice", {"value": "A"}), None, "A", False),
    ],
)
def test_passes(check, answer, text, met):
    assert passes(Task("q", choices=("red", "blue"), checks=(check,)), answer, text) is met


# ---------------------------------------------------------------- unit tests

ADDS = Check(
    "unit_tests",
    {
        "tests": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
        "entry_point": "add",
        "prefix": "def add(a, b):\n",
    },
)
RIGHT = "Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."


@pytest.mark.parametrize(
    ("text", "met"),
    [
        (RIGHT, True),
        (RIGHT + "\nUse it so:\n```python\nprint(add(1, 2))\n```\nIt prints\n```\n3 apples\n```", True),
        ("    return a + b\n", True),
        ("```\ndef add(a, b):\n    return a - b\n```", False),
        ("```python\nimport sys\nsys.exit(0)\n```", False),
        ("```python\nprint('passed')\nraise SystemExit\n```", False),
        ("I cannot do that.", False),
        ("```python\ndef add(a, b):\n    return a + b", True),
    ],
)
def test_code_is_run_against_its_tests(text, met):
    assert passes(Task("q", checks=(ADDS,)), None, text) is met


def test_the_reward_asks_for_the_tool(sent, solved, policy):
    states = [
        solved(RIGHT, checks=[ADDS]),
        solved("wrong", checks=[ADDS]),
        solved("part", checks=[ADDS], last=False),
    ]
    flow = Checks(policy=policy).score(states)
    batch = next(flow)
    assert batch == [CallTool("python", {"code": program(ADDS, state.text)}) for state in states[:2]]
    with pytest.raises(StopIteration) as end:
        flow.send([run_python(call.arguments["code"]) for call in batch])
    assert end.value.value == [1.0, 0.0, 1.0]


def test_a_tool_that_is_not_there_is_a_failure_and_a_killed_program_is_not(sent, solved, policy):
    replies = [
        ToolResult("No tool named 'python'. Known: none.", ok=False),
        Failure("tool", "lost"),
        ToolResult(f"{ENDED}stopped after 10 s]", ok=False),
    ]
    states = [solved(f"{i}", checks=[ADDS]) for i in range(3)]
    _, scores = sent(Checks(policy=policy).score(states), replies)
    assert [type(score) for score in scores] == [Failure, Failure, float]
    assert "do the tools include python" in scores[0].message
    assert scores[2] == 0.0


def test_all_ids_are_known():
    assert len(CHECKS) == 5 + 25
