"""From a call that a model wrote to the result that it reads."""

import pytest

from abduce.serving.flow import CallTool, Failure, ToolCall, ToolResult, ToolSpec
from abduce.strategies.calls import key, quoted, request, run, shown


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
