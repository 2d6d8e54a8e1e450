"""Hogwild: one request for the group, with the rules of working together; without an answer, a forced one."""

import pytest

import abduce
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.serving.base import Engine
from abduce.serving.constraints import Regex
from abduce.serving.errors import MissingCapability, UsageError
from abduce.serving.flow import Completion, Failure, Generate, Message, Prompt
from abduce.serving.scripted import Scripted
from abduce.serving.workers import UNFINISHED, Workers
from abduce.strategies.answers import EXTRACTORS
from abduce.strategies.base import State, Task
from abduce.strategies.hogwild import FORCED_TOKENS, NAMES, PAST, UNTIL, Hogwild
from abduce.strategies.policy import POLICIES, StepPolicy

MATH = POLICIES["math"]
TASK = Task("What is 6 x 7?")
FOUND = Completion("**Alice [1]:** It is \\boxed{42}.\n\n", finish="stop", n_tokens=18)
CUT = Completion(
    f"**Alice [1]:** I think{UNFINISHED}\n\n**Bob [1]:** Hm{UNFINISHED}", finish="length", n_tokens=40
)


def asked(flow, *replies):
    """What a flow asks for, and what it returns."""
    told, left, result = [], list(replies), None
    try:
        batch = flow.send(None)
        while True:
            here = [each for each in batch if isinstance(each, Generate)]
            told += here
            batch = flow.send([left.pop(0) if isinstance(each, Generate) else None for each in batch])
    except StopIteration as end:
        result = end.value
    return told, result


def test_the_group_is_asked_once_for_all_its_tokens():
    [request], result = asked(Hogwild(policy=MATH, workers=3, calls=50).solve(TASK, seed=0), (FOUND,))
    assert (request.n, request.sampling.max_tokens, request.sampling.stop) == (1, 150, ())
    assert request.workers.names == ("Alice", "Bob", "Carol")
    [message] = request.prompt.messages
    assert message.content.endswith(MATH.prompt_for(State(TASK)).messages[0].content)
    assert "3 assistants (Alice, Bob, Carol)" in message.content
    assert request.prompt.prefix == ""
    assert (result.answer, result.complete, result.text) == ("42", True, FOUND.text)
    assert result.diagnostics["calls_per_worker"] == 6


def test_where_no_answer_was_given_one_is_forced_greedily_behind_the_transcript():
    flow = Hogwild(policy=MATH).solve(TASK, seed=0)
    (group, forced), result = asked(flow, (CUT,), (Completion("42}.", n_tokens=3),))
    assert forced.workers is None
    assert (forced.sampling.temperature, forced.sampling.max_tokens) == (0.0, FORCED_TOKENS)
    assert forced.prompt.messages == group.prompt.messages
    assert forced.prompt.prefix.startswith(PAST + CUT.text)
    assert forced.prompt.prefix.endswith("\\boxed{")
    assert result.answer == "42" and result.complete
    assert result.diagnostics["tokens"] == 43


def test_plain_text_is_taken_as_it_is():
    policy = StepPolicy(prompt="plain", answer_kind="text")
    [_], result = asked(Hogwild(policy=policy).solve(TASK, seed=0), (CUT,))
    assert result.answer == CUT.text


def test_a_completion_prompt_has_the_rules_before_everything():
    [request], _ = asked(Hogwild(policy=POLICIES["few_shot"]).solve(TASK, seed=0), (FOUND,))
    assert not request.prompt.messages
    assert request.prompt.prefix.startswith("2 assistants (Alice, Bob)")
    assert request.prompt.prefix.endswith("Question: What is 6 x 7?\nAnswer:\n")


def test_a_conversation_stays_one():
    said = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", TASK.question))
    task = Task(TASK.question, messages=said)
    [request], _ = asked(Hogwild(policy=MATH).solve(task, seed=0), (FOUND,))
    assert [m.content for m in request.prompt.messages[:2]] == ["Hi", "Hello"]
    assert request.prompt.messages[-1].content.endswith("\\boxed{}.")


def test_the_tasks_own_limit_holds_for_the_group():
    task = Task(TASK.question, max_tokens=30)
    [request], result = asked(Hogwild(policy=MATH).solve(task, seed=0), (CUT,))
    assert request.sampling.max_tokens == 30
    assert result.answer is None  # and no tokens are left to force one


def test_a_forced_answer_keeps_to_the_tasks_own_limit_as_well():
    task = Task(TASK.question, max_tokens=45)
    (_, forced), _ = asked(Hogwild(policy=MATH).solve(task, seed=0), (CUT,), (Completion("42}", n_tokens=3),))
    assert forced.sampling.max_tokens == 5


def test_what_fails_is_told():
    [_], result = asked(Hogwild(policy=MATH).solve(TASK, seed=0), Failure("engine", "lost"))
    assert (result.answer, result.complete) == (None, False)
    assert "lost" in result.diagnostics["stopped"]


def test_every_kind_of_answer_is_known():
    assert set(UNTIL) == set(EXTRACTORS)


@pytest.mark.parametrize(
    "wrong",
    [{"workers": 0}, {"workers": len(NAMES) + 1}, {"calls": 0}, {"hint_every": 0}, {"layout": "mixed"}],
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong):
    with pytest.raises(UsageError, match="write"):
        Hogwild(policy=MATH, **wrong)


def test_a_demanded_form_and_another_kind_of_policy_are_refused():
    with pytest.raises(UsageError, match="another strategy"):
        next(Hogwild(policy=MATH).solve(Task("x", constraint=Regex("a")), seed=0))


def test_an_engine_that_cannot_is_named_before_anything_runs():
    with pytest.raises(MissingCapability, match=r"workers.*transformers"):
        abduce.solve("x", strategy="hogwild", policy="math", model=Alone())


class Alone(Engine):
    name = "alone"
    capabilities = frozenset({"generate"})


async def test_a_request_for_workers_reaches_no_engine_that_would_ignore_it():
    def flow():
        [reply] = yield [Generate(Prompt.user("x"), workers=Workers(names=("A", "B")))]
        return reply

    reply = await Driver(Services({"policy": Alone()}), seed=0).run(flow())
    assert reply == Failure("engine", "The engine 'alone' cannot let workers write side by side.")


def test_it_is_a_strategy_like_any_other():
    result = abduce.solve(
        "What is 6 x 7?", strategy="hogwild", policy="math", workers=2, model=Scripted(FOUND.text)
    )
    assert result.answer == "42"
