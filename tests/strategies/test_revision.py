"""Laws of revision: it stops at once where nothing is wrong, and never spends more than 1 + 2R calls."""

import pytest

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.services import Services
from abduce.serving.errors import UsageError
from abduce.serving.flow import Completion, Failure
from abduce.serving.scripted import Scripted
from abduce.strategies.base import Task
from abduce.strategies.policy import policy
from abduce.strategies.revision import FEEDBACK, Revision, finds_nothing

from .baselines import listen, notes, said

TASK = Task("6 x 7?")
WRONG, RIGHT = said("The answer is 41."), said("The answer is 42.")
ERROR, NO_ERROR = said("The product is wrong."), said("Each step holds.\nNo error.")
DOWN = Failure("engine", "down")


def revised(*replies, **parameters):
    """What was asked, and the result."""
    return listen(Revision(policy=policy("cot"), **parameters).solve(TASK, seed=0), *replies)


# ---------------------------------------------------------------- rounds


def test_it_stops_at_once_when_nothing_is_wrong():
    asked, result = revised(RIGHT, NO_ERROR)
    assert len(asked) == 2
    assert (result.answer, result.complete, result.diagnostics["versions"]) == ("42", True, 1)


@pytest.mark.parametrize("rounds", range(5))
def test_a_critic_that_always_finds_an_error_costs_one_and_two_r_calls(rounds):
    asked, result = revised(WRONG, *(ERROR, RIGHT) * rounds, rounds=rounds)
    assert len(asked) == 1 + 2 * rounds
    assert result.diagnostics["versions"] == len(result.candidates) == 1 + rounds
    assert (result.answer, result.complete) == ("42" if rounds else "41", True)


@pytest.mark.parametrize("rounds", range(4))
def test_without_feedback_each_round_is_one_call(rounds):
    asked, _ = revised(*(WRONG,) * (1 + rounds), rounds=rounds, feedback=False)
    assert len(asked) == 1 + rounds
    assert all(request.model == "policy" for request in asked)


def test_it_stops_after_any_round_that_is_found_right():
    asked, result = revised(WRONG, ERROR, RIGHT, NO_ERROR, rounds=5)
    assert len(asked) == 4
    assert result.answer == "42"


async def test_a_model_that_says_the_same_to_everything_does_not_loop():
    for said_to_everything in ("error", "No error", ""):
        driver = Driver(Services({"policy": Scripted(said_to_everything)}))
        await driver.run(Revision(policy=policy("cot"), rounds=3).solve(TASK, seed=0))
        assert driver.ledger.usage.calls <= 1 + 2 * 3 + 1  # and one forced answer at most


# ---------------------------------------------------------------- what is asked


def test_the_critic_sees_question_and_solution_and_the_reviser_all_three():
    [first, critic, reviser], _ = revised(WRONG, ERROR, RIGHT, rounds=1)
    [message] = critic.prompt.messages
    assert message.content == FEEDBACK.format(question="6 x 7?", attempt="The answer is 41.")
    text = reviser.prompt.messages[0].content
    for part in ("6 x 7?", "The answer is 41.", "The product is wrong.", "step by step"):
        assert part in text  # in the same format as the first
    assert (critic.model, reviser.model) == ("critic", "policy")
    assert len({first.seed, critic.seed, reviser.seed}) == 3


def test_without_feedback_all_earlier_attempts_are_shown():
    asked, _ = revised(said("one"), said("two"), said("three"), rounds=2, feedback=False)
    text = asked[2].prompt.messages[0].content
    assert "Attempt 1:\none\n\nAttempt 2:\ntwo" in text
    assert "Attempt 2" not in asked[1].prompt.messages[0].content


def test_braces_in_what_a_model_wrote_stay_as_they_are():
    asked, _ = revised(said("{feedback} {0}"), said("{question} {attempt}"), RIGHT, rounds=1)
    assert "{feedback} {0}" in asked[1].prompt.messages[0].content
    assert "{question} {attempt}" in asked[2].prompt.messages[0].content


def test_every_round_draws_with_seeds_of_its_own():
    asked, _ = revised(WRONG, *(ERROR, RIGHT) * 4, rounds=4)
    assert len({request.seed for request in asked}) == len(asked)


def test_a_critic_of_its_own_is_asked_if_the_run_names_one():
    asked, _ = revised(WRONG, NO_ERROR, critic="judge")
    assert asked[1].model == "judge"


def test_the_feedback_is_told_to_the_trace():
    flow = Revision(policy=policy("cot"), rounds=1).solve(TASK, seed=0)
    assert notes(flow, "feedback", Scripted("The answer is 42.")) == [
        {"version": 1, "text": "The answer is 42."}
    ]


# ---------------------------------------------------------------- which version


def test_the_last_version_is_returned_or_the_vote_of_all():
    replies = (RIGHT, ERROR, RIGHT, ERROR, WRONG)
    assert revised(*replies, rounds=2)[1].answer == "41"
    assert revised(*replies, rounds=2, select="vote")[1].answer == "42"


@pytest.mark.parametrize("select", ["last", "vote"])
def test_versions_without_an_answer_lose_to_those_with_one(select):
    replies = (RIGHT, ERROR, said("I give up."), ERROR, said("I give up."))
    assert revised(*replies, rounds=2, select=select)[1].answer == "42"


def test_every_version_is_counted_as_drawn():
    three = (Completion("The answer is 41.", n_tokens=3),)
    _, result = revised(three, ERROR, three, ERROR, three, rounds=2)
    assert (result.diagnostics["proposals"], result.diagnostics["tokens"]) == (3, 9)


@pytest.mark.parametrize(
    ("feedback", "nothing"),
    [
        ("No error", True),
        ("no errors.", True),
        ("All holds.\n\n**No error**\n", True),
        ("NO ERROR!", True),
        ("There is no error in step 1, but step 2 is wrong.", False),
        ("No error in step 1", False),
        ("No error\nbut for the last step", False),
        ("", False),
    ],
)
def test_only_a_last_line_of_its_own_says_that_nothing_is_wrong(feedback, nothing):
    assert finds_nothing(feedback) == nothing


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("replies", [(WRONG, DOWN), (WRONG, ERROR, DOWN)], ids=["critic", "reviser"])
def test_a_failed_call_ends_the_revising_and_the_result_says_so(replies):
    _, result = revised(*replies)
    assert (result.answer, result.complete) == ("41", False)
    assert result.diagnostics["stopped"] == "down"


@pytest.mark.parametrize(
    ("wrong", "hint"), [({"rounds": -1}, "not be below 0"), ({"select": "best"}, "'last' or 'vote'")]
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        Revision(policy=policy("cot"), **wrong)
