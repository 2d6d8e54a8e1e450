import math

import pytest

from abduce.serving.errors import UnknownName, UsageError
from abduce.serving.flow import (
    Completion,
    Failure,
    Generate,
    LogLikelihood,
    LogProb,
    Message,
    Prompt,
    Sampling,
)
from abduce.strategies.base import EMPTY_STEPS, State, Step, Task, requirements
from abduce.strategies.policy import POLICIES, PROMPTS, StepPolicy, policy


def sent(flow, *replies):
    """Send the replies; return the batches asked for, and the flow's result."""
    batches = [next(flow)]
    try:
        for reply in replies:
            batches.append(flow.send(reply))
    except StopIteration as end:
        return batches, end.value
    raise AssertionError(f"the flow asks for more: {batches[-1]}")


def root(question="What is 6 x 7?", **task):
    return State(Task(question, **task))


def drawn(text, *, stop="", finish=None, ids=(1,), logprobs=()):
    return Completion(text, ids, logprobs, finish or ("stop" if stop else "eos"), stop, len(ids))


def after(state, *texts):
    for text in texts:
        state = state.extend(Step(text))
    return state


# ---------------------------------------------------------------- propose


def test_one_request_for_each_state_all_in_one_batch():
    a, b = root("a"), root("b")
    chosen = policy("cot")
    [batch], rows = sent(
        chosen.propose([a, b], [2, 1], [10, 20]),
        [(drawn("x\n\n", stop="\n\n"), drawn("y")), (drawn("z\n\n", stop="\n\n"),)],
    )
    assert [(r.n, r.seed, r.sampling.stop) for r in batch] == [(2, 10, ("\n\n",)), (1, 20, ("\n\n",))]
    assert [[(s.text, s.last) for s in row] for row in rows] == [
        [("x\n\n", False), ("y", True)],
        [("z\n\n", False)],
    ]


def test_nothing_is_asked_for_nothing():
    flow = policy("cot").propose([root()], [0], [1])
    with pytest.raises(StopIteration) as end:
        next(flow)
    assert end.value.value == [[]]


def test_failures_take_the_place_of_all_samples_that_did_not_come():
    failure = Failure("engine", "down")
    [_], [lost, few] = sent(policy("cot").propose([root(), root()], [3, 2], [1, 2]), [failure, (drawn("x"),)])
    assert lost == [failure] * 3
    assert few[0].text == "x"
    assert isinstance(few[1], Failure) and "2 samples" in few[1].message


def test_a_step_keeps_what_the_engine_drew():
    chosen = policy({"preset": "cot", "logprobs": True})
    reply = drawn("one\n\n", stop="\n\n", ids=(5, 6), logprobs=(-1.0, -0.5))
    [[request]], [[step]] = sent(chosen.propose([root()], [1], [1]), [(reply,)])
    assert request.logprobs
    assert step == Step("one\n\n", (5, 6), -1.5, 2)
    [[request]], _ = sent(chosen.propose([root().extend(step)], [1], [1]), [(reply,)])
    assert (request.prompt.prefix, request.prompt.prefix_ids) == ("one\n\n", (5, 6))


def test_ids_are_sent_only_if_all_are_known():
    state = root().extend(Step("a", (1,))).extend(Step("b"))
    assert policy("cot").prompt_for(state).prefix_ids == ()


@pytest.mark.parametrize(
    ("reply", "text", "last"),
    [
        (drawn("a step\n\n", stop="\n\n"), "a step\n\n", False),
        (drawn("a step", finish="length"), "a step", False),
        (drawn("  \n", finish="length"), "  \n", True),
        (drawn("the end"), "the end", True),
        (drawn("the end\nQuestion:", stop="\nQuestion:"), "the end", True),
    ],
)
def test_how_a_step_ends(reply, text, last):
    chosen = StepPolicy(stop=("\nQuestion:",))
    [_], [[step]] = sent(chosen.propose([root()], [1], [1]), [(reply,)])
    assert (step.text, step.last, step.ids) == (text, last, reply.ids)


def test_without_a_delimiter_every_step_is_a_whole_solution():
    chosen = StepPolicy(delimiter=None, stop=("\n",))
    [[request]], [[step]] = sent(chosen.propose([root()], [1], [1]), [(drawn(" 42", finish="length"),)])
    assert request.sampling.stop == ("\n",)
    assert step.last


# ---------------------------------------------------------------- complete, force


def test_complete_asks_once_without_the_delimiter():
    chosen = StepPolicy(stop=("END",), max_solution_tokens=99)
    state = after(root(), "so far\n\n")
    [[request]], ended = sent(
        chosen.complete(state, 3, seed=1, first_draw=4), [(drawn("a\n\nb"), drawn("c END", stop="END"))]
    )
    assert (request.n, request.sampling.stop, request.sampling.max_tokens) == (3, ("END",), 99)
    assert [leaf.text for leaf in ended[:2]] == ["so far\n\na\n\nb", "so far\n\nc "]
    assert all(chosen.terminal(leaf) and leaf.parent is state for leaf in ended[:2])
    assert isinstance(ended[2], Failure)
    assert ended[0].lineage == state.extend(Step(""), 4).lineage


def test_complete_draws_anew_each_time_it_is_called():
    state = root()
    requests = [next(policy("cot").complete(state, 2, seed=1, first_draw=k))[0] for k in (0, 2)]
    assert requests[0].seed != requests[1].seed
    assert requests[0] == next(policy("cot").complete(root(), 2, seed=1))[0]


def test_force_adds_a_cue_and_ends():
    chosen, failure = policy("cot"), Failure("engine", "down")
    states = [after(root(), "6 sevens"), after(root(), "a\n\n"), root()]
    [batch], forced = sent(
        chosen.force(states, [1, 2, 3]), [(drawn(" 42\n", stop="\n", ids=(9,)),), failure, (drawn(" 1"),)]
    )
    assert [r.prompt.prefix for r in batch] == [
        "6 sevens\nThe answer is",
        "a\n\nThe answer is",
        "The answer is",
    ]
    assert all(r.prompt.prefix_ids == () and "\n" in r.sampling.stop for r in batch)
    assert forced[1] == failure
    leaf = states[0].extend(forced[0])
    assert forced[0].last and forced[0].ids == () and forced[0].logp is None
    assert chosen.answer(leaf) == "42"


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"plain"}))
def test_a_forced_answer_can_be_read(name):
    said = {"choice": "B)", "math": "B}"}.get(name, " 7")
    [_], [step] = sent(policy(name).force([root(choices=("x", "y"))], [1]), [(drawn(said),)])
    assert policy(name).answer(root(choices=("x", "y")).extend(step)) == said.strip(" })")


# ---------------------------------------------------------------- logp


def test_logp_scores_given_steps_by_their_ids():
    chosen = StepPolicy(sampling=Sampling(temperature=1.0))
    steps = [Step("a", (1, 2)), Step("b", (3,))]
    state = root().extend(Step("x", (7,)))
    [batch], found = sent(
        chosen.logp([state, state], [steps, [Step("c")]]),
        [LogLikelihood((-1.0, -2.0, -0.5)), Failure("engine", "down")],
    )
    assert batch[0] == LogProb(chosen.prompt_for(state), "ab", (1, 2, 3))
    assert batch[1] == LogProb(chosen.prompt_for(state), "c")
    assert math.isclose(found[0], -3.5) and found[1] == Failure("engine", "down")


def test_logp_refuses_what_it_cannot_know():
    with pytest.raises(UsageError, match="temperature 1"):
        next(StepPolicy().logp([root()], [[Step("a")]]))


# ---------------------------------------------------------------- terminal, answer


def test_when_a_solution_ends():
    chosen = StepPolicy(max_steps=4)
    assert not chosen.terminal(root())
    assert not chosen.terminal(after(root(), "so 40 + 2\n\n"))
    assert chosen.terminal(after(root(), "a\n\n", "The answer is 42.\n\n"))
    assert chosen.terminal(after(root(), "The answer is:\n\n", "42\n\n"))
    assert chosen.terminal(root().extend(Step("a", last=True)))
    assert chosen.terminal(after(root(), "a", "b", "c", "d"))
    assert not chosen.terminal(after(root(), "a", "b", "c"))


def test_three_empty_steps_end_a_solution():
    chosen = StepPolicy()
    assert not chosen.terminal(after(root(), "a", *["\n"] * (EMPTY_STEPS - 1)))
    assert chosen.terminal(after(root(), "a", *["\n"] * EMPTY_STEPS))
    assert not chosen.terminal(after(root(), "\n", "a", "\n", "\n"))


def test_answers_are_canonical_but_texts_are_left_alone():
    state = root().extend(Step("So the answer is $1,200.00.", last=True))
    assert StepPolicy().answer(state) == "1200"
    assert StepPolicy(answer_kind="text").answer(state) == "So the answer is $1,200.00."
    assert StepPolicy().answer(root().extend(Step("no idea", last=True))) is None


def test_choices_are_asked_and_answered_by_letter():
    state = root("Which?", choices=("red", "blue")).extend(Step("The answer is blue.", last=True))
    chosen = policy("choice")
    assert "Which?\n(A) red\n(B) blue" in chosen.prompt_for(state).messages[-1].content
    assert chosen.answer(state) == "B"


# ---------------------------------------------------------------- prompts


def test_examples_are_turns_in_a_chat_and_text_without_one():
    shots = (("1 + 1 =", " 2"),)
    chat = StepPolicy(prompt="{question}", examples=shots, system="Be brief.")
    raw = StepPolicy(prompt="{question}", examples=shots, chat=False, separator="\n")
    state = after(root("2 + 2 ="), " 4")
    assert chat.prompt_for(state) == Prompt(
        (
            Message("system", "Be brief."),
            Message("user", "1 + 1 ="),
            Message("assistant", " 2"),
            Message("user", "2 + 2 ="),
        ),
        " 4",
    )
    assert raw.prompt_for(state) == Prompt(prefix="1 + 1 = 2\n2 + 2 = 4")


def test_a_question_that_looks_like_a_template_stays_as_it_is():
    said = StepPolicy(prompt="Q: {question}").prompt_for(root("What is {question} or {x}?"))
    assert said.messages[-1].content == "Q: What is {question} or {x}?"


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_every_named_prompt_has_a_place_for_the_question(name):
    assert "Why?" in StepPolicy(prompt=name).prompt_for(root("Why?")).messages[-1].content


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prompt": "Solve it: "}, "no place for the question"),
        ({"prompt": "cott"}, "Did you mean 'cot'"),
        ({"answer_kind": "numbr"}, "Did you mean 'number'"),
        ({"delimiter": ""}, "delimiter=None"),
        ({"max_steps": 0}, "at least 1"),
        ({"chat": False, "system": "x"}, "no system message"),
    ],
)
def test_mistakes_are_told(settings, told):
    with pytest.raises(UsageError, match=told):
        StepPolicy(**settings)


# ---------------------------------------------------------------- by name


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_every_preset_asks_for_steps_and_solutions(name):
    chosen = policy(name)
    assert isinstance(next(chosen.propose([root()], [1], [1]))[0], Generate)
    assert isinstance(next(chosen.complete(root(), 1, seed=0))[0], Generate)
    assert requirements(chosen) == {"policy": frozenset({"generate"})}


def test_presets_take_changes():
    changed = policy({"preset": "cot", "max_steps": 6, "sampling": {"temperature": 0.5}, "stop": ["END"]})
    assert (changed.max_steps, changed.stop) == (6, ("END",))
    assert changed.sampling == Sampling(temperature=0.5, max_tokens=policy("cot").sampling.max_tokens)
    assert policy({"preset": "plain", "examples": [["1 + 1", "2"]]}).examples == (("1 + 1", "2"),)
    assert policy({}) == policy("cot")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("cott", "Did you mean 'cot'"),
        ({"preset": "cot", "max_step": 3}, "Did you mean 'max_steps'"),
        ({"preset": "cot", "sampling": {"temprature": 1}}, "Did you mean 'temperature'"),
    ],
)
def test_unknown_names_are_told(spec, told):
    with pytest.raises(UnknownName, match=told):
        policy(spec)


def test_log_probs_need_an_engine_that_has_them():
    assert requirements(policy({"logprobs": True})) == {"policy": frozenset({"generate", "logprobs"})}


def test_an_answer_that_was_cut_short_is_not_yet_stated():
    """ "The answer is 4|2" is 42, not 4."""
    root, chosen = State(Task("6 x 7 =")), policy("cot")
    cut = root.extend(Step("The answer is 4", cut=True))
    assert not chosen.terminal(cut)
    whole = cut.extend(Step("2.", last=True))
    assert chosen.terminal(whole) and chosen.answer(whole) == "42"
    [[step]] = replied(chosen, [Completion("The answer is 4", finish="length", n_tokens=4)])
    assert step.cut and not chosen.terminal(root.extend(step))


def replied(chosen, completions):
    flow = chosen.propose([State(Task("6 x 7 ="))], [1], [0])
    next(flow)
    with pytest.raises(StopIteration) as end:
        flow.send([tuple(completions)])
    return end.value.value
