"""Laws of particle Gibbs: one sweep leaves the target as it is, and from anywhere the chain gets there."""

from collections import Counter

import pytest

from abduce.serving.errors import BudgetExhausted, MissingCapability, UsageError
from abduce.serving.flow import Failure
from abduce.strategies.base import requirements
from abduce.strategies.particle_filter import ParticleFilter
from abduce.strategies.particle_gibbs import ParticleGibbs, Scores
from abduce.strategies.policy import StepPolicy
from abduce.strategies.search import Search
from abduce.strategies.smc import Potential
from abduce.strategies.toys import ToyTree, drain

from .laws import (
    TASK,
    ExactTree,
    chi2_p,
    enumerate_target,
    exact_start,
    faulty_kernel,
    gibbs_kernel,
    kernel_draws,
)

TREE = ExactTree(3, 4, seed=5)
ODDS = enumerate_target(TREE, Potential("product", "odds"))
TINY = ExactTree(2, 4, seed=2)
"""28 leaves: the published fault is as clear here in 4,000 draws as in 8,000 of the larger tree."""
DRAWS = 4000


def gibbs(tree=TREE, **parameters) -> ParticleGibbs:
    return ParticleGibbs(**{"policy": tree, "reward": tree, "phi": "odds", **parameters})


@pytest.mark.parametrize("ancestor_sampling", [False, True])
@pytest.mark.parametrize("potential", ["product", "telescoping"])
@pytest.mark.parametrize("particles", [2, 4])
def test_a_sweep_leaves_the_target_invariant(particles, potential, ancestor_sampling):
    exact = enumerate_target(TINY, Potential(potential, "odds"))
    method = gibbs(TINY, particles=particles, potential=potential, ancestor_sampling=ancestor_sampling)
    first = DRAWS * (particles + 8 * ancestor_sampling)  # starts of its own for each setting
    seen = kernel_draws(gibbs_kernel(method), TINY, exact_start(exact), DRAWS, first=first)
    assert chi2_p(seen, exact.texts, exact.pi) > 1e-3


@pytest.mark.parametrize("particles", [2, 4])
@pytest.mark.parametrize("potential", [Potential("product", "odds"), Potential("reference")])
def test_control_the_published_reference_score_is_rejected(potential, particles):
    """With "reference" finished particles are weighted anew as well."""
    exact = enumerate_target(TINY, Potential("product", "odds"))
    kernel = faulty_kernel(potential, particles, max_steps=40)
    seen = kernel_draws(kernel, TINY, exact_start(exact), DRAWS)
    assert chi2_p(seen, exact.texts, exact.pi) < 1e-6


def test_from_a_fixed_start_the_chain_converges():
    unlikely = ODDS.leaves[int(ODDS.pi.argmin())]
    kernel = gibbs_kernel(gibbs(particles=6))
    near, far = (kernel_draws(kernel, TREE, lambda rng: unlikely, 500, sweeps=sweeps) for sweeps in (1, 20))
    assert chi2_p(near, ODDS.texts, ODDS.pi) < 1e-6
    assert chi2_p(far, ODDS.texts, ODDS.pi) > 1e-3


def test_ancestor_sampling_moves_the_beginning_of_the_chain_faster():
    leaf = ODDS.leaves[int(ODDS.pi.argmax())]
    first_step = leaf.steps[0].text
    kept = {}
    for ancestor_sampling in (False, True):
        kernel = gibbs_kernel(gibbs(particles=2, ancestor_sampling=ancestor_sampling))
        seen = kernel_draws(kernel, TREE, lambda rng: leaf, 2000)
        kept[ancestor_sampling] = sum(c for text, c in seen.items() if text.startswith(first_step))
    assert kept[True] < kept[False]


def test_where_no_past_can_be_scored_the_reference_keeps_its_own():
    class Speechless(ExactTree):
        def logp(self, states, continuations):
            yield []
            return [Failure("engine", "no log-probs today") for _ in states]

    tree = Speechless(3, 4, seed=5)
    method = gibbs(tree, particles=3, ancestor_sampling=True)
    search = Search(TASK, tree, tree, 0)
    path = (search.root, *drain(search.graft(search.root, ODDS.leaves[7].steps)))
    assert drain(method.sweep(search, path, seed=1)).nodes[-1] is path[-1]


def test_a_reference_of_weight_zero_does_no_harm():
    """Where the first sweep finds only worthless solutions the chain starts from one of them."""

    class Picky:
        def score(self, states):
            yield []
            return [float(s.text.startswith("a") and s.depth % 2) for s in states]

    zeros = 0
    for seed in range(60):
        result = drain(gibbs(reward=Picky(), phi="id", particles=2).solve(TASK, seed=seed))
        zeros += result.diagnostics["sweeps"][0]["degenerate"]
        assert sum(c.weight for c in result.candidates) == pytest.approx(1)
    assert zeros


def test_the_language_model_policy_scores():
    assert isinstance(StepPolicy(), Scores)
    method = ParticleGibbs(policy=StepPolicy(), reward=TREE, ancestor_sampling=True)
    assert "logprob" in requirements(method)["policy"]


def test_the_first_sweep_is_the_filter():
    for seed in range(5):
        one = drain(gibbs(iterations=1).solve(TASK, seed=seed))
        facts = one.diagnostics
        assert facts["iterations"] == 1 and facts["moves"] == 0
        assert len(one.candidates) == 8
    filtered = ParticleFilter(policy=TREE, reward=TREE, phi="odds", resampling="multinomial")
    a = Counter(drain(gibbs(iterations=1).solve(TASK, seed=k)).text for k in range(400))
    b = Counter(drain(filtered.solve(TASK, seed=k)).text for k in range(1000, 1400))
    assert sum((a & b).values()) > 250


def test_the_reference_survives_in_the_last_slot():
    method = gibbs(particles=3)
    search = Search(TASK, TREE, TREE, 0)
    path = (search.root, *drain(search.graft(search.root, ODDS.leaves[7].steps)))
    for seed in range(20):
        population = drain(method.sweep(search, path, seed=seed))
        assert population.nodes[-1] is path[-1]


def test_pooled_weights_sum_to_one_and_burn_in_is_left_out():
    result = drain(gibbs(iterations=5, burn_in=2).solve(TASK, seed=3))
    assert len(result.candidates) == 8 * 3
    assert sum(c.weight for c in result.candidates) == pytest.approx(1)
    assert len(result.diagnostics["sweeps"]) == 5


def test_the_reference_costs_no_proposals():
    result = drain(gibbs(particles=2, iterations=4).solve(TASK, seed=3))
    assert result.diagnostics["proposals"] <= (2 + 3 * 1) * 5


def test_a_budget_may_end_the_chain():
    for at in range(0, 60, 3):
        flow = gibbs().solve(TASK, seed=1)
        batch = next(flow)
        try:
            for k in range(10_000):
                ended = BudgetExhausted("tokens", 9)
                batch = flow.throw(ended) if k == at else flow.send([None] * len(batch))
        except StopIteration as end:
            result = end.value
        assert result.answer is not None
        assert result.complete == ("stopped" not in result.diagnostics)


def test_ancestor_sampling_needs_a_policy_that_scores():
    class Silent(ToyTree):
        pass

    with pytest.raises(MissingCapability, match=r"logp\(states, continuations\)"):
        gibbs(Silent(3, 4, seed=5), ancestor_sampling=True)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"particles": 1}, "at least 2"),
        ({"iterations": 0}, "at least 1"),
        ({"burn_in": 4}, "0 to 3"),
        ({"potential": "reference"}, "product"),
        ({"phi": "log"}, "odds"),
        ({"weight_temperature": -1.0}, "above 0"),
        ({"max_steps": 0}, "at least 1"),
        ({"select": "orm"}, "outcome="),
    ],
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        gibbs(**wrong)
