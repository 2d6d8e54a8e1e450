"""What is summed is what the model says: likelihoods against a plain forward pass, in float32.

Skipped without torch: see CONTRIBUTING.md."""

import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("llguidance")

from abduce.orchestrator.driver import Driver  # noqa: E402
from abduce.orchestrator.services import Services  # noqa: E402
from abduce.serving.flow import Prompt  # noqa: E402
from abduce.strategies.thinksum import PRESETS  # noqa: E402
from abduce.strategies.thinksum.program import Program  # noqa: E402
from abduce.strategies.thinksum.think import Workings  # noqa: E402

WORDS = ("apple", "pear tree", "стол", "7 x 8")
PAIRS = [(f"List of words: {u},", f" {c}") for u in WORDS for c in WORDS if u != c]


async def told(engine, pairs):
    """What a run is told of these pairs."""
    work = Workings(Program.checked(PRESETS["direct"]), seed=0, max_pairs=1000, chat=False)
    return await Driver(Services({"policy": engine})).run(work.ask(pairs))


def forward(engine, context, continuation):
    """ln p of each token of the continuation, by the model's own forward over both texts together."""
    before = engine._ids(Prompt(prefix=context))
    ids = before + engine._continuation(Prompt(prefix=context), continuation)
    with torch.inference_mode():
        logs = torch.log_softmax(engine._both()[0](torch.tensor([ids])).logits[0].double(), -1)
    return [float(logs[i - 1, ids[i]]) for i in range(len(before), len(ids))]


async def test_likelihoods_are_those_of_a_plain_forward_cold_and_warm_in_any_order(white_box):
    cold = await told(white_box, PAIRS)
    order = list(range(len(PAIRS)))
    random.Random(0).shuffle(order)
    warm = await told(white_box, [PAIRS[i] for i in order])
    for pair, reply in zip(PAIRS, cold, strict=True):
        assert reply.logprobs == pytest.approx(forward(white_box, *pair), abs=1e-3)
    for i, reply in zip(order, warm, strict=True):
        assert reply.logprobs == pytest.approx(cold[i].logprobs, abs=1e-3)


async def test_a_continuation_in_two_parts_is_as_likely_as_both(white_box):
    u, a, b = "The capital of France is", " Paris", ", and that of Italy is Rome"
    whole, first, second = await told(white_box, [(u, a + b), (u, a), (u + a, b)])
    assert whole.total == pytest.approx(first.total + second.total, abs=1e-3)
    assert len(whole.logprobs) == len(first.logprobs) + len(second.logprobs)


async def test_where_a_token_would_lie_across_the_border_the_continuation_has_tokens_of_its_own(white_box):
    u, c = "unbeliev", "able"
    together = white_box._ids(Prompt(prefix=u + c))
    assert together[: len(white_box._ids(Prompt(prefix=u)))] != white_box._ids(Prompt(prefix=u))
    [reply] = await told(white_box, [(u, c)])
    assert reply.logprobs == pytest.approx(forward(white_box, u, c), abs=1e-3)
    [spaced, moved] = await told(white_box, [("Word: ", "able"), ("Word:", " able")])
    assert spaced == moved  # white space goes to the continuation, so that no token lies across
