"""Laws of the weighted samples of a turn, on a language that is enumerated."""

import math
from collections import defaultdict

import numpy as np
import pytest

from abduce.serving.constraints import Check, Choices
from abduce.serving.errors import UsageError
from abduce.serving.flow import Sampling
from abduce.serving.transformers import awrs
from abduce.serving.transformers.awrs_smc import effective_size, log_mean, particles
from abduce.serving.transformers.decoding import Turn
from abduce.serving.transformers.matchers import Vocabulary
from abduce.serving.transformers.potentials import potential

from . import toy_language as toy

SIGMA = 4.0


def off(estimates, truth):
    """|mean − truth| in standard errors."""
    return abs(np.mean(estimates) - truth) / (np.std(estimates) / math.sqrt(len(estimates)))


@pytest.mark.parametrize("critic", [None, toy.GUESS], ids=["no critic", "critic"])
@pytest.mark.parametrize("below", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 5])
def test_the_evidence_is_unbiased(n, below, critic):
    """Texts of `max_tokens` are ended by force: without the correction the estimate would be off."""
    truth = sum(p * toy.weight(text, critic) for text, p in toy.texts().items())
    draws = [
        toy.evidence(toy.population(seed, n, resample_below=below, critic=critic))
        for seed in range(1500 // n + 300)
    ]
    assert off(draws, truth) < SIGMA


@pytest.mark.parametrize("below", [0.0, 0.5])
def test_weighted_sums_over_texts_are_unbiased(below):
    clouds = [toy.population(seed, 4, resample_below=below) for seed in range(800)]
    for wanted in ("aab", "aa", "baab"):
        truth = toy.texts()[wanted]
        draws = [
            sum(math.exp(p.log_weight) for p in cloud if p.completion.text == wanted) / 4 for cloud in clouds
        ]
        assert off(draws, truth) < SIGMA


def test_an_uncorrected_end_is_told():
    """Negative control: the weight of a forced end left out."""

    def free_end(log_p, check, rng):
        return awrs.improper(log_p, check, rng)

    truth = sum(p * toy.weight(text, None) for text, p in toy.texts().items())
    draws = [toy.evidence(toy.population(seed, 1, draw=free_end)) for seed in range(300)]
    assert off(draws, truth) > 2 * SIGMA


def distance(clouds, law, constraint):
    """Total variation between the mean weighted population and the posterior."""
    truth = {t: p for t, p in toy.texts(law).items() if constraint.complete(t)}
    total = sum(truth.values())
    seen = defaultdict(float)
    for cloud in clouds:
        top = max(p.log_weight for p in cloud)
        if top == -math.inf:
            continue
        w = [math.exp(p.log_weight - top) for p in cloud]
        for p, x in zip(cloud, w, strict=True):
            seen[p.completion.text] += x / sum(w) / len(clouds)
    return 0.5 * sum(abs(seen[t] - truth.get(t, 0.0) / total) for t in {*seen, *truth})


def test_smc_leaves_a_trap_that_masking_stays_in():
    second_is_a = Check(
        lambda text: len(text) < 2 or text[1] == "a", lambda text: len(text) >= 2 and text[1] == "a"
    )

    def cloud(seed, n, **more):
        return toy.population(seed, n, law=toy.trap, constraint=second_is_a, **more)

    local = distance([cloud(seed, 1, draw=awrs.improper) for seed in range(400)], toy.trap, second_is_a)
    smc = [
        distance([cloud(seed, n, resample_below=0.5) for seed in range(1600 // n)], toy.trap, second_is_a)
        for n in (1, 4, 16)
    ]
    assert local > 0.4
    assert smc[0] > 0.4  # one particle carries its weight in vain
    assert smc[0] > smc[1] > smc[2]
    assert smc[2] < 0.2


def test_resampling_conserves_the_total_weight(monkeypatch):
    from abduce.serving.transformers import awrs_smc

    seen = []
    true_resampled = awrs_smc._resampled

    def watched(cloud, below, seed):
        before = log_mean([p.log_weight for p in cloud])
        after = true_resampled(cloud, below, seed)
        seen.append((after is not cloud, before, log_mean([p.log_weight for p in after])))
        return after

    monkeypatch.setattr(awrs_smc, "_resampled", watched)
    for seed in range(30):
        toy.population(seed, 6, resample_below=1.0, critic=toy.GUESS)
    resampled = [(a, b) for happened, a, b in seen if happened]
    assert len(resampled) > 20
    for before, after in resampled:
        assert after == pytest.approx(before, abs=1e-12)


def test_a_population_that_dies_out_has_weight_zero_and_no_nan():
    never = Check(lambda text: len(text) < 2, lambda text: False)
    cloud = toy.population(0, 5, constraint=never, resample_below=0.5)
    assert [p.log_weight for p in cloud] == [-math.inf] * 5
    assert toy.evidence(cloud) == 0.0
    assert effective_size([-math.inf] * 5) == 0.0
    assert all(len(p.completion.text) == 1 for p in cloud)


def test_the_same_seed_gives_the_same_population():
    for more in ({}, {"resample_below": 0.5, "critic": toy.GUESS}):
        one, two = (toy.population(3, 5, **more) for _ in range(2))
        assert [(p.completion, p.log_weight) for p in one] == [(p.completion, p.log_weight) for p in two]


def test_without_resampling_fewer_particles_are_the_first_of_more():
    five, two = toy.population(3, 5), toy.population(3, 2)
    assert [p.completion for p in two] == [p.completion for p in five[:2]]


def test_every_text_alive_keeps_the_constraint_and_is_within_its_budget():
    for seed in range(60):
        for p in toy.population(seed, 5, resample_below=0.5):
            if p.log_weight > -math.inf:
                assert toy.EVEN.complete(p.completion.text)
                assert p.completion.finish == "eos"
                assert p.completion.n_tokens <= toy.MAX_TOKENS


def turn(**sampling):
    return Turn(toy.PROMPT, toy.TOKENS, (toy.END,), Sampling(**{"max_tokens": 5, **sampling}), logprobs=True)


def test_masking_checks_every_token_and_weighs_nothing():
    asked = potential(Choices(("ab", "ba")), Vocabulary(toy.TOKENS))
    cloud, _ = toy.run(particles(turn(temperature=1.0), asked, [1, 2, 3], mask=True))
    for p in cloud:
        assert p.completion.text in ("ab", "ba")
        assert p.log_weight == 0.0
        assert p.n_checks == 4 * p.completion.n_tokens


def test_temperature_zero_takes_the_likeliest_allowed_token():
    for mask in (False, True):
        asked = potential(Choices(("cb", "ba")), Vocabulary(toy.TOKENS))
        cloud, _ = toy.run(particles(turn(temperature=0.0), asked, [1, 2], mask=mask))
        assert [p.completion.text for p in cloud] == ["ba", "ba"]
        assert [p.log_weight for p in cloud] == [0.0, 0.0]


def test_samples_that_agree_share_their_rows():
    asked = potential(Choices(("abc",)), Vocabulary(toy.TOKENS))
    cloud, n_rows = toy.run(particles(turn(temperature=1.0), asked, list(range(8))))
    assert n_rows == 4
    assert {p.completion.text for p in cloud} == {"abc"}


def test_the_log_probs_are_the_models_own():
    asked = potential(Choices(("ab",)), Vocabulary(toy.TOKENS))
    cloud, _ = toy.run(particles(turn(temperature=0.5), asked, [1]))
    own = [math.log(toy.next_token(())[0]), math.log(toy.next_token((0,))[1])]
    assert list(cloud[0].completion.logprobs) == pytest.approx(own)


def test_a_stop_string_ends_a_turn_without_correction():
    asked = potential(Choices(("abc",)), Vocabulary(toy.TOKENS))
    cloud, _ = toy.run(particles(turn(temperature=1.0, stop=("b",)), asked, list(range(20))))
    assert {(p.completion.text, p.completion.finish) for p in cloud} == {("ab", "stop")}


def test_a_text_goes_on_from_its_prefix():
    asked = potential(Choices(("abc",)), Vocabulary(toy.TOKENS))
    cloud, _ = toy.run(particles(turn(temperature=1.0), asked, [1], prefix=b"ab"))
    assert cloud[0].completion.text == "c"


def test_the_threshold_is_a_share():
    asked = potential(Choices(("abc",)), Vocabulary(toy.TOKENS))
    with pytest.raises(UsageError, match="resample_below"):
        toy.run(particles(turn(), asked, [1], resample_below=1.5))
