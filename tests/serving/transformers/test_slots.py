"""The forward over slots equals the model's own forward, on a tiny model with random weights."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from abduce.serving.errors import UsageError  # noqa: E402
from abduce.serving.transformers.batching import Batcher, Row  # noqa: E402
from abduce.serving.transformers.model import demand_plain_layers  # noqa: E402
from abduce.serving.transformers.slots import Slots, _groups, last_state  # noqa: E402

from .test_batching import cross, fan  # noqa: E402

SIZE = 11


def model_of(attention="sdpa", kind="Llama"):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=SIZE,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=600,
        head_dim=4,
    )
    config._attn_implementation = attention
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def own(model, ids):
    """log p after each token, by the model's plain forward."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([list(ids)])).logits[0].double(), -1).numpy()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
@pytest.mark.parametrize("apart", [False, True])
def test_rows_of_unequal_length_equal_the_models_own_forward(attention, kind, apart):
    model = model_of(attention, kind)
    slots = Slots(model, 4, apart=apart)
    rng = np.random.default_rng(0)
    held = {i: [] for i in range(4)}
    for sizes in ([1, 63, 100, 7], [1, 1, 1, 1], [5, 0, 1, 300], [1, 2, 0, 0], [1, 1, 1, 1]):
        rows = []
        for slot, n in enumerate(sizes):
            if n:
                rows.append(Row(slot, len(held[slot]), tuple(rng.integers(0, SIZE, n).tolist()), ()))
                held[slot] += rows[-1].tokens
        for row, told in zip(rows, slots.forward(rows), strict=True):
            assert told.dtype == np.float64
            assert np.exp(told).sum() == pytest.approx(1)
            assert told == pytest.approx(own(model, held[row.slot])[-1], abs=1e-4)


def test_scores_are_those_of_the_last_tokens():
    model = model_of()
    slots = Slots(model, 3)
    ids, other = (1, 2, 3, 4, 5, 6), (7, 8, 9)
    told, plain = slots.forward([Row(1, 0, ids[:-1], ids[2:]), Row(2, 0, other, ())])
    reference = own(model, ids)
    assert told == pytest.approx([reference[i - 1, ids[i]] for i in range(2, 6)], abs=1e-5)
    assert plain == pytest.approx(own(model, other)[-1], abs=1e-5)


@pytest.mark.parametrize("program", [fan((1, 2, 3), (4, 5), 3), cross((1, 2, 9), 5)], ids=["fan", "cross"])
def test_copies_and_takeovers_equal_the_models_own_forward(program, monkeypatch):
    model = model_of()
    monkeypatch.setitem(fan.__globals__, "law", lambda ids: own(model, ids)[-1])
    batcher = Batcher(Slots(model, 8), 8)
    batcher.submit(program, 8).result(30)
    batcher.close()


def test_a_longer_neighbour_does_not_show():
    """A row that is padded gets the log-probs of its own end, not of the padding."""
    model = model_of()
    ids = (1, 2, 3)
    alone = Slots(model, 2).forward([Row(0, 0, ids, ())])[0]
    beside = Slots(model, 2).forward([Row(0, 0, ids, ()), Row(1, 0, (4, 5, 6, 7), ())])[0]
    assert alone == pytest.approx(beside, abs=1e-5)
    assert alone != pytest.approx(own(model, (*ids, 0))[-1], abs=1e-3)


def test_rows_of_like_length_go_together():
    rows = [Row(i, 0, (1,) * n, ()) for i, n in enumerate([1, 100, 1, 95, 1, 4000, 1])]
    assert _groups(rows, apart=False) == [[0, 2, 4, 6], [1, 3], [5]]
    assert _groups(rows, apart=True) == [[i] for i in range(7)]


def test_the_last_state_is_the_models_own():
    model = model_of()
    with torch.inference_mode():
        states = model(torch.tensor([[1, 2, 3]]), output_hidden_states=True).hidden_states[-1][0, -1]
    assert last_state(model, (1, 2, 3)) == pytest.approx(states.tolist(), abs=1e-5)


def test_models_that_keep_no_plain_keys_and_values_are_refused():
    demand_plain_layers(model_of().config, 2048)
    window = transformers.MistralConfig(sliding_window=512)
    demand_plain_layers(window, 512)
    with pytest.raises(UsageError, match="context=512"):
        demand_plain_layers(window, 1024)
    with pytest.raises(UsageError, match="linear_attention"):
        demand_plain_layers(transformers.Qwen3NextConfig(), 1024)
