"""Laws of query-only test-time training, on tiny models with random weights and on the small model."""

import asyncio
import math
import random
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

from abduce.serving.errors import EngineError, UnknownName, UsageError  # noqa: E402
from abduce.serving.flow import Generate, Prompt, Sampling  # noqa: E402
from abduce.serving.transformers import Transformers, query_weights  # noqa: E402
from abduce.serving.transformers.batching import Batcher  # noqa: E402
from abduce.serving.transformers.decoding import Turn, sample  # noqa: E402
from abduce.serving.transformers.query_ttt import QueryTTT, adapt, answer  # noqa: E402
from abduce.serving.transformers.slots import Slots  # noqa: E402

from .query_parts import READINGS, SIZE, bits, model_of, prefilled, same, text_of  # noqa: E402

# ---------------------------------------------------------------- nothing is left behind


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_the_cache_stay_as_they_were_to_the_bit(reading, fails):
    model, ids = model_of(), text_of(150)
    own, kept = prefilled(model, ids)
    parts = [*model.parameters(), *model.buffers()]
    before, cache = bits(parts), bits(tensor for pair in kept.values() for tensor in pair)
    left = iter([False] * 3 + [True])
    config = QueryTTT(n_steps=5, span=20, learning_rate=1e-2, reading=reading)
    if fails:
        with pytest.raises(EngineError, match="given up"):
            adapt(own, kept, ids, config, seed=1, stopped=lambda: next(left))
    else:
        adapt(own, kept, ids, config, seed=1)
    assert same(before, parts)
    assert same(cache, [tensor for pair in kept.values() for tensor in pair])
    assert all(part.grad is None and part.requires_grad for part in model.parameters())
    assert model.config._attn_implementation == own.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["Llama", "Phi3"])
def test_only_query_projections_are_trained(kind):
    model, ids = model_of(kind), text_of(150)
    own, kept = prefilled(model, ids)
    given = dict(own.named_parameters())
    adapt(own, kept, ids, QueryTTT(n_steps=3, span=20, learning_rate=1e-2), seed=1)
    trained = [(name, each) for name, each in own.named_parameters() if each.requires_grad]
    assert len(trained) == model.config.num_hidden_layers
    for name, each in trained:
        first = given[name][: len(each)]
        assert each.shape == (4 * 8, 32)
        assert not torch.equal(each, first)
    others = [(name, each) for name, each in own.named_parameters() if not each.requires_grad]
    plain = dict(model.named_parameters())
    assert all(torch.equal(each, plain[name.replace(".rest", "")]) for name, each in others)


# ---------------------------------------------------------------- it learns


def probe_gain(dtype, *, master, seed, rate=3e-5):
    """How far 32 steps lower the loss of a span on which none of them trains alone."""
    model, ids = model_of(dtype=dtype), text_of(100, seed)
    own, kept = prefilled(model, ids)
    if not master:
        query_weights.OwnQuery.__init__, plain = rounded, query_weights.OwnQuery.__init__
    try:
        probe = partial(query_weights.span_loss, own, kept, ids, 60, 30)
        first = float(probe())
        adapt(own, kept, ids, QueryTTT(span=20, learning_rate=rate), seed=seed)
        return first - float(probe().detach())
    finally:
        if not master:
            query_weights.OwnQuery.__init__ = plain


def rounded(self, linear, n_rows):
    """The trap: W_Q held in the model's own precision."""
    torch.nn.Module.__init__(self)
    self.weight = torch.nn.Parameter(linear.weight.detach()[:n_rows].clone())
    self.bias, self.rest, self.n_rows = None, None, n_rows


def test_the_loss_of_a_probe_falls_and_in_pure_bfloat16_it_does_not():
    """The rate is so small that an update is below the rounding step of most weights."""
    exact = [probe_gain(torch.bfloat16, master=True, seed=seed) for seed in range(20)]
    trapped = [probe_gain(torch.bfloat16, master=False, seed=seed) for seed in range(9)]
    assert np.median(exact) > 0
    assert np.median(trapped) <= np.median(exact) / 10


def test_the_same_seed_trains_the_same():
    model, ids = model_of(), text_of(100)

    def trained(seed):
        own, kept = prefilled(model, ids)
        told = adapt(own, kept, ids, QueryTTT(n_steps=4, span=20, learning_rate=1e-3), seed=seed)
        return told, [each.detach() for each in own.parameters() if each.requires_grad]

    (first, a), (again, b), (other, _) = trained(3), trained(3), trained(4)
    assert first == again
    assert same(a, b)
    assert first.starts != other.starts


# ---------------------------------------------------------------- spans and settings


def test_spans_begin_anywhere_with_equal_chance_and_end_before_the_last_token():
    config = QueryTTT(n_steps=20_000, span=128)
    starts = np.array(config.starts(133, seed=0))
    assert starts.min() == 0
    assert starts.max() == 133 - 128 - 1
    counts = np.bincount(starts)
    assert np.all(np.abs(counts - 4000) < 5 * math.sqrt(4000))


@pytest.mark.parametrize(("n", "k"), [(2, 0), (3, 1), (4, 2), (129, 127), (130, 128), (5000, 128)])
def test_a_short_prompt_has_shorter_spans_and_they_are_what_is_counted(n, k):
    config = QueryTTT()
    assert config.span_of(n) == k
    assert config.cost_tokens(n) == 2 * 32 * k
    assert all(start >= 0 and start + k < n for start in config.starts(n, seed=1))
    assert len(config.starts(n, seed=1)) == (32 if k else 0)


def test_nothing_is_trained_without_steps_or_rate_or_on_short_prompts():
    for config in (QueryTTT(n_steps=0), QueryTTT(learning_rate=0.0), QueryTTT(min_tokens=4096)):
        assert config.span_of(4095) == 0
        assert config.cost_tokens(4095) == 0
    assert QueryTTT(min_tokens=4096).span_of(4096) == 128


@pytest.mark.parametrize(
    "wrong",
    [{"n_steps": -1}, {"span": 0}, {"learning_rate": "3e-6"}, {"reading": "B"}, {"max_grad_norm": 0}, 5],
)
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError, match=f"{next(iter(wrong)) if wrong != 5 else 'query_ttt'} cannot be"):
        Transformers(query_ttt=wrong)


def test_a_misspelt_setting_is_told():
    with pytest.raises(UnknownName, match="'learning_rate'"):
        Transformers(query_ttt={"learning_rat": 1e-6})


# ---------------------------------------------------------------- a whole request


def texts_of(model, ids, config, n=2, *, stopped=lambda: False, seed=5):
    tokens = [b"%d," % i for i in range(SIZE)]
    turn = Turn(tuple(ids.tolist()), tokens, (), Sampling(temperature=1.0, max_tokens=6), logprobs=True)
    programs = [(partial(sample, turn, seeds), len(seeds)) for seeds in ([1, 2], [3])[:n]]
    done = answer(model, turn.prompt, programs, config, seed=seed, stopped=stopped)
    return [each for one in done for each in one.value]


def test_an_answer_is_that_of_a_model_with_these_queries():
    """The first token too. Rounds after the first find the prompt's keys and values again."""
    model, ids = model_of(), text_of(100)
    config = QueryTTT(n_steps=5, span=20, learning_rate=1e-2)
    drawn = texts_of(model, ids, config)
    own, kept = prefilled(model, ids)
    adapt(own, kept, ids, config, seed=5)
    plain = texts_of(model, ids, QueryTTT(n_steps=0))
    for each in drawn:
        with torch.no_grad():
            more = torch.tensor([[ids[-1], *each.ids[:-1]]])
            positions = torch.arange(len(ids) - 1, len(ids) - 1 + more.shape[1])
            cache = transformers.DynamicCache()
            for layer, (keys, values) in kept.items():
                cache.update(keys[:, :, : len(ids) - 1], values[:, :, : len(ids) - 1], layer)
            told = own(more, position_ids=positions[None], past_key_values=cache).logits[0].log_softmax(-1)
        assert each.logprobs == pytest.approx([float(told[i, x]) for i, x in enumerate(each.ids)], abs=1e-4)
    assert [each.logprobs for each in drawn] != [each.logprobs for each in plain]


@pytest.mark.parametrize(
    "config", [QueryTTT(n_steps=0), QueryTTT(learning_rate=0.0), QueryTTT(n_steps=3, learning_rate=1e-30)]
)
def test_without_training_the_answer_is_the_models_own(config):
    """Here the queries are exchanged all the same, which the engine does only if they are trained."""
    model, ids = model_of(), text_of(100)
    memory = Slots(model, 2)
    batcher = Batcher(memory, 2)
    tokens = [b"%d," % i for i in range(SIZE)]
    turn = Turn(tuple(ids.tolist()), tokens, (), Sampling(temperature=1.0, max_tokens=6))
    plain = batcher.submit(sample(turn, [1, 2]), 2).result(60).value
    batcher.close()
    assert [each.ids for each in texts_of(model, ids, config, 1)] == [each.ids for each in plain]


def test_requests_one_after_the_other_and_one_that_is_given_up_leave_no_trace():
    model, ids, other = model_of(), text_of(100), text_of(90, seed=3)
    config = QueryTTT(n_steps=5, span=20, learning_rate=1e-2)
    before = bits(model.parameters())
    first = texts_of(model, ids, config)
    texts_of(model, other, config)
    left = iter([False] * 4)
    with pytest.raises(EngineError, match="given up"):
        texts_of(model, ids, config, stopped=lambda: next(left, True))
    assert texts_of(model, ids, config) == first
    assert same(before, model.parameters())


LONG = Prompt.user("The bells of Lindry ring at noon. " * 6 + "When do the bells of Lindry ring?")


async def test_the_engine_trains_long_prompts_and_serves_the_others_beside_them(small_model, white_box):
    """Requests that run together get what each gets alone; the model stays as it was."""
    settings = {"n_steps": 2, "span": 16, "learning_rate": 3e-3, "min_tokens": 60}
    asked = Generate(LONG, n=2, sampling=Sampling(temperature=0.0, max_tokens=5), logprobs=True)
    short = Generate(Prompt.user("Hello"), sampling=Sampling(temperature=0.0, max_tokens=5))
    async with Transformers(small_model, device="cpu", slots=2, context=256, query_ttt=settings) as served:
        await served.ready()
        before = bits(served._both()[0].parameters())
        trained, ordinary = await asyncio.gather(
            served.generate(asked, seed=1), served.generate(short, seed=1)
        )
        again = await served.generate(asked, seed=1)
        assert same(before, served._both()[0].parameters())
        assert again == trained
        plain, own = await white_box.generate(asked, seed=1), await white_box.generate(short, seed=1)
        assert ordinary.value == own.value
        assert [c.logprobs for c in trained.value] != [c.logprobs for c in plain.value]
        assert trained.usage.input_tokens == plain.usage.input_tokens + 2 * 2 * 16
        assert trained.usage.input_tokens == served.count_tokens(LONG)
        assert trained.usage.cached_tokens == 0


async def test_a_cancelled_request_and_a_closed_engine_stop_training(small_model):
    settings = {"n_steps": 100_000, "span": 16}
    served = Transformers(small_model, device="cpu", slots=2, context=256, query_ttt=settings)
    await served.ready()
    asked = Generate(LONG, sampling=Sampling(max_tokens=2))
    given_up = asyncio.create_task(served.generate(asked, seed=1))
    await asyncio.sleep(0.5)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    closed = asyncio.create_task(served.generate(asked, seed=1))
    await asyncio.sleep(0.5)
    await served.close()
    with pytest.raises(EngineError, match="given up"):
        await closed


def test_on_a_retrieval_task_accuracy_rises_where_attention_is_spread(monkeypatch):
    """The benchmark's task at its longest, few contexts: benchmarks/README.md has more, and shorter ones."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    bench = import_module("query_ttt")
    draw, model = random.Random(7), bench.reader()
    contexts = [bench.context_of(256, draw) for _ in range(12)]
    plain = [bench.read(model, each) for each in contexts]
    config = QueryTTT(learning_rate=0.03)
    trained = [bench.read(model, each, config=config) for each in contexts]
    assert sum(each.right for each in trained) >= sum(each.right for each in plain) + 2
    assert np.mean([each.mass for each in trained]) > 2 * np.mean([each.mass for each in plain])
