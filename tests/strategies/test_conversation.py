"""Nothing of a caller's conversation is lost on its way through any strategy."""

import json

import pytest

from abduce.orchestrator.solve import build
from abduce.orchestrator.trace import Called
from abduce.serving.constraints import Choices, JsonSchema, Regex
from abduce.serving.errors import MissingCapability, UsageError
from abduce.serving.flow import Generate, Message, Rate, ToolCall, ToolSpec
from abduce.serving.scripted import Scripted
from abduce.strategies import STRATEGIES, strategy
from abduce.strategies.base import State, Step, Task
from abduce.strategies.conversation import canonical, told
from abduce.strategies.policy import POLICIES, policy
from abduce.strategies.rewards import reward

ADD = ToolSpec("add", "Adds.", {"type": "object", "properties": {"a": {"type": "integer"}}})
CALL = ToolCall("call_0", "add", '{"a": 1}')
TALK = (
    Message("system", "Be brief."),
    Message("user", "Add 1 and 2."),
    Message("assistant", "", (CALL,)),
    Message("tool", "3", (), "call_0"),
    Message("assistant", "3"),
    Message("user", "And twice that?"),
)
AGAIN = (*TALK, Message("assistant", "", (CALL,)), Message("tool", "6", (), "call_0"))
SCHEMA = JsonSchema({"type": "object", "properties": {"n": {"type": "integer"}}})
NAMES = sorted(STRATEGIES)
NO_CALLS = ["drag", "hogwild", "iterdrag", "rag"]
NO_FORM = ["hogwild", "iterdrag"]
KEEPING = sorted({*NAMES} - {*NO_FORM})
OWN_WORDS = ["drag", "rag", "revision"]  # ask for a version, or from documents


class Able(Scripted):
    """A script that can hold itself to any form, and rate."""

    def __init__(self, replies):
        super().__init__(replies, rate=lambda request: 0.5, logprob=lambda request: -1.0, ids=True)
        vars(self)["capabilities"] = self.capabilities | {"constraint", "json_schema"}


def pipeline(name, engine, preset="cot"):
    own = strategy(name).__dataclass_fields__
    given = {"kind": "rate", "squash": "none"} if "reward" in own else None
    return build(strategy=name, policy=preset, reward=given, model=engine)


async def asked(name, task, reply, preset="cot"):
    """The result, and every request for text or a score."""
    events = []
    result = await pipeline(name, Able(reply), preset).asolve(task, observers=[events.append])
    calls = [event.request for event in events if isinstance(event, Called)]
    drawn = [r for r in calls if isinstance(r, Generate)]
    assert drawn
    return result, [r for r in drawn if r.model == "policy"], calls


@pytest.mark.parametrize("name", NO_CALLS)
async def test_a_strategy_that_writes_no_calls_refuses_tools(name):
    with pytest.raises(UsageError, match="another strategy for"):
        await pipeline(name, Able("56")).asolve(Task("Twice 3?", offers=(ADD,)))


@pytest.mark.parametrize("name", NO_FORM)
async def test_a_strategy_that_keeps_no_form_refuses_one(name):
    with pytest.raises(UsageError, match="another strategy"):
        await pipeline(name, Able("56")).asolve(Task("Twice 3?", constraint=SCHEMA))


@pytest.mark.parametrize("preset", ["cot", "few_shot", "product"])
@pytest.mark.parametrize("name", sorted({*NAMES} - {*NO_CALLS}))
async def test_tools_and_all_turns_reach_the_engine_in_every_strategy(name, preset):
    task = Task("And twice that?", messages=AGAIN, offers=(ADD,), extra={"vendor": 1})
    written = '<tool_call>\n{"arguments": {"a": 3},\n\n "name": "add"}\n</tool_call>'
    result, drawn, calls = await asked(name, task, written, preset)
    for request in drawn:
        said = request.prompt.messages
        assert request.prompt.tools == (ADD,) and request.extra == {"vendor": 1}
        assert [m.role for m in said] == [m.role for m in AGAIN]
        assert all(a == b for i, (a, b) in enumerate(zip(said, AGAIN, strict=True)) if i != 5)
        assert "And twice that?" in said[5].content
    for request in calls:
        if isinstance(request, Rate):
            assert [m.role for m in request.prompt.messages] == [m.role for m in AGAIN]
        elif getattr(request, "model", "policy") != "policy":
            assert "Be brief." in request.prompt.messages[0].content
            assert '"add"' in request.prompt.messages[0].content
    assert result.text == written
    assert result.answer == '<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>'


@pytest.mark.parametrize("preset", ["cot", "few_shot", "product"])
@pytest.mark.parametrize("name", KEEPING)
async def test_a_demanded_form_reaches_the_engine_in_every_strategy_in_one_piece(name, preset):
    written = '{"n": 6,\n\n"Question:": 1}'  # holds every mark at which the presets stop
    result, drawn, _ = await asked(name, Task("Twice 3?", constraint=SCHEMA), written, preset)
    for request in drawn:
        assert request.constraint == SCHEMA
        assert request.sampling.stop == ()
        if name not in OWN_WORDS:
            assert request.prompt.messages[-1].content == "Twice 3?"
        assert request.prompt.prefix == ""
    assert result.text == written
    assert result.answer == '{"Question:": 1, "n": 6}'


@pytest.mark.parametrize("name", KEEPING)
async def test_votes_are_over_canonical_answers(name):
    texts = ['{"n": 1, "m": 2}', '{"m":2,"n":1}', '{"n": 7}']
    result, _, _ = await asked(name, Task("?", constraint=SCHEMA), lambda request, seed: texts)
    assert result.answer in {'{"m": 2, "n": 1}', '{"n": 7}'}


async def test_a_form_that_the_engine_cannot_keep_is_refused_before_anything_is_drawn():
    able = build(strategy="chain_of_thought", model=Scripted("{}"))
    with pytest.raises(MissingCapability, match="'scripted' cannot hold an answer to JSON"):
        await able.asolve(Task("?", constraint=SCHEMA))
    with pytest.raises(MissingCapability, match="to this form"):
        await able.asolve(Task("?", constraint=Regex("a+")))


async def test_an_answer_cut_for_length_is_no_answer_and_says_so():
    task = Task("?", constraint=SCHEMA, max_tokens=2)
    result, [*drawn], _ = await asked("chain_of_thought", task, '{"n": 1, "m": 2}')
    assert result.answer is None and result.diagnostics["cut"]
    assert {r.sampling.max_tokens for r in drawn} == {2}


@pytest.mark.parametrize("name", ["beam", "particle_filter", "best_of_n", "chain_of_thought"])
async def test_the_callers_stop_and_length_hold_whatever_the_steps(name):
    def steps(request, seed):
        return "one\n\nthe answer is 2 END three"[len(request.prompt.prefix) :]

    result, _, _ = await asked(name, Task("?", stop=("END",)), steps)
    assert result.text == "one\n\nthe answer is 2 "
    result, drawn, _ = await asked(name, Task("?", max_tokens=5), "a b c\n\n")
    assert max(r.sampling.max_tokens for r in drawn) == 5
    assert len(result.text.split()) <= 5


@pytest.mark.parametrize("kind", ["judge", "self_eval"])
def test_judges_read_the_whole_conversation(kind):
    task = Task("And twice that?", messages=TALK, offers=(ADD,), constraint=SCHEMA)
    state = State(task).extend(Step('{"n": 6}', last=True))
    [request, *_] = next(reward(kind, policy=policy("cot")).score([state]))
    read = request.prompt.messages[0].content
    for part in (
        "Be brief.",
        "Add 1 and 2.",
        "[tool] 3",
        "And twice that?",
        '"add"',
        '"integer"',
        '{"n": 6}',
    ):
        assert part in read
    assert read.count("And twice that?") == 1


def test_a_bare_question_is_told_as_it_is():
    assert told(Task("7 x 8 =")) == "7 x 8 ="


@pytest.mark.parametrize("preset", sorted(POLICIES))
def test_the_presets_system_message_yields_to_the_callers(preset):
    chosen = policy({"preset": preset, "chat": True, "system": "Ours."})
    assert chosen.prompt_for(State(Task("x", messages=TALK))).messages[0] == TALK[0]
    first = chosen.prompt_for(State(Task("x", messages=TALK[1:]))).messages[0]
    assert first == Message("system", "Ours.")


@pytest.mark.parametrize(
    ("constraint", "text", "answer"),
    [
        (SCHEMA, ' {"b": 1, "a": "ä"}\n', '{"a": "ä", "b": 1}'),
        (SCHEMA, '{"b": 1', None),
        (SCHEMA, "[" * 100_000, None),
        (Choices(("yes", "no")), " yes", "yes"),
        (SCHEMA * Regex(".*"), "[2,1]", "[2, 1]"),
        (Regex("a*"), "", None),
    ],
)
def test_canonical_answers(constraint, text, answer):
    assert canonical(Task("", constraint=constraint), text) == answer


def test_an_answer_in_words_counts_where_a_call_might_have_stood():
    task = Task("", offers=(ADD,))
    words = policy("cot").answer(State(task).extend(Step("I cannot add.", last=True)))
    assert words == "I cannot add."
    bad = '<tool_call>{"name": 3}</tool_call>'
    assert policy("plain").answer(State(task).extend(Step(bad, last=True))) == bad
    assert json.loads(canonical(Task("", constraint=SCHEMA), "{}")) == {}
