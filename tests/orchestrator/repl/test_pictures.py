"""What is shown fits the screen, tells what happened, and shows text of models as text."""

import io

import orjson
import pytest
from rich.console import Console, Group
from talking import shown

from abduce.orchestrator.codec import dumps
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.repl.branch import Branch, letters
from abduce.orchestrator.repl.pictures import MARKS, ascii_only, call_line, ending, pane
from abduce.orchestrator.trace import Called, NodeEnded, NodeStarted, Noted, RunEnded, RunStarted, row
from abduce.serving.entries import Entry, Match
from abduce.serving.flow import (
    Ask,
    CallTool,
    Completion,
    Failure,
    Generate,
    Hidden,
    LogLikelihood,
    LogProb,
    Prompt,
    Rate,
    Recall,
    Remember,
    ToolResult,
    Usage,
)

PROMPT = Prompt.user("What is 24 x 3?")
EVIL = "[red]x[/red]\x1b[2J\r\u202e\n\n"


def called(request, reply, t=1.0):
    tool_calls = int(type(request) is CallTool)
    return Called((0, 0), request, reply, Usage(10, 0, 5, 1, 0, tool_calls), t, 0.25)


def nodes(n, text="step"):
    rows = [
        {
            "id": i,
            "parent": i - 1 or None,
            "depth": i,
            "text": f"{text} {i}",
            "score": i / n,
            "terminal": i == n,
        }
        for i in range(1, n + 1)
    ]
    return Noted((1, 0), "nodes", {"nodes": rows}, 1.0)


def branch_of(*events, **more):
    branch = Branch("A", "run-1", {"recipe": {"strategy": {"name": "a_star", "k": 3}}}, **more)
    for event in (RunStarted("run-1", "24 x 3", 0), *events):
        branch(event)
    return branch


@pytest.mark.parametrize(
    ("request_", "reply", "told"),
    [
        (Generate(PROMPT, n=2), (Completion("72"), Completion("")), "×2 → 72 │ (end)"),
        (Generate(PROMPT), Failure("engine", "no server"), "no server"),
        (LogProb(PROMPT, "72"), LogLikelihood((-0.5, -1.5)), "log-prob"),
        (Hidden(PROMPT), (0.1, 0.2), "hidden"),
        (Rate(PROMPT), 0.75, "→ 0.750"),
        (
            CallTool("calculator", {"expression": "24*3"}),
            ToolResult("72"),
            "calculator(expression=24*3) → 72",
        ),
        (Recall("products", 4), (Match(Entry("one", "1"), 1.0, ""),), "recall"),
        (Remember((Entry("product", "24 x 3 = 72"),)), 1, "remember"),
        (Ask("Right?", ("yes",)), "yes", "Right? → yes"),
    ],
)
def test_a_call_is_told_in_one_line(request_, reply, told):
    line = call_line(orjson.loads(dumps(row(called(request_, reply)))))
    assert told in line.plain
    assert "0.25 s" in line.plain
    assert line.plain.isprintable()


@pytest.mark.parametrize("width", [20, 40, 100])
@pytest.mark.parametrize("height", [8, 16, 40])
@pytest.mark.parametrize("n", [0, 3, 300])
def test_the_live_picture_fits(n, height, width):
    tool = called(CallTool("python", {"code": "print(72)" * 30}), ToolResult("72" * 100))
    branch = branch_of(NodeStarted((0,), "solve", "solve", 0.0), nodes(n) if n else tool, tool)
    parts = pane(branch, Budget(tokens=1000, seconds=60), height=height, width=width, hint="Ctrl-C pauses")
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None).print(Group(*parts))
    lines = out.getvalue().splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    if width >= 40:
        assert len(lines) <= height
        assert "python(code=" in out.getvalue()


def test_what_a_model_writes_cannot_draw_on_the_screen():
    branch = branch_of(nodes(2, EVIL), called(Generate(Prompt.user(EVIL)), (Completion(EVIL),)))
    branch(called(CallTool(EVIL, {EVIL: EVIL}), ToolResult(EVIL)))
    branch(RunEnded(EVIL, False, Usage(), 2.0, {"stopped": EVIL}))
    branch.state = "ended"
    told = shown(*pane(branch, Budget(), height=20, width=100), ending(branch))
    assert "[red]x[/red]" in told
    assert not {"\x1b", "\r", "\u202e"} & set(told)


@pytest.mark.parametrize("state", MARKS)
def test_each_state_is_told(state):
    branch = branch_of()
    branch.state, branch.why = state, "because"
    told = shown(ending(branch))
    assert MARKS[state][0] in told
    assert "A " in told


def test_visits_of_nodes_are_shown_in_order():
    branch = branch_of(
        NodeStarted((0,), "recall", "recall", 0.0),
        NodeEnded((0, 1), "recall", "recall", {}, 0.1),
        NodeStarted((1,), "solve", "solve", 0.1),
    )
    assert "recall → solve" in shown(*pane(branch, Budget(), height=20, width=100))


def test_a_run_that_goes_on_from_a_visit_keeps_what_was_before():
    first = (
        NodeStarted((0,), "a", "solve", 0.0),
        called(Rate(PROMPT), 0.5),
        NodeEnded((0, 1), "a", "solve", {}, 1),
    )
    first[1].path = (0, 0, 0)
    branch = branch_of(*first)
    branch.mark()
    before = branch.rows()
    branch.begin_again()
    branch(RunStarted("run-1", "24 x 3", 0))
    branch(NodeStarted((1,), "b", "solve", 1.0))
    assert branch.rows()[:-1] == before
    assert branch.steps == 1
    assert branch.view.usage.calls == 1


def test_names_never_end():
    names = letters()
    found = [next(names) for _ in range(60)]
    assert found[:2] == ["A", "B"]
    assert found[26] == "A1"
    assert len(set(found)) == 60


def test_everything_has_an_ascii_form():
    assert ascii_only("├─ ✓ A▸ ‖ ☃").isascii()
