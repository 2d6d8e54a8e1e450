"""Laws of parallel tempering: swaps included, every chain keeps its own target."""

import math
from random import Random

import pytest

from abduce.serving.errors import BudgetExhausted, UsageError
from abduce.strategies.parallel_tempering import ParallelTempering
from abduce.strategies.search import Search
from abduce.strategies.smc import Potential
from abduce.strategies.toys import drain

from .laws import TASK, ExactTree, chi2_p, enumerate_target, tempering_draws

TREE = ExactTree(3, 4, seed=5)
TINY = ExactTree(2, 4, seed=2)  # 28 leaves for 117: half the draws tell as much


def tempering(**parameters) -> ParallelTempering:
    return ParallelTempering(**{"policy": TREE, "reward": TREE, "phi": "odds", **parameters})


@pytest.mark.parametrize("potential", ["product", "telescoping"])
def test_each_chain_keeps_its_own_target(potential):
    method = tempering(policy=TINY, reward=TINY, temperatures=(3.0, 1.0), particles=2, potential=potential)
    for seen, temperature in zip(tempering_draws(method, TINY, 3000), (3.0, 1.0), strict=True):
        exact = enumerate_target(TINY, Potential(potential, "odds", temperature))
        assert chi2_p(seen, exact.texts, exact.pi) > 1e-3


def test_control_swapping_always_mixes_the_targets_up():
    class Eager(ParallelTempering):
        def log_ratio(self, k, hot, cold):
            return 0.0

    method = Eager(policy=TREE, reward=TREE, phi="odds", temperatures=(3.0, 1.0), particles=2)
    hot, _ = tempering_draws(method, TREE, 1500)
    exact = enumerate_target(TREE, Potential("product", "odds", 3.0))
    assert chi2_p(hot, exact.texts, exact.pi) < 1e-6


def test_the_swap_ratio_is_that_of_the_joint_targets():
    """π_hot(cold) π_cold(hot) / (π_hot(hot) π_cold(cold)), by enumeration."""
    method = tempering(temperatures=(3.0, 1.0))
    search = Search(TASK, TREE, TREE, 0)
    hot_target, cold_target = (
        enumerate_target(TREE, Potential("product", "odds", temperature)) for temperature in (3.0, 1.0)
    )
    rng = Random(0)
    for _ in range(20):
        i, j = rng.randrange(len(hot_target.leaves)), rng.randrange(len(hot_target.leaves))
        x, y = ((search.root, *drain(search.graft(search.root, hot_target.leaves[k].steps))) for k in (i, j))
        joint = hot_target.pi[j] * cold_target.pi[i] / (hot_target.pi[i] * cold_target.pi[j])
        assert method.log_ratio(0, x, y) == pytest.approx(math.log(joint))


def test_no_two_chains_draw_the_same_steps():
    """The chains share one store: each draw has a number, and so a seed, of its own."""
    method = tempering(temperatures=(2.0, 1.0), particles=8, iterations=1)
    search = Search(TASK, TREE, TREE, 0)
    first, second = drain(method.sweeps(search, [(), ()], seed=0))
    assert [n.state.text for n in first.nodes] != [n.state.text for n in second.nodes]
    lineages = [node.state.lineage for node in search.nodes]
    assert len(lineages) == len(set(lineages))


def test_a_run_reports_swaps_and_is_reproducible():
    first, again = (drain(tempering(iterations=5).solve(TASK, seed=3)) for _ in range(2))
    assert first == again
    assert 0 <= first.diagnostics["swap_rate"] <= 1
    assert first.diagnostics["iterations"] == 5
    assert sum(c.weight for c in first.candidates) == pytest.approx(1)


def test_a_budget_may_end_it_at_any_moment():
    """Also where only a hot chain is still under way: then the run is not complete."""
    finished = []
    for at in range(100):
        flow = tempering().solve(TASK, seed=1)
        batch = next(flow)
        with pytest.raises(StopIteration) as end:
            for k in range(10_000):
                batch = (
                    flow.throw(BudgetExhausted("tokens", 9)) if k == at else flow.send([None] * len(batch))
                )
        result = end.value.value
        assert result.answer is not None
        assert not result.complete or result.diagnostics["iterations"] == 4
        finished.append(result.complete)
    assert not finished[0] and finished[-1]


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"temperatures": (1.0,)}, "two or more"),
        ({"temperatures": (1.0, 2.0)}, "falling"),
        ({"temperatures": (1.0, 0.0)}, "falling"),
        ({"particles": 1}, "at least 2"),
        ({"iterations": 0}, "at least 1"),
        ({"burn_in": -1}, "0 to 3"),
        ({"potential": "reference"}, "product"),
        ({"max_steps": 0}, "at least 1"),
        ({"select": "orm"}, "outcome="),
    ],
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        tempering(**wrong)
