"""Chain of thought: one solution, and an answer in the end."""

import pytest

from abduce.serving.errors import BudgetExhausted
from abduce.serving.flow import Completion, Failure, Generate
from abduce.strategies.chain_of_thought import ChainOfThought
from abduce.strategies.policy import policy
from abduce.strategies.search import Search
from abduce.strategies.toys import ToyTree, drain

from .baselines import TASK, Says, listen, said

COT = ChainOfThought(policy=policy("cot"))


def test_it_is_the_one_solution_that_the_policy_draws():
    tree = ToyTree(3, 5, seed=0)
    for seed in range(5):
        search = Search(TASK, tree, None, seed)
        [leaf] = drain(search.complete(search.root, 1))
        result = drain(ChainOfThought(policy=tree).solve(TASK, seed=seed))
        assert (result.text, result.answer) == (leaf.state.text, tree.answer(leaf.state))
        assert result.complete and len(result.candidates) == 1


def test_a_solution_with_an_answer_costs_one_call():
    [asked], result = listen(COT.solve(TASK, seed=0), said("6 x 7 = 42. The answer is 42."))
    assert isinstance(asked, Generate) and asked.n == 1
    assert (result.answer, result.complete) == ("42", True)


def test_a_solution_without_one_is_asked_for_it_once():
    [first, second], result = listen(COT.solve(TASK, seed=0), said("I wonder."), said(" 42."))
    assert second.prompt.prefix == "I wonder.\nThe answer is"
    assert second.seed != first.seed
    assert (result.answer, result.text) == ("42", "I wonder.\nThe answer is 42.")
    assert result.complete


def test_if_the_answer_cannot_be_had_the_solution_stands():
    _, result = listen(COT.solve(TASK, seed=0), said("I wonder."), Failure("engine", "down"))
    assert (result.text, result.answer) == ("I wonder.", None)
    assert result.diagnostics["failures"] == ["down"]


@pytest.mark.parametrize("at", [0, 1])
def test_where_the_budget_ends_the_best_so_far_is_returned(at):
    """Before the solution: an answer is forced from nothing. After it: from the solution, if it can be."""
    flow = COT.solve(TASK, seed=0)
    next(flow)
    if at:
        flow.send([said("I wonder.")])
        flow.send([None])
        with pytest.raises(StopIteration) as end:
            flow.throw(BudgetExhausted("tokens", 9))
        assert end.value.value.text == "I wonder."
    else:
        [asked] = flow.throw(BudgetExhausted("tokens", 9))
        assert asked.prompt.prefix == "The answer is"
        flow.send([(Completion(" 42"),)])
        with pytest.raises(StopIteration) as end:
            flow.send([None])
        assert end.value.value.answer == "42"
    assert not end.value.value.complete
    assert "9 tokens" in end.value.value.diagnostics["stopped"]


def test_a_failed_draw_is_the_end():
    result = drain(ChainOfThought(policy=Says([Failure("engine", "down")])).solve(TASK, seed=0))
    assert (result.complete, result.answer, result.text) == (False, None, "")
    assert result.diagnostics["stopped"] == "down"
