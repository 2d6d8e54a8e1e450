"""At which events a run stops."""

import pytest

from abduce.orchestrator.repl.breakpoints import EVENTS, breakpoint_on
from abduce.orchestrator.search_view import SearchView
from abduce.orchestrator.trace import Called, Exhausted, NodeStarted, Noted
from abduce.serving.errors import UsageError
from abduce.serving.flow import CallTool, Failure, Generate, Prompt, Usage


def nodes(*terminal, depth=1):
    rows = [
        {"id": i, "parent": None, "depth": depth, "text": "x", "score": None, "terminal": each}
        for i, each in enumerate(terminal, 1)
    ]
    return Noted((0, 0), "nodes", {"nodes": rows}, 0.0)


def scores(*values):
    return Noted((1, 0), "scores", {"scores": {str(i): value for i, value in enumerate(values)}}, 0.0)


def called(request, reply):
    return Called((0, 0), request, reply, Usage(output_tokens=10, calls=1), 0.0, 0.1)


ASKED = called(Generate(Prompt.user("x")), ())


@pytest.mark.parametrize(
    ("text", "event", "other"),
    [
        ("score >= 0.8", scores(0.1, 0.8), scores(0.1, 0.79)),
        ("score<0.2", scores(0.9, 0.1), scores(0.2)),
        ("depth > 2", nodes(False, depth=3), nodes(False, depth=2)),
        ("finished", nodes(False, True), nodes(False)),
        ("failure", called(Generate(Prompt.user("x")), Failure("engine", "no")), ASKED),
        ("generate", ASKED, scores(1.0)),
        ("tool", called(CallTool("calculator", {}), None), ASKED),
        ("resample", Noted((0, 0), "resample", {}, 0.0), scores(1.0)),
        ("exhausted", Exhausted((0,), "budget", 0.0), ASKED),
        ("node", NodeStarted((0,), "verify", "verify", 0.0), ASKED),
        ("verify", NodeStarted((0,), "verify", "verify", 0.0), NodeStarted((0,), "solve", "solve", 0.0)),
    ],
)
def test_a_condition_holds_for_its_events_alone(text, event, other):
    test = breakpoint_on(text, ("verify", "solve"))
    assert test.holds(event, SearchView(), 0)
    assert not test.holds(other, SearchView(), 0)
    assert not test.lasts


@pytest.mark.parametrize("text", ["tokens >= 10", "calls == 1", "steps > 3"])
def test_amounts_last(text):
    view = SearchView()
    test = breakpoint_on(text)
    assert test.lasts
    assert not test.holds(ASKED, view, 0)
    view(ASKED)
    assert test.holds(ASKED, view, 4)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("scor > 1", "Did you mean 'score'"),
        ("resampel", "Did you mean 'resample'"),
        ("score > high", "'high' is no number"),
        ("", "Nothing to stop at"),
    ],
)
def test_what_is_no_condition_is_told(text, told):
    with pytest.raises(UsageError, match=told):
        breakpoint_on(text)


def test_every_kind_of_event_can_be_named():
    for kind in EVENTS:
        assert breakpoint_on(kind).text == kind
