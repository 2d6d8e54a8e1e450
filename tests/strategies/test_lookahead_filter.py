"""Laws of the look-ahead filter: the evidence stays unbiased, and traps are seen one step early."""

import pytest

from abduce.serving.errors import UsageError
from abduce.serving.flow import Failure
from abduce.strategies.base import Policy, Step
from abduce.strategies.lookahead_filter import LookaheadFilter
from abduce.strategies.particle_filter import ParticleFilter
from abduce.strategies.smc import Potential
from abduce.strategies.toys import drain

from .laws import TASK, Constant, ExactTree, check_unbiased, enumerate_target

TREE = ExactTree(3, 4, seed=5)


def lookahead(**parameters) -> LookaheadFilter:
    return LookaheadFilter(**{"policy": TREE, "reward": TREE, **parameters})


@pytest.mark.parametrize("trials", [1, 3])
@pytest.mark.parametrize(("potential", "phi"), [("product", "odds"), ("telescoping", "id")])
def test_evidence_is_unbiased(potential, phi, trials):
    methods = [
        lookahead(potential=potential, phi=phi, trials=trials, particles=particles) for particles in (1, 2, 8)
    ]
    check_unbiased(methods, enumerate_target(TREE, Potential(potential, phi)), 400)


class Trap(Policy):
    """First steps a and b look alike; every step after a is bad."""

    def propose(self, states, counts, seeds):
        yield []
        return [
            [Step("ab"[i % 2]) if s.depth == 0 else Step(".", last=s.depth == 2) for i in range(n)]
            for s, n in zip(states, counts, strict=True)
        ]

    def terminal(self, state):
        return state.step is not None and state.step.last

    def answer(self, state):
        return state.text or None

    def score(self, states):
        yield []
        return [0.01 if s.text.startswith("a") and s.depth > 1 else 0.9 for s in states]


def test_a_trap_is_seen_one_step_early():

    plain = drain(ParticleFilter(policy=Trap(), reward=Trap()).solve(TASK, seed=0)).diagnostics
    ahead = drain(lookahead(policy=Trap(), reward=Trap()).solve(TASK, seed=0)).diagnostics
    assert ahead["log_evidence"] == pytest.approx(plain["log_evidence"], abs=0.5)
    assert max(ahead["ess"][1:]) > max(plain["ess"][1:2])  # the doomed are gone before they are weighed


def test_a_particle_whose_trials_fail_is_dropped_before_it_fails():
    class Broken(Trap):
        def propose(self, states, counts, seeds):
            drawn = yield from super().propose(states, counts, seeds)
            return [
                [Failure("engine", "no")] * len(row) if s.text.startswith("a") else row
                for s, row in zip(states, drawn, strict=True)
            ]

    result = drain(lookahead(policy=Broken(), reward=Constant(0.5)).solve(TASK, seed=0))
    assert result.complete
    assert {c.text[0] for c in result.candidates} == {"b"}


@pytest.mark.parametrize(
    ("wrong", "hint"), [({"trials": 0}, "at least 1"), ({"potential": "reference"}, "product")]
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        lookahead(**wrong)
