"""Laws of the entropic filter: the corrected form keeps the evidence and keeps more lines alive."""

import math

import pytest

from abduce.serving.errors import UsageError
from abduce.strategies.entropic_filter import AnnealedResample, EntropicFilter
from abduce.strategies.particle_filter import ParticleFilter
from abduce.strategies.resampling import ess, normalise
from abduce.strategies.search import Search
from abduce.strategies.smc import Potential
from abduce.strategies.toys import drain

from .laws import (
    ALWAYS,
    TASK,
    ExactTree,
    check_unbiased,
    deviation,
    enumerate_target,
    mean_ancestors,
    run_filter,
)

TREE = ExactTree(3, 4, seed=5)


def entropic(**parameters) -> EntropicFilter:
    return EntropicFilter(**{"policy": TREE, "reward": TREE, "max_steps": 12, **parameters})


@pytest.mark.parametrize("anneal", ["ess", "entropy", "base"])
@pytest.mark.parametrize(("potential", "phi"), [("product", "odds"), ("telescoping", "id")])
@pytest.mark.parametrize("resampling", ["systematic", "multinomial"])
def test_corrected_annealing_keeps_evidence_unbiased(anneal, potential, phi, resampling):
    methods = [
        entropic(
            anneal=anneal, potential=potential, phi=phi, resampling=resampling, particles=particles, **ALWAYS
        )
        for particles in (2, 8)
    ]
    check_unbiased(methods, enumerate_target(TREE, Potential(potential, phi)), 500)


@pytest.mark.parametrize("anneal", ["ess", "base"])
def test_control_uncorrected_annealing_changes_the_target(anneal):
    exact = enumerate_target(TREE, Potential("telescoping", "odds"))
    method = entropic(anneal=anneal, potential="telescoping", phi="odds", corrected=False, **ALWAYS)
    assert abs(deviation(run_filter(method, exact, 2000).z, exact.z)) > 6


@pytest.mark.parametrize("particles", [4, 8])
def test_more_ancestors_survive_than_in_the_plain_filter(particles):
    plain = ParticleFilter(policy=TREE, reward=TREE, phi="odds", particles=particles, max_steps=12)
    annealed = entropic(phi="odds", particles=particles)
    assert mean_ancestors(annealed, 600) > mean_ancestors(plain, 600)


def test_temperatures_follow_the_formulas():
    """Hand-worked: W = (.7, .1, .1, .1) at t = 2 of 10."""
    log_W = normalise([math.log(7), 0.0, 0.0, 0.0])
    size = ess(log_W)
    assert size == pytest.approx(1 / 0.52)
    h = -(0.7 * math.log(0.7) + 0.3 * math.log(0.1)) / math.log(4)

    def temperature(anneal, t=2):
        rule = AnnealedResample("systematic", 1.01, anneal, 0.5, 0.5, 10)
        return rule.temperature(log_W, size, t / 10)

    assert temperature("ess") == pytest.approx(4 * 0.52 * 0.8)
    assert temperature("entropy") == pytest.approx(1 / (h + (1 - h) * 0.2))
    assert temperature("base") == pytest.approx(1.8)
    assert temperature("ess", t=5) == 1.0  # no longer early


def test_even_weights_are_resampled_as_they_are():
    rule = AnnealedResample()
    log_W = normalise([0.0, 0.1, 0.2, 0.1])
    assert rule.proposal(log_W, ess(log_W), 1) is log_W


def test_it_solves_and_reports():
    result = drain(entropic(phi="odds").solve(TASK, seed=0))
    assert result.complete and result.answer is not None
    assert result.diagnostics["log_evidence"] < 20
    uncorrected = entropic(potential="reference", corrected=False, resampling="systematic")
    assert drain(uncorrected.solve(TASK, seed=0)).diagnostics["log_evidence"] is None


def test_store_and_seed_are_those_of_the_search():
    search = Search(TASK, TREE, TREE, 5)
    population = drain(entropic().filter(search))
    assert all(node in search.nodes for node in population.nodes)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"anneal": "cosine"}, "entropy"),
        ({"collapse": 2.0}, "0.5"),
        ({"early": -0.1}, "0.5"),
        ({"potential": "reference"}, "corrected=False"),
        ({"particles": 0}, "at least 1"),
    ],
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        entropic(**wrong)
