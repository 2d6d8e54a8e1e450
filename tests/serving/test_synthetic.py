import asyncio
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abduce.serving.errors import UsageError
from abduce.serving.flow import Generate, LogProb, Prompt, Rate, Sampling
from abduce.serving.synthetic import Synthetic

models = st.builds(
    Synthetic,
    seed=st.integers(0, 10**6),
    alphabet=st.sampled_from(["a", "ab", "abcd"]),
    depth=st.integers(1, 3),
)


def turns(model: Synthetic, prefix: str = "", p: float = 1.0) -> list[tuple[str, float]]:
    """Every whole turn with its probability."""
    found = []
    for step, q in model.children(prefix):
        found += turns(model, prefix + step, p * q) if step else [(prefix, p * q)]
    return found


@settings(max_examples=30, deadline=None)
@given(models, st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_children_are_a_distribution(model: Synthetic, temperature: float) -> None:
    assert sum(p for _, p in model.children("", temperature=temperature)) == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(models)
def test_turns_are_a_distribution_over_one_to_depth_steps(model: Synthetic) -> None:
    found = turns(model)
    assert sum(p for _, p in found) == pytest.approx(1)
    assert {text.count("\n\n") for text, _ in found} <= set(range(1, model.depth + 1))


@settings(max_examples=30, deadline=None)
@given(models)
def test_log_probs_are_those_of_the_tree(model: Synthetic) -> None:
    for text, p in turns(model)[:20]:
        likelihood = asyncio.run(model.logprob(LogProb(Prompt.user("?"), text))).value
        [(_, p_end)] = [(s, q) for s, q in model.children(text) if not s]
        assert math.exp(likelihood.total) * p_end == pytest.approx(p)


async def test_the_impossible_has_no_probability() -> None:
    assert (await Synthetic(depth=1).logprob(LogProb(Prompt(), "a\n\na"))).value.total == -math.inf


@pytest.mark.parametrize("temperature", [0.5, 1.0])
async def test_steps_are_drawn_by_their_probability(temperature: float) -> None:
    model, n = Synthetic(seed=3), 4000
    sampling = Sampling(temperature=temperature, stop=("\n\n",))
    drawn, _ = await model.generate(Generate(Prompt(prefix="a\n\n"), n=n, sampling=sampling), seed=9)
    counts = Counter(c.text for c in drawn)
    for step, p in model.children("a\n\n", temperature=temperature):
        assert abs(counts[step] / n - p) <= 4 * math.sqrt(p * (1 - p) / n)


async def test_greedy_takes_the_likeliest() -> None:
    model = Synthetic(seed=3)
    sampling = Sampling(temperature=0, stop=("\n\n",))
    [c], _ = await model.generate(Generate(Prompt(), sampling=sampling), seed=0)
    assert c.text == max(model.children(""), key=lambda child: child[1])[0]


async def test_drawn_log_probs_ids_and_ends() -> None:
    model = Synthetic(seed=5, depth=3)
    completions, _ = await model.generate(Generate(Prompt(), n=50, logprobs=True), seed=1)
    for c in completions:
        assert c.finish == "eos"
        scored = (await model.logprob(LogProb(Prompt(), continuation_ids=c.ids))).value
        assert scored.logprobs == c.logprobs
        assert scored == (await model.logprob(LogProb(Prompt(), c.text))).value
        assert not model.children(c.text)[0][0] or len(c.ids) < 6


async def test_sampling_uses_the_seed_alone() -> None:
    asked = Generate(Prompt(prefix="b\n\n"), n=5)
    one, _ = await Synthetic(seed=2).generate(asked, seed=11)
    two, _ = await Synthetic(seed=2).generate(asked, seed=11)
    other, _ = await Synthetic(seed=2).generate(asked, seed=12)
    assert one == two != other


async def test_rate_is_the_value_of_the_prefix() -> None:
    model = Synthetic(seed=2)
    assert (await model.rate(Rate(Prompt(prefix="b\n\n")))).value == model.value("b\n\n")
    assert 0 <= model.value("b\n\n") <= 1
    assert (await model.rate(Rate(Prompt(prefix_ids=(2, 0))))).value == model.value("b\n\n")


@pytest.mark.parametrize("wrong", [{"alphabet": "aa"}, {"alphabet": ""}, {"alphabet": "a\n"}, {"depth": 0}])
def test_models_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Synthetic(**wrong)  # type: ignore[arg-type]
