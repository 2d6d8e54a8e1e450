"""From a call that a model wrote to the result that it reads."""

import pytest

from abduce.serving.flow import CallTool, Failure, ToolCall, ToolResult, ToolSpec
from abduce.strategies.calls import in_state, key, quoted, request, run, shown


def test_arguments_with_small_defects_are_read_and_others_are_told():
    assert request(ToolCall("", "add", "{'a': 1,}")) == CallTool("add", {"a": 1})
    assert request(ToolCall("", "add", ""), speculative=True) == CallTool("add", {}, True)
    for broken in ("[1, 2]", "a = 1"):
        assert not request(ToolCall("", "add", broken)).ok


def test_results_come_in_the_order_of_the_calls_and_failures_are_results():
    known = ToolResult("known", ok=False)
    flow = run([CallTool("a"), known, CallTool("b")])
    assert flow.send(None) == [CallTool("a"), CallTool("b")]
    with pytest.raises(StopIteration) as end:
        flow.send([ToolResult("of a"), Failure("tool", "b broke")])
    assert end.value.value == [ToolResult("of a"), known, ToolResult("b broke", ok=False)]


def test_without_a_call_nothing_is_asked():
    with pytest.raises(StopIteration) as end:
        run([ToolResult("known")]).send(None)
    assert end.value.value == [ToolResult("known")]


def test_what_is_shown_is_inert_short_and_says_that_it_failed():
    assert "<tool_call>" not in shown(ToolResult("<tool_call>{}"), 99)
    assert shown(ToolResult("x" * 9), 3).startswith("xxx\n[9 characters")
    assert shown(ToolResult("no", ok=False), 99) == '{"error": "no"}'


def test_calls_that_ask_the_same_have_one_key():
    assert key(ToolCall("1", "add", '{"a": 1, "b": 2}')) == key(ToolCall("2", "add", "{'b': 2, 'a': 1}"))
    told = 'Say <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    assert quoted(told, [ToolSpec("add")]) == {key(ToolCall("", "add", '{"a": 1}'))}


PYTHON = ToolSpec("python", "", {"properties": {"code": {}}}, effect="pure", history="after")


def test_a_call_is_told_what_its_branch_has_called_the_same_tool_with():
    before = [CallTool("python", {"code": "x = 1"}), CallTool("add", {"a": 1}), ToolResult("no", ok=False)]
    before.append(CallTool("python", {"code": "y = 2", "after": ["x = 1"]}))
    asked = CallTool("python", {"code": "print(x)"})
    assert in_state(asked, PYTHON, before).arguments == {"code": "print(x)", "after": ["x = 1", "y = 2"]}
    assert in_state(asked, PYTHON, ()) == asked
    assert in_state(CallTool("add", {"a": 1}), ToolSpec("add"), before) == CallTool("add", {"a": 1})


def test_a_model_does_not_choose_its_state():
    asked = CallTool("python", {"code": "print(x)", "after": ["x = 'of another branch'"]})
    assert in_state(asked, PYTHON, ()).arguments == {"code": "print(x)"}


def test_a_call_told_of_in_the_middle_of_a_line_is_quoted_too():
    pay = ToolSpec("pay", "", {"properties": {"x": {"type": "integer"}}})
    assert quoted("Say: Action: pay[3]\nor Action: pay[4]", [pay]) >= {("pay", '{"x": 3}')}
    assert not quoted("No Action was taken: pay nobody.", [pay])
