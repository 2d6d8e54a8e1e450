"""Laws of plain sampling, driven over the toy language."""

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from abduce.serving.flow import Sampling
from abduce.serving.transformers.decoding import Turn, best, pick, sample, score, shaped

from . import toy_language as toy

LOG_P = np.log(np.array([0.4, 0.3, 0.2, 0.1]))


def drawn(n=6, tokens=toy.TOKENS, logprobs=True, top=0, **sampling):
    words = {"temperature": 1.0, "max_tokens": 6, **sampling}
    turn = Turn(toy.PROMPT, tokens, (toy.END,), Sampling(**words), logprobs, top)
    return toy.run(sample(turn, list(range(n))))[0]


def test_texts_follow_the_models_law():
    texts = Counter(c.text for c in drawn(4000, max_tokens=3) if c.finish == "eos")
    law = toy.texts(max_tokens=3)
    for text in ("", "a", "ba"):
        error = math.sqrt(law[text] * (1 - law[text]) / 4000)
        assert abs(texts[text] / 4000 - law[text]) < 4 * error


def test_log_probs_are_the_models_own_at_any_temperature():
    for c in drawn(temperature=0.3, top_k=2):
        own = [math.log(toy.next_token(c.ids[:i])[x]) for i, x in enumerate(c.ids)]
        assert list(c.logprobs) == pytest.approx(own)


def test_the_best_log_probs_fall_and_begin_with_the_largest():
    for c in drawn(top=3):
        for i, told in enumerate(c.top_logprobs):
            p = np.sort(toy.next_token(c.ids[:i]))[::-1]
            assert told == pytest.approx(np.log(p[:3]))
    assert len(best(LOG_P, 99)) == 4


@pytest.mark.parametrize("stop", [("bc",), ("cab", "b"), ("é",)])
def test_a_text_ends_with_the_token_that_completes_a_stop_string(stop):
    tokens = (b"a", b"bc", b"ca", b"")
    for c in drawn(40, tokens=tokens, stop=stop, max_tokens=12):
        found = [s for s in stop if s in c.text]
        assert (c.finish == "stop") == bool(found)
        if found:
            before = b"".join(tokens[x] for x in c.ids[:-1]).decode()
            assert not any(s in before for s in stop)
            assert c.stop in found


def test_a_stop_string_may_stand_across_bytes_of_a_character():
    tokens = (b"\xc3", b"\xa9", b"x", b"")
    stopped = [c for c in drawn(200, tokens=tokens, stop=("é",), max_tokens=12) if c.finish == "stop"]
    assert stopped
    assert all(c.text.endswith("é") for c in stopped)


def test_lengths_and_counts():
    for c in drawn(60, max_tokens=4):
        assert c.n_tokens == len(c.ids) + (c.finish == "eos") <= 4
        assert (c.finish == "length") == (len(c.ids) == 4)


def test_temperature_zero_is_the_likeliest_token():
    assert {c.text for c in drawn(temperature=0.0)} == {drawn(1, temperature=0.0)[0].text}
    assert pick(LOG_P, Sampling(temperature=0.0), np.random.default_rng(0)) == 0


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), [0.4, 0.3, 0.2, 0.1]),
        (Sampling(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (Sampling(temperature=1.0, top_k=2), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.65), [4 / 7, 3 / 7, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0]),
        (Sampling(temperature=1.0, top_p=1e-9), [1, 0, 0, 0]),
    ],
)
def test_shapes_of_the_distribution(sampling, expected):
    assert np.exp(shaped(LOG_P, sampling)) == pytest.approx(np.array(expected))
    rng = np.random.default_rng(1)
    counts = np.bincount([pick(LOG_P, sampling, rng) for _ in range(3000)], minlength=4)
    possible = np.array(expected) > 0
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible], np.array(expected)[possible] * 3000).pvalue > 1e-4


def test_scores_are_the_log_probs_of_the_continuation():
    program = score((7,), (0, 1))
    [feed] = program.send(None)
    assert feed.tokens == (7, 0)
    assert feed.scored == (0, 1)
    with pytest.raises(StopIteration) as end:
        program.send([np.array([-1.0, -2.0])])
    assert end.value.value == (-1.0, -2.0)
