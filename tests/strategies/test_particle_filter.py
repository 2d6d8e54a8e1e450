"""Laws of the particle filter: unbiased evidence, the cases it degenerates to, exact accounts, edges."""

import json
import math
from collections import Counter
from random import Random

import numpy as np
import pytest

from abduce.serving.errors import UsageError
from abduce.serving.flow import Failure, Note
from abduce.strategies.base import Policy, Step
from abduce.strategies.particle_filter import ParticleFilter
from abduce.strategies.search import Search
from abduce.strategies.smc import Potential, together
from abduce.strategies.toys import drain

from .laws import (
    TASK,
    BeamOfParticles,
    Constant,
    ExactTree,
    check_unbiased,
    deviation,
    enumerate_target,
    interrupted,
    run_filter,
    same_distribution_p,
    successes,
)

TREE = ExactTree(3, 4, seed=5)
POTENTIALS = [(kind, phi) for kind in ("product", "telescoping") for phi in ("id", "odds")]
SCHEMES = ["multinomial", "stratified", "systematic", "residual"]


def particle_filter(tree=TREE, **parameters) -> ParticleFilter:
    return ParticleFilter(**{"policy": tree, "reward": tree, **parameters})


def leaves_of(method, replicates, first=0) -> Counter:
    """Leaves of the final populations."""
    seen: Counter = Counter()
    for k in range(first, first + replicates):
        population = drain(method.filter(Search(TASK, method.policy, method.reward, k)))
        seen.update(node.state.text for node in population.nodes)
    return seen


# ---------------------------------------------------------------- evidence


@pytest.mark.parametrize("resampling", SCHEMES)
@pytest.mark.parametrize(("potential", "phi"), POTENTIALS)
def test_evidence_is_unbiased(potential, phi, resampling):
    methods = [
        particle_filter(
            potential=potential, phi=phi, resampling=resampling, threshold=threshold, particles=particles
        )
        for particles, threshold in ((1, 1.01), (2, 1.01), (2, 0.5), (8, 1.01), (8, 0.5))
    ]
    check_unbiased(methods, enumerate_target(TREE, Potential(potential, phi)), 400)


def test_annealed_weight_temperature_keeps_evidence_unbiased():
    exact = enumerate_target(TREE, Potential("product", "odds", 3.0, 1.0, 3))
    method = particle_filter(
        phi="odds", weight_temperature=3.0, end_weight_temperature=1.0, annealing_steps=3
    )
    assert abs(deviation(run_filter(method, exact, 2000).z, exact.z)) < 4


def test_control_self_normalised_estimates_are_biased():
    """Were the paper's theorem about normalised weights true, this test would fail."""
    exact = enumerate_target(TREE, Potential("product", "odds"))
    runs = run_filter(particle_filter(phi="odds", particles=2), exact, 2000)
    assert deviation(runs.wf, exact.zf / exact.z) < -6


@pytest.mark.parametrize(("potential", "phi"), POTENTIALS)
def test_control_published_weights_have_no_such_target(potential, phi):
    exact = enumerate_target(TREE, Potential(potential, phi))
    method = particle_filter(potential="reference", resampling="multinomial", particles=8)
    assert abs(deviation(run_filter(method, exact, 800).z, exact.z)) > 6


def test_bias_and_variance_shrink_with_n():
    exact = enumerate_target(TREE, Potential())
    runs = {
        n: run_filter(particle_filter(resampling="multinomial", particles=n), exact, 3000) for n in (4, 16)
    }
    bias = {n: exact.zf / exact.z - r.wf.mean() for n, r in runs.items()}
    variance = {n: r.log_z.var() for n, r in runs.items()}
    assert 2.5 < bias[4] / bias[16] < 7  # 1/N says 4
    assert 3 < variance[4] / variance[16] < 5.5


def test_systematic_varies_no_more_than_multinomial():
    exact = enumerate_target(TREE, Potential())
    spread = {
        name: run_filter(particle_filter(resampling=name, particles=8), exact, 2500).z.var()
        for name in ("multinomial", "systematic")
    }
    assert spread["systematic"] <= spread["multinomial"]


def test_early_errors_are_survived_better_than_by_beam_search():
    ours = successes(ParticleFilter, 0.5, 2.0, 250, particles=16)
    beam = successes(BeamOfParticles, 0.5, 2.0, 250, particles=16, beams=2)
    assert ours.mean() > beam.mean() + 0.05


# ---------------------------------------------------------------- degenerations


@pytest.mark.parametrize("seed", range(5))
def test_without_resampling_it_is_best_of_n_draw_by_draw(seed):
    search = Search(TASK, TREE, TREE, seed)
    pool = drain(search.complete(search.root, 8))
    method = particle_filter(threshold=0, potential="telescoping", select="argmax_weight")
    result = drain(method.solve(TASK, seed=seed))
    assert [c.text for c in result.candidates] == [node.state.text for node in pool]
    assert result.text == max(pool, key=lambda node: node.score).state.text


@pytest.mark.parametrize("seed", range(5))
def test_without_a_reward_the_vote_is_self_consistency(seed):
    search = Search(TASK, TREE, None, seed)
    votes = Counter(TREE.answer(node.state) for node in drain(search.complete(search.root, 16)))
    method = particle_filter(reward=Constant(), particles=16, threshold=0.5, select="vote")
    result = drain(method.solve(TASK, seed=seed))
    assert Counter(c.answer for c in result.candidates) == votes
    assert votes[result.answer] == max(votes.values())
    assert result.diagnostics["resamples"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_one_particle_is_plain_sampling(seed):
    search = Search(TASK, TREE, None, seed)
    [leaf] = drain(search.complete(search.root, 1))
    assert drain(particle_filter(particles=1).solve(TASK, seed=seed)).text == leaf.state.text


def test_same_seed_same_result():
    first, again, other = (drain(particle_filter().solve(TASK, seed=s)) for s in (3, 3, 4))
    assert first == again
    assert first != other


# ---------------------------------------------------------------- accounts


class Recording(ExactTree):
    """Remembers what it was asked; with `merge=False` it serves each draw as a request of its own."""

    def __init__(self, *args, merge=True, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked = []
        self.merge = merge

    def propose(self, states, counts, seeds):
        self.asked.append(list(counts))
        if self.merge:
            return (yield from super().propose(states, counts, seeds))
        drawn = []
        for state, n, seed in zip(states, counts, seeds, strict=True):
            apart = [Random(seed + k).getrandbits(60) for k in range(n)]
            singles = yield from super().propose([state] * n, [1] * n, apart)
            drawn.append([step for [step] in singles])
        return drawn


def test_proposals_are_the_active_particles_and_each_text_is_scored_once():
    for seed in range(20):
        tree = Recording(3, 4, seed=5)
        result = drain(particle_filter(tree).solve(TASK, seed=seed))
        facts = result.diagnostics
        assert facts["proposals"] == sum(map(sum, tree.asked)) <= 8 * 5
        assert tree.asked[0] == [8]
        assert facts["reward_passes"] <= facts["proposals"]
        assert facts["ess"] and len(facts["ess"]) == len(tree.asked)


def test_merged_requests_draw_the_same_distribution():
    merged = particle_filter(Recording(3, 4, seed=5))
    single = particle_filter(Recording(3, 4, seed=5, merge=False))
    a = Counter(drain(merged.solve(TASK, seed=k)).text for k in range(1500))
    b = Counter(drain(single.solve(TASK, seed=k)).text for k in range(1500, 3000))
    assert same_distribution_p(a, b) > 1e-3


def test_resampling_is_noted_as_json():
    notes = []

    def listen(flow):
        batch = next(flow)
        try:
            while True:
                notes.extend(r for r in batch if isinstance(r, Note) and r.kind == "resample")
                batch = flow.send([None] * len(batch))
        except StopIteration as end:
            return end.value

    result = listen(particle_filter(particles=4).solve(TASK, seed=0))
    assert len(notes) == result.diagnostics["resamples"] > 0
    for note in notes:
        json.dumps(dict(note.data), allow_nan=False)
        assert len(note.data["ancestors"]) == len(note.data["nodes"]) == 4


# ---------------------------------------------------------------- selection


@pytest.mark.parametrize("select", ["argmax_score", "argmax_weight", "vote", "sample"])
def test_selection_does_what_it_says(select):
    result = drain(particle_filter(particles=16, select=select).solve(TASK, seed=7))
    weights = Counter()
    for c in result.candidates:
        weights[c.answer] += c.weight
    chosen = [c for c in result.candidates if c.text == result.text]
    assert sum(weights.values()) == pytest.approx(1)
    if select == "argmax_score":
        assert chosen[0].score == max(c.score for c in result.candidates)
    elif select == "argmax_weight":
        assert chosen[0].weight == max(c.weight for c in result.candidates)
    elif select == "vote":
        assert weights[result.answer] == pytest.approx(max(weights.values()))
    else:
        assert chosen


def test_sample_selects_in_proportion_to_the_weights():
    """With κ = 0 and N = 2 the choice is W-distributed over the pool."""
    method = particle_filter(particles=2, threshold=0, phi="odds", select="sample")
    hits, expected = [], []
    for seed in range(1500):
        result = drain(method.solve(TASK, seed=seed))
        first = result.candidates[0]
        if first.text != result.candidates[1].text:
            hits.append(result.text == first.text)
            expected.append(first.weight)
    assert abs(deviation(np.array(hits) - np.array(expected), 0.0)) < 4


def test_outcome_reward_decides_among_whole_answers():
    class Longest:
        def score(self, states):
            yield []
            return [len(s.text) / 100 for s in states]

    result = drain(particle_filter(select="orm", outcome=Longest()).solve(TASK, seed=1))
    assert len(result.text) == max(len(c.text) for c in result.candidates)


def test_an_outcome_reward_that_fails_is_told():
    class Down:
        def score(self, states):
            yield []
            return [Failure("reward", "no judge today") for _ in states]

    result = drain(particle_filter(select="orm", outcome=Down()).solve(TASK, seed=1))
    assert not result.complete
    assert "no judge today" in result.diagnostics["stopped"]


def test_without_answers_the_vote_falls_back_to_the_score():
    class Mute(ExactTree):
        def answer(self, state):
            return None

    result = drain(particle_filter(Mute(3, 4, seed=5)).solve(TASK, seed=1))
    best = max(result.candidates, key=lambda c: c.score)
    assert result.complete and result.text == best.text


# ---------------------------------------------------------------- edges


class Scripted(Policy):
    """Steps from a function of the state and the draw's number; "." ends."""

    def __init__(self, step):
        self.step = step

    def propose(self, states, counts, seeds):
        yield []
        return [[self.step(s, i) for i in range(n)] for s, n in zip(states, counts, strict=True)]

    def terminal(self, state):
        return state.step is not None and state.step.last

    def answer(self, state):
        return state.text if self.terminal(state) else None


def test_a_failed_proposal_ends_its_particle_with_weight_zero():
    def step(state, i):
        if state.depth == 0:
            return Failure("engine", "no luck") if i == 0 else Step(f"a{i}")
        return Step(".", last=True)

    method = particle_filter(Scripted(step), reward=Constant(0.5), particles=4)
    search = Search(TASK, method.policy, method.reward, 0)
    population = drain(method.filter(search))
    assert math.exp(population.log_evidence) == pytest.approx(0.75 * 0.5 * 0.5)
    assert not any(population.failed)  # the failed one was resampled away
    assert search.failures == ["no luck"]


def test_when_every_proposal_fails_the_result_says_why():
    method = particle_filter(Scripted(lambda s, i: Failure("engine", "down")), reward=Constant(), particles=3)
    result = drain(method.solve(TASK, seed=0))
    assert not result.complete and result.answer is None
    assert result.diagnostics["stopped"] == "down"
    assert result.diagnostics["degenerate"]


def test_all_weights_zero_is_survived_and_marked():
    def step(state, i):
        return Step(f"{i}", last=state.depth == 2)

    result = drain(particle_filter(Scripted(step), reward=Constant(0.0), particles=4).solve(TASK, seed=0))
    assert result.complete and result.answer is not None
    assert result.diagnostics["degenerate"]
    assert result.diagnostics["log_evidence"] == -math.inf
    assert [c.weight for c in result.candidates] == [0.25] * 4


def test_three_empty_steps_in_a_row_end_a_particle():
    seen = []

    def step(state, i):
        seen.append(state.depth)
        return Step(" \n" if state.depth != 1 else "x")

    method = particle_filter(Scripted(step), reward=Constant(), particles=1)
    population = drain(method.filter(Search(TASK, method.policy, method.reward, 0)))
    assert population.nodes[0].depth == 5 and not population.nodes[0].terminal


def test_the_step_cap_ends_particles_which_keep_their_weight():
    method = particle_filter(
        Scripted(lambda s, i: Step(f"{i}")), reward=Constant(0.5), particles=2, max_steps=3
    )
    population = drain(method.filter(Search(TASK, method.policy, method.reward, 0)))
    assert [node.depth for node in population.nodes] == [3, 3]
    assert math.exp(population.log_evidence) == pytest.approx(0.125)


def test_different_lengths_are_weighed_once_each():
    """One particle ends at once; its weight must not change while the other goes on."""

    def step(state, i):
        return Step("." if i == 0 and state.depth == 0 else "a", last=i == 0 and state.depth in (0, 3))

    method = particle_filter(Scripted(step), reward=Constant(0.5), particles=2, threshold=0)
    population = drain(method.filter(Search(TASK, method.policy, method.reward, 0)))
    assert [node.depth for node in population.nodes] == [1, 4]
    assert [math.exp(w) for w in population.log_w] == pytest.approx([0.5, 0.5**4])


def test_a_prefix_scored_zero_can_recover_when_telescoping():
    class Late:
        def score(self, states):
            yield []
            return [0.8 if s.step.last else 0.0 for s in states]

    policy = Scripted(lambda s, i: Step("x", last=s.depth == 3))
    method = particle_filter(policy, reward=Late(), potential="telescoping")
    population = drain(method.filter(Search(TASK, policy, Late(), 0)))
    assert math.exp(population.log_evidence) == pytest.approx(0.8)


@pytest.mark.parametrize("times", [1, 99])
def test_a_budget_may_end_at_any_moment(times):
    results = [interrupted(particle_filter().solve(TASK, seed=2), at, times) for at in range(40)]
    ended = [result for result in results if not result.complete]
    assert 14 < len(ended) < 40
    for result in ended:
        assert "budget" in result.diagnostics["stopped"]
    if times == 1:
        assert all(result.answer is not None for result in ended)  # an answer was forced
    assert ended[-1].candidates


def test_forced_answers_stand_for_their_particles():
    result = interrupted(particle_filter(particles=4).solve(TASK, seed=2), 5, 1)
    assert result.diagnostics["forced"] == len(result.candidates) > 0
    assert sum(c.weight for c in result.candidates) == pytest.approx(1)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"particles": 0}, "at least 1"),
        ({"potential": "prod"}, "telescoping"),
        ({"phi": "logit"}, "odds"),
        ({"resampling": "sistematic"}, "systematic"),
        ({"threshold": -1}, "0.5"),
        ({"select": "best"}, "argmax_score"),
        ({"select": "orm"}, "outcome="),
        ({"weight_temperature": 0.0}, "above 0"),
        ({"end_weight_temperature": -1.0}, "above 0"),
        ({"max_steps": 0}, "at least 1"),
        ({"annealing_steps": 0}, "at least 1"),
    ],
)
def test_wrong_parameters_are_refused_with_what_to_write(wrong, hint):
    with pytest.raises(UsageError, match=hint):
        particle_filter(**wrong)


# ---------------------------------------------------------------- lockstep


def test_together_shares_batches_and_keeps_results_apart():
    def flow(name, rounds):
        heard = []
        for k in range(rounds):
            heard += yield [Note(f"{name}{k}")] * (k + 1)
        return heard

    joint = together([flow("a", 2), flow("b", 1), flow("c", 0)])
    assert [r.kind for r in joint.send(None)] == ["a0", "b0"]
    assert [r.kind for r in joint.send([1, 2])] == ["a1", "a1"]
    with pytest.raises(StopIteration) as end:
        joint.send([3, 4])
    assert end.value.value == [[1, 3, 4], [2], []]
