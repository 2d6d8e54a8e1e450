"""Workers on one cache of a Hugging Face model: what they see, what is merged, and which models cannot."""

import asyncio
from copy import deepcopy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from abduce.serving.errors import EngineError, UsageError  # noqa: E402
from abduce.serving.flow import Generate, Prompt, Sampling  # noqa: E402
from abduce.serving.kernels import hogwild as kernel  # noqa: E402
from abduce.serving.transformers import hogwild  # noqa: E402
from abduce.serving.transformers.hogwild import COMMON, FIRST, OTHERS, OWN, SharedBlocks, Sharing  # noqa: E402
from abduce.serving.workers import Workers  # noqa: E402

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "rope_theta": 1e4, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
}  # fmt: skip
SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


def model(kind="Llama", dtype=torch.float32, **words):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, "pad_token_id": 0, **words})
    made = getattr(transformers, f"{kind}ForCausalLM")(config)
    for each in made.parameters():  # the usual start is so small that all tokens are equally likely
        each.data.mul_(6.0) if each.dim() > 1 else None
    return made.to(dtype).eval()


@pytest.fixture(scope="module")
def llama():
    return model()


@pytest.fixture(scope="module")
def sharing(llama):
    return Sharing(llama)


def text(n, seed):
    return torch.randint(1, 97, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def plain(model, ids):
    """log p after each token by the model's own forward."""
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1).numpy()


def greedy(model, ids, n):
    ids = list(ids)
    for _ in range(n):
        ids.append(int(plain(model, ids)[-1].argmax()))
    return ids[-n:]


def filled(sharing, layout="combined", n_workers=2, prompt=text(20, 1)):  # noqa: B008
    blocks = SharedBlocks(sharing, hogwild.views(layout, n_workers))
    blocks.fill(COMMON, prompt)
    if layout != "interleaved":
        blocks.fill(OTHERS, text(4, 2))
        blocks.fill(OWN, text(3, 3))
    return blocks


def drawn(blocks, rows, n):
    """`n` greedy tokens of each worker after its first ones."""
    out = [[] for _ in rows]
    for _ in range(n):
        told = blocks.feed(rows)
        rows = [(int(log_p.argmax()),) for log_p in told]
        for each, row in zip(out, rows, strict=True):
            each += row
    return out


# ---------------------------------------------------------------- one worker, and workers apart


@pytest.mark.parametrize("rope", [None, YARN, LLAMA3])
def test_one_worker_decodes_as_the_model_does_through_every_merge(rope):
    plain_model = model(rope_parameters=rope) if rope else model()
    prompt, said = text(30, 5), []
    blocks = SharedBlocks(Sharing(plain_model), hogwild.views("interleaved", 1))
    blocks.fill(COMMON, prompt[:-1])
    row = prompt[-1:]
    for i in range(40):
        [log_p] = blocks.feed([row])
        assert abs(log_p - plain(plain_model, prompt + said)[-1]).max() < 1e-4
        row = [int(log_p.argmax())]
        said += row
        if i % 7 == 3:
            blocks.merge(0)
    assert said == greedy(plain_model, prompt, 40)


def test_workers_that_do_not_see_each_other_write_what_each_would_alone(llama, sharing):
    first = text(5, 7), text(2, 8)
    prompt = text(20, 1)
    blocks = SharedBlocks(sharing, [(0, 1), (0, 2)])
    blocks.fill(0, prompt)
    assert drawn(blocks, first, 24) == [greedy(llama, prompt + each, 24) for each in first]


def test_the_given_model_stays_as_it_is_and_lends_its_weights(llama, sharing):
    assert llama.config._attn_implementation != sharing.model.config._attn_implementation
    ours = {tensor.data_ptr() for tensor in sharing.model.parameters()}
    assert ours == {tensor.data_ptr() for tensor in llama.parameters()}


# ---------------------------------------------------------------- what workers see


def test_a_token_of_another_is_seen_in_the_same_call_where_the_layout_shows_it(sharing):
    for layout, sees in (("combined", True), ("contiguous", True), ("interleaved", False)):
        told = []
        for token in (11, 12):
            blocks = filled(sharing, layout)
            blocks.feed([text(4, 4), text(6, 5)])
            told.append(blocks.feed([(9,), (token,)]))
        a, b = zip(*told, strict=True)
        assert (abs(a[0] - a[1]).max() > 1e-3) == sees, layout
        assert sees or (a[0] == a[1]).all()
        assert abs(b[0] - b[1]).max() > 1e-3


def test_a_finished_step_is_seen_by_all_in_every_layout_with_steps(sharing):
    for layout in ("combined", "interleaved"):
        told = []
        for step in (text(6, 5), text(6, 6)):
            blocks = filled(sharing, layout)
            blocks.feed([text(4, 4), step])
            blocks.merge(1)
            told.append(blocks.feed([(9,), (3,)])[0])
        assert abs(told[0] - told[1]).max() > 1e-3


@pytest.mark.parametrize("layout", ["combined", "interleaved", "contiguous"])
@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_it_is_attention_over_rerotated_keys(monkeypatch, layout, n_workers):
    """The whole loop, merges too, in float64, beside the definition at every layer."""
    sharing = Sharing(model(dtype=torch.float64))
    views = hogwild.views(layout, n_workers)

    def run():
        filling.append(True)
        blocks = filled(sharing, layout, n_workers)
        filling.clear()
        told = []
        for t in range(6):
            rows = [text(1 + (t + w) % 3 * (t % 2 == 0), 10 * t + w) for w in range(n_workers)]
            told += blocks.feed(rows)
            if layout != "contiguous" and t in (2, 4):
                blocks.merge(t % n_workers)
        return told

    filling = []
    turned = run()
    real = kernel.attend

    def by_keys(q, keys, values, slots, loc, frequency, scale):
        if filling:  # blocks as texts of their own
            return real(q, keys, values, slots, loc, frequency, scale)
        listed = [[s for s in row if s >= 0] for row in slots.tolist()]
        blocks = [(keys[each], values[each]) for each in listed]
        out = kernel.attend_by_keys(q, blocks, views, frequency.double(), scale)
        return out.masked_fill((loc < 0).all(0)[..., None, None], 0.0)

    monkeypatch.setattr(hogwild.hogwild, "attend", by_keys)
    for a, b in zip(turned, run(), strict=True):
        assert abs(a - b).max() < 1e-9


def test_what_lies_in_unused_slots_and_in_padding_is_never_seen(sharing):
    def run(poison):
        blocks = filled(sharing)
        told = []
        for t in range(3):
            if poison:
                with torch.inference_mode():
                    for pool in (pool for pools in blocks.pools.values() for pool in pools):
                        pool[blocks.n_slots :] = torch.nan
            told += blocks.feed([text(5, t), text(1 + t, 9 + t)])
        return told

    assert all((a == b).all() for a, b in zip(run(False), run(True), strict=True))


# ---------------------------------------------------------------- blocks


@pytest.mark.parametrize("rope", [None, YARN])
def test_merging_turns_keys_to_behind_the_common_ones_and_loses_nothing(rope):
    sharing = Sharing(model(rope_parameters=rope) if rope else model())
    blocks = filled(sharing)
    blocks.feed([text(9, 4), text(6, 5)])
    own, n_common, n_slots = list(blocks.blocks[FIRST]), len(blocks.blocks[COMMON]), blocks.n_slots
    before = deepcopy(blocks.pools)
    blocks.merge(0)
    assert (len(blocks.blocks[COMMON]), blocks.blocks[FIRST]) == (n_common + 9, [])
    assert blocks.n_slots == n_slots and blocks.blocks[COMMON][n_common:] == own
    others = [slot for slot in range(n_slots) if slot not in own]
    for layer, (keys, values) in blocks.pools.items():
        was, were = before[layer]
        assert (values == were).all() and (keys[others] == was[others]).all()
        turned = kernel.rotate(was[own], n_common * sharing.frequency.expand(1, 1, -1))
        torch.testing.assert_close(keys[own], turned)
        torch.testing.assert_close(keys[own].norm(dim=-1), was[own].norm(dim=-1), rtol=1e-5, atol=1e-5)


def test_the_group_holds_one_copy_of_each_token(sharing):
    for n_workers in (1, 2, 4):
        blocks = filled(sharing, n_workers=n_workers)
        rows = [text(3 + w, w) for w in range(n_workers)]
        blocks.feed(rows)
        blocks.merge(0)
        blocks.feed([(5,)] * n_workers)
        n_tokens = 20 + 4 + 3 + sum(map(len, rows)) + n_workers
        every = [slot for block in blocks.blocks for slot in block]
        assert sorted(every) == list(range(n_tokens)) == list(range(blocks.n_slots))
        for pools in blocks.pools.values():
            assert all(len(pool) <= max(256, 2 * n_tokens) for pool in pools)
            assert not any(pool[n_tokens:].any() for pool in pools)


# ---------------------------------------------------------------- which models can


@pytest.mark.parametrize(
    ("kind", "words", "why"),
    [
        ("Llama", {"rope_parameters": DYNAMIC}, "position"),
        ("Bloom", {"n_head": 6, "n_layer": 3}, "rotary"),
        ("SmolLM3", {"no_rope_layers": [1, 0, 1]}, "layer 1"),
        ("Cohere", {}, "layer 0"),
        ("GPTNeoX", {"rotary_pct": 0.5}, "part"),
        ("Phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 64}, "position 257"),
        ("Gemma2", {"head_dim": 8}, "softcap"),
        ("GptOss", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}, "s_aux"),
    ],
)  # fmt: skip
def test_a_model_whose_positions_break_the_identity_is_refused(kind, words, why):
    with pytest.raises(UsageError, match=rf"cannot share the cache.*{why}"):
        Sharing(model(kind, **words))


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2", "Qwen3", "Olmo"])
def test_other_models_with_plain_rotary_positions_can(kind):
    words = {"head_dim": 8} if kind == "Qwen3" else {}
    plain_model = model(kind, **words)
    prompt = text(12, 1)
    blocks = SharedBlocks(Sharing(plain_model), hogwild.views("interleaved", 1))
    blocks.fill(COMMON, prompt)
    assert drawn(blocks, [text(2, 2)], 6) == [greedy(plain_model, prompt + text(2, 2), 6)]


def test_half_precision_is_no_reason_to_refuse():
    Sharing(model(dtype=torch.bfloat16))


# ---------------------------------------------------------------- through the engine, on the small model

QUESTION = Prompt.user("What is the capital of France, and what is it known for?")


async def test_one_worker_without_a_name_is_ordinary_greedy_decoding(white_box):
    greedy = Sampling(temperature=0.0, max_tokens=16)
    [usual], _ = await white_box.generate(Generate(QUESTION, sampling=greedy), seed=0)
    alone = Workers(names=("",), layout="interleaved")
    [drawn], usage = await white_box.generate(Generate(QUESTION, sampling=greedy, workers=alone), seed=0)
    assert drawn.text.removesuffix(" <...>") == usual.text
    assert (usage.input_tokens, usage.output_tokens) == (white_box.count_tokens(QUESTION), 16)


async def test_two_workers_write_half_the_calls_and_the_same_again(white_box):
    workers = Workers(
        names=("Alice", "Bob"), past="### Past\n\n", others="\n\n### Others\n\n", own="\n\n### I\n\n"
    )
    asked = Generate(QUESTION, sampling=Sampling(temperature=1.0, max_tokens=17), workers=workers)
    [first], usage = await white_box.generate(asked, seed=3)
    calls = []
    _, sharing = white_box._groups._sharing
    hook = sharing.model.register_forward_hook(lambda *_: calls.append(1))
    [again], _ = await white_box.generate(asked, seed=3)
    hook.remove()
    assert first == again
    assert len(calls) == 3 + 8  # the prompt and two headings, then a token for each worker
    assert first.n_tokens == usage.output_tokens == 16  # the 17th would be one worker's alone
    assert "**Alice [1]:**" in first.text and "**Bob [1]:**" in first.text and "#" not in first.text[-9:]


async def test_what_workers_cannot_keep_is_refused(white_box):
    workers = Workers(names=("A", "B"))
    for words in ({"logprobs": True}, {"sampling": Sampling(stop=("x",))}):
        with pytest.raises(EngineError, match="leave them out"):
            await white_box.generate(Generate(QUESTION, workers=workers, **words), seed=0)


async def test_a_cancelled_group_stops(white_box):
    asked = Generate(QUESTION, sampling=Sampling(max_tokens=1500), workers=Workers(names=("A", "B")))
    task = asyncio.create_task(white_box.generate(asked, seed=0))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    short = Generate(QUESTION, sampling=Sampling(max_tokens=2), workers=Workers(names=("A", "B")))
    await asyncio.wait_for(white_box.generate(short, seed=0), 60)  # 750 calls would take longer
