"""Laws of short-m@k: the m shortest of k, and of the others no more than a step is written."""

from random import Random

import pytest

from abduce.serving.errors import UsageError
from abduce.serving.flow import Failure, Note
from abduce.strategies.base import Policy, Step, Task
from abduce.strategies.short_m import ShortM

from .baselines import Runner, notes

TASK = Task("toy")
STEP = 10  # tokens


class Chains(Policy):
    """Chains of given numbers of steps and answers; the i-th begun is the i-th of them."""

    requires = {}  # noqa: RUF012

    def __init__(self, chains, fails=()):
        self.chains, self.fails = chains, set(fails)
        self.begun = self.written = 0

    def propose(self, states, counts, seeds):
        yield [Note("chains")]
        return [[self._next(state) for _ in range(n)] for state, n in zip(states, counts, strict=True)]

    def _next(self, state):
        if state.depth == 0:
            i, self.begun = self.begun, self.begun + 1
        else:
            i = int(state.text.split(":")[0])
        self.written += 1
        if (i, state.depth) in self.fails:
            return Failure("engine", "lost")
        length, answer = self.chains[i]
        last = state.depth + 1 >= length
        return Step(f"{i}:{answer if last else '.'} ", n_tokens=STEP, last=last)

    def terminal(self, state):
        return state.step is not None and state.step.last

    def answer(self, state):
        return state.text.split(":")[-1].strip() or None if self.terminal(state) else None


def run(chains, m, **options):
    policy = Chains(chains, **options)
    return Runner().run(ShortM(policy=policy, k=len(chains), m=m).solve(TASK, seed=0)), policy


@pytest.mark.parametrize("seed", range(30))
def test_the_m_shortest_vote_and_nothing_is_written_past_the_m_th(seed):
    rng = Random(seed)
    k = rng.randint(1, 9)
    m = rng.randint(1, k)
    chains = [(rng.randint(1, 12), rng.choice("abc")) for _ in range(k)]
    result, policy = run(chains, m)
    bound = sorted(length for length, _ in chains)[m - 1]
    assert policy.written == sum(min(length, bound) for length, _ in chains)
    assert result.diagnostics["tokens"] == STEP * policy.written
    sure = [answer for length, answer in chains if length < bound]
    at_bound = [answer for length, answer in chains if length == bound]
    voters = [c.answer for c in result.candidates]
    assert len(voters) == m
    assert sorted(voters[: len(sure)]) == sorted(sure)
    assert set(voters[len(sure) :]) <= set(at_bound)


def test_ties_go_to_the_shorter():
    result, _ = run([(5, "long"), (2, "short"), (9, "never")], 2)
    assert result.answer == "short"
    assert result.diagnostics["tied"] == 2


def test_two_of_three_outvote_the_shortest():
    assert run([(1, "a"), (3, "b"), (3, "b"), (9, "a"), (9, "a")], 3)[0].answer == "b"


def test_a_chain_that_fails_is_left_out_and_told():
    result, _ = run([(1, "a"), (4, "b"), (4, "b")], 3, fails=[(0, 0)])
    assert (result.answer, len(result.candidates)) == ("b", 2)
    assert result.diagnostics["failed_proposals"] == 1


def test_where_all_fail_there_is_no_answer():
    result, _ = run([(2, "a")] * 2, 1, fails=[(0, 0), (1, 0)])
    assert (result.answer, result.complete) == (None, False)


def test_what_is_given_up_is_told_to_the_trace():
    flow = ShortM(policy=Chains([(1, "a"), (9, "b"), (1, "a")]), k=3, m=2).solve(TASK, seed=0)
    assert notes(flow, "prune") == [{"nodes": [2]}]


def test_a_budget_that_ends_it_leaves_the_answer_of_those_that_ended():
    chains = Chains([(1, "a"), (9, "b"), (9, "b")])
    result = Runner(at=5, times=1).run(ShortM(policy=chains, k=3, m=3).solve(TASK, seed=0))
    assert (result.answer, result.complete) == ("a", False)


@pytest.mark.parametrize("wrong", [{"m": 0}, {"k": 2, "m": 3}])
def test_wrong_parameters_are_refused_with_what_to_write(wrong):
    with pytest.raises(UsageError, match="m=3, k=8"):
        ShortM(policy=Chains([]), **wrong)
