"""A llama with Engram layers: its folder, its cache, and the engine over it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")
transformers = pytest.importorskip("transformers")
pytest.importorskip("llguidance")

from abduce.serving import engram_folder, hf_folder  # noqa: E402
from abduce.serving.errors import UsageError  # noqa: E402
from abduce.serving.flow import Generate, LogProb, Prompt, Sampling  # noqa: E402
from abduce.serving.kernels.engram import hash_rows, predecessors  # noqa: E402
from abduce.serving.transformers import Transformers, engram  # noqa: E402
from abduce.serving.workers import Workers  # noqa: E402

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "another", "cat", "that", "sat", "there"]


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([" ".join(WORDS), " ".join(WORDS).title()], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    made = engram.new(
        tokenizer,
        layers=(0, 1),
        max_order=3,
        n_heads=2,
        d_head=8,
        base=101,
        vocab_size=310,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    for weight in made.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.3)
    return made.eval()


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    return engram.save(model, tokenizer, tmp_path_factory.mktemp("engram"))


def ids(n, batch=1, seed=0):
    return torch.randint(2, 300, (batch, n), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def plain(model, text):
    """Logits without a cache."""
    return model(text, use_cache=False).logits


@torch.no_grad()
def greedy(model, text, n):
    for _ in range(n):
        text = torch.cat([text, plain(model, text)[:, -1:].argmax(-1)], 1)
    return text


def test_a_folder_gives_the_same_model(model, folder):
    engram.register()
    again = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"] == [type(model).__name__]
    assert torch.equal(plain(again, ids(20)), plain(model, ids(20)))


def test_rows_are_those_of_the_whole_text(model):
    text, inner = ids(9), model.model
    mapped = inner.addresses.token_map[text[0]]
    pad = int(inner.addresses.token_map[inner.shape.pad])
    near = inner._near(text, torch.arange(9)[None], None)
    for found, layout in zip(inner.addresses.of(near[0]), inner.addresses.layouts, strict=True):
        assert torch.equal(found, hash_rows(predecessors(mapped, [9], 3, pad), layout))


@pytest.mark.parametrize("steps", [(1, 1, 1, 1, 16), (5, 1, 1, 13), (2, 18)], ids=str)
def test_parts_through_the_cache_are_one_pass(model, steps):
    text, begun, cache = ids(20, batch=3), 0, None
    expected = plain(model, text)
    for n in steps:
        with torch.no_grad():
            told = model(text[:, begun : begun + n], past_key_values=cache, use_cache=True)
        cache = told.past_key_values
        torch.testing.assert_close(told.logits, expected[:, begun : begun + n], rtol=1e-4, atol=1e-4)
        begun += n


def test_generate_and_beams_keep_the_tokens_with_the_cache(model):
    text = ids(7, batch=2)
    words = {"attention_mask": torch.ones_like(text), "pad_token_id": 1, "do_sample": False}
    n = {"min_new_tokens": 8, "max_new_tokens": 8}
    assert torch.equal(model.generate(text, **words, **n)[:, 7:9], greedy(model, text, 2)[:, 7:9])
    with_cache, without = (
        model.generate(text, **words, **n, num_beams=3, use_cache=x) for x in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_what_it_cannot_read_is_refused(model):
    text = ids(4, batch=2)
    left = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    with pytest.raises(ValueError, match="without padding"):
        model(text, attention_mask=left, use_cache=False)
    with pytest.raises(ValueError, match="without padding"):
        model(text, attention_mask=left.flip(1), use_cache=True)
    with pytest.raises(ValueError, match="token ids"):
        model(inputs_embeds=torch.zeros(1, 3, 32))
    right = plain(model, text)
    told = model(text, attention_mask=left.flip(1), use_cache=False).logits
    torch.testing.assert_close(told[0, :3], right[0, :3], rtol=1e-4, atol=1e-4)


def test_another_tokeniser_is_refused(model, tokenizer, folder, tmp_path):
    file = folder / "tokenizer.json"
    told = json.loads(file.read_text())
    vocabulary = told["model"]["vocab"]
    one, other = "x", "?"
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    copy = tmp_path / "copy"
    copy.mkdir()
    for each in folder.iterdir():
        (copy / each.name).write_bytes(each.read_bytes())
    (copy / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match="another tokeniser"):
        engram.save(model, transformers.AutoTokenizer.from_pretrained(copy), tmp_path / "never")
    assert not (tmp_path / "never").exists()
    served = Transformers(model=copy, threads=1)
    with pytest.raises(UsageError, match="another tokeniser"):
        served._both()


async def test_the_engine_writes_what_a_plain_recomputation_does(model, folder):
    """Several rows at once over slots, and then from prefixes that it has kept."""
    served = Transformers(model=folder, threads=1, slots=4, context=128)
    try:
        texts = [" ".join(WORDS[:n]) for n in (1, 2, 5, 9)] * 2
        for text in texts:
            prompt = Prompt(prefix=text)
            given = served._ids(prompt)
            expected = greedy(model, torch.tensor([list(given)]), 10)[0, len(given) :].tolist()
            if 1 in expected:
                expected = expected[: expected.index(1) + 1]
            asked = Generate(prompt, n=2, sampling=Sampling(temperature=0, max_tokens=10), logprobs=True)
            for drawn in (await served.generate(asked, seed=0)).value:
                assert list(drawn.ids) == expected[: len(drawn.ids)]
                assert len(drawn.ids) >= len(expected) - 1
            scored = await served.logprob(LogProb(prompt, continuation_ids=tuple(expected)))
            law = torch.log_softmax(plain(model, torch.tensor([[*given, *expected]]))[0].double(), -1)
            wanted = [float(law[len(given) - 1 + i, token]) for i, token in enumerate(expected)]
            assert scored.value.logprobs == pytest.approx(wanted, abs=1e-4)
    finally:
        await served.close()


async def test_methods_that_move_a_token_among_others_are_refused(folder):
    asked = Generate(Prompt(prefix=" ".join(WORDS)), sampling=Sampling(max_tokens=2))
    served = Transformers(model=folder, threads=1)
    with pytest.raises(UsageError, match="addressed by the tokens before"):
        await served.generate(replace(asked, workers=Workers(names=("Alice", "Bob"))), seed=0)
    await served.close()
    trained = Transformers(model=folder, threads=1, query_ttt={"n_steps": 1, "min_tokens": 4})
    with pytest.raises(UsageError, match="does not train"):
        await trained.generate(asked, seed=0)
    await trained.close()


def test_the_example_of_the_document_runs(tmp_path, monkeypatch):
    try:
        hf_folder.small_model()
    except UsageError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[3] / "docs" / "kernels" / "engram.md").read_text(encoding="utf-8")
    exec(re.findall(r"```py\n(.*?)```", text, re.DOTALL)[1], {})
    assert engram_folder.shape_in(tmp_path / "my-model").layers == (1,)
