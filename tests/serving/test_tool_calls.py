import json
import time
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abduce.serving import loose_json
from abduce.serving.flow import ToolCall, ToolSpec
from abduce.serving.tool_calls import inert, read, write

ADD = ToolSpec("add", parameters={"properties": {"a": {}, "b": {}}, "required": ["a", "b"]})
SEARCH = ToolSpec("search", parameters={"properties": {"query": {"type": "string"}}, "required": ["query"]})
OFFERED = (ADD, SEARCH)

FORMS = {
    "hermes": '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>',
    "hermes unclosed": 'Sure.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}',
    "qwen, one after the other": '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}\n<tool_call>',
    "openai": '{"tool_calls": [{"id": "x", "type": "function", "function": '
    '{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}}]}',
    "openai list": '[{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}]',
    "legacy openai": '{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}',
    "llama 3": '{"name": "add", "parameters": {"a": 1, "b": 2}}',
    "llama 3, python tag": '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": 2}}<|eom_id|>',
    "llama 3, custom": '<function=add>{"a": 1, "b": 2}</function>',
    "code fence": 'I will add.\n```json\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n```',
    "react": 'Thought: a sum.\nAction: add\nAction Input: {"a": 1, "b": 2}\nObservation: made up',
    "react, bold": "**Action:** add\n**Action Input:** ```{'a': 1, 'b': 2}```",
    "langchain": '```\n{"action": "add", "action_input": {"a": 1, "b": 2}}\n```',
}

DEFECTS = {
    "trailing commas": '{"name": "add", "arguments": {"a": 1, "b": 2,},}',
    "single quotes": "{'name': 'add', 'arguments': {'a': 1, 'b': 2}}",
    "curly quotes": "{“name”: “add”, “arguments”: {“a”: 1, “b”: 2}}",
    "unclosed": '{"name": "add", "arguments": {"a": 1, "b": 2',
    "closed too often": '{"name": "add", "arguments": {"a": 1, "b": 2}}}}',
    "bare keys": '{name: "add", arguments: {a: 1, b: 2}}',
    "missing comma": '{"name": "add" "arguments": {"a": 1 "b": 2}}',
    "comments": '{"name": "add", // sum\n "arguments": {"a": 1, /* and */ "b": 2}}',
    "fence within": '```json\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n```',
    "plus and underscore": '{"name": "add", "arguments": {"a": +1, "b": 2}}',
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_every_form_is_read_alike(text):
    _, calls = read(text, OFFERED)
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("add", {"a": 1, "b": 2})]


@pytest.mark.parametrize("text", DEFECTS.values(), ids=DEFECTS)
@pytest.mark.parametrize("form", ["<tool_call>\n{}\n</tool_call>", "I add.\n{}"])
def test_small_defects_are_mended(text, form):
    _, calls = read(form.replace("{}", text), OFFERED)
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("add", {"a": 1, "b": 2})]


def test_the_text_around_calls_stays():
    rest, calls = read('Let me look.\n{"name": "search", "parameters": {"query": "x"}}\nThen more.', OFFERED)
    assert rest.split() == ["Let", "me", "look.", "Then", "more."] and len(calls) == 1
    rest, calls = read("Thought: hm.\nAction: search[Oslo]\nObservation: a lie", OFFERED)
    assert rest == "Thought: hm." and json.loads(calls[0].arguments) == {"query": "Oslo"}


def test_several_calls_keep_their_order():
    text = '{"name": "add", "parameters": {"a": 1, "b": 2}}; {"name": "search", "parameters": {"query": "x"}}'
    assert [call.name for call in read(text, OFFERED)[1]] == ["add", "search"]
    both = json.dumps([{"name": "add", "arguments": {}}, {"name": "search", "arguments": {}}])
    assert [call.name for call in read(f"<tool_call>{both}</tool_call>")[1]] == ["add", "search"]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bob", "parameters": {"age": 3}}',  # an answer in JSON
        "Action: think\nAction Input: hard",
        "<function=delete>{}</function>",
        'The function {"function": "sub"} is not offered.',
        "f(x) = {x: x > 3}",
        "",
    ],
)
def test_what_names_no_offered_tool_is_text(text):
    assert read(text, OFFERED) == (text, ())


def test_without_offered_tools_only_blocks_are_calls():
    text = FORMS["llama 3"]
    assert read(text) == (text, ())


def test_what_is_written_is_read():
    calls = (ToolCall("", "add", '{"a": "<tool_call>"}'), ToolCall("", "search", '{"query": "Ö\\n"}'))
    again = read(write(calls[1:]), OFFERED)[1]
    assert [(c.name, json.loads(c.arguments)) for c in again] == [("search", {"query": "Ö\n"})]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=150, deadline=None)
def test_sound_json_means_what_it_meant(value):
    assert loose_json.loads(json.dumps(value)) == value
    told, end = loose_json.value_at(json.dumps(value) + " and so on", 0)
    assert told == value and end <= len(json.dumps(value)) + 1


@given(st.dictionaries(st.text("abc_xyz", min_size=1), JSON, max_size=4), st.data())
@settings(max_examples=150, deadline=None)
def test_cut_off_anywhere_it_keeps_what_was_whole(value, data):
    text = json.dumps(value)
    cut = text[: data.draw(st.integers(1, len(text)))]
    told = loose_json.loads(cut) if _readable(cut) else {}
    assert list(told) == list(value)[: len(told)]
    for key in list(told)[:-1]:
        assert told[key] == value[key]


def _readable(text):
    try:
        loose_json.loads(text)
    except ValueError:  # it ends within a number or a word
        return False
    return True


PIECES = st.lists(
    st.sampled_from(
        [
            *FORMS.values(), *DEFECTS.values(),
            "<tool_call>", "</tool_call>", "{", "}", "[", "]", '"', "'", ",", ":", "\\", "\\u12", "```", "\n",
            "Action: add", "Action Input:", "<function=add>", "</function>", "null", "-", "1e999", "#", "/*",
            "\ud800",
        ]
    )
    | st.text(max_size=8),
    max_size=14,
).map("".join)  # fmt: skip


@given(PIECES)
@settings(max_examples=500, deadline=None)
def test_any_text_is_read_without_a_fault(text):
    rest, calls = read(text, OFFERED)
    assert isinstance(rest, str) and (calls or rest == text)
    for i, call in enumerate(calls):
        assert call.id == f"call_{i}" and call.name and isinstance(call.arguments, str)
    with suppress(ValueError):
        loose_json.loads(text)


@given(st.sampled_from([*FORMS.values()]), st.data())
@settings(max_examples=600, deadline=None)
def test_a_damaged_call_is_a_call_or_text_and_never_a_fault(form, data):
    at = data.draw(st.integers(0, len(form) - 1))
    damage = data.draw(st.sampled_from(["", '"', "'", "{", "}", "\\", ",", "\n", "\x00"]))
    _, calls = read(form[:at] + damage + form[at + 1 :], OFFERED)
    assert all(isinstance(call.name, str) for call in calls)


def test_deep_and_long_texts_take_no_time():
    for text in (
        "[" * 100_000,
        "{" * 100_000,
        '{"a":' * 50_000,
        "Action: add\n" * 5_000,
        "<tool_call>" * 5_000,
    ):
        began = time.thread_time()
        read(text, OFFERED)
        assert time.thread_time() - began < 2


@given(PIECES)
@settings(max_examples=200, deadline=None)
def test_in_a_text_made_inert_nothing_is_a_call(text):
    plain = inert(text)
    assert inert(plain) == plain and len(plain) == len(text)
    assert read(plain)[1] == ()


@pytest.mark.parametrize(
    "markup",
    [
        "<|im_start|>system", "<|eot_id|>", "<tool_call>", "</tool_response>", "[INST]", "<s>", "<<SYS>>",
        "<start_of_turn>", "<think>", "<function=rm>", "<｜User｜>", "[/INST]", "<TOOL_CALL>",
    ],
)  # fmt: skip
def test_markup_of_chat_templates_is_made_text(markup):
    assert markup not in inert(f"a {markup} b") and inert("a < b [x] <p>") == "a < b [x] <p>"
