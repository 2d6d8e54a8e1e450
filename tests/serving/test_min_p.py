"""Laws of min-p, on every engine that has it: 0 changes nothing, 1 is greedy, between them the definition."""

import numpy as np
import pytest

from abduce.serving.embedded import Embedded
from abduce.serving.flow import Generate, Prompt, Sampling
from abduce.serving.litellm import Litellm
from abduce.serving.sglang import wire
from abduce.serving.synthetic import Synthetic
from abduce.serving.transformers.decoding import shaped

SURE = Prompt(prefix="1, 2, 3, 4, 5, 6,")  # no two tokens so near that a batch could swap them


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_what_is_kept_is_what_the_definition_keeps(seed, temperature):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=50) * 2
    min_p = float(rng.uniform(0.01, 0.9))
    q = np.exp(shaped(logits, Sampling(temperature=temperature, min_p=min_p)))
    p = np.exp(logits / temperature)
    p /= p.sum()
    kept = p >= min_p * p.max()
    assert ((q > 0) == kept).all()
    assert q == pytest.approx(np.where(kept, p, 0) / p[kept].sum())


def test_none_is_plain_sampling_and_one_is_greedy():
    logits = np.random.default_rng(0).normal(size=50)
    plain = shaped(logits, Sampling(temperature=0.7))
    assert (shaped(logits, Sampling(temperature=0.7, min_p=0.0)) == plain).all()
    [only] = np.flatnonzero(np.exp(shaped(logits, Sampling(temperature=0.7, min_p=1.0))))
    assert only == logits.argmax()


async def drawn(engine, prompt=SURE, **sampling):
    request = Generate(prompt, 8, Sampling(max_tokens=4, **sampling))
    completions, _ = await engine.generate(request, seed=5)
    return [completion.text for completion in completions]


async def test_on_the_synthetic_engine():
    engine = Synthetic(seed=3)
    greedy = await drawn(engine, Prompt(), temperature=0.0)
    plain = await drawn(engine, Prompt(), temperature=1.0)
    assert await drawn(engine, Prompt(), temperature=1.0, min_p=1.0) == greedy
    assert await drawn(engine, Prompt(), temperature=1.0, min_p=0.0) == plain
    assert len(set(plain)) > 1


async def test_on_the_embedded_engine(embedded: Embedded):
    greedy = await drawn(embedded, temperature=0.0)
    assert await drawn(embedded, temperature=2.5, min_p=1.0) == greedy
    assert len(set(await drawn(embedded, temperature=2.5, min_p=0.0))) > 1


def test_it_is_sent_to_servers():
    assert wire.parameters(Sampling(min_p=0.1), 5)["min_p"] == 0.1


async def test_it_reaches_a_server_beside_openais_protocol(hosted: Litellm):
    france = Prompt.user("What is the capital of France? One word.")
    request = Generate(france, 4, Sampling(temperature=1.8, max_tokens=2, min_p=1.0))
    completions, _ = await hosted.generate(request, seed=1)
    assert len({completion.text for completion in completions}) == 1
