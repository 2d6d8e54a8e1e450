from pathlib import Path

import numpy as np
import pytest

from abduce.serving import hf_folder
from abduce.serving.embedded import Embedded
from abduce.serving.errors import UsageError
from abduce.serving.flow import LogProb, Prompt

ODD = ["12345 + 1 = 12346", "a  b\n\n\tüñ 🎉 x12", " lead", "don't we'll", "x\r\n\r\ny", "", "日本語 ½"]


@pytest.fixture(scope="session")
def folder(small_model: str) -> Path:
    return hf_folder.small_model()


def test_the_tokeniser_is_that_of_the_embedded_engine(folder: Path, embedded: Embedded) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ODD:
        ids = tokenizer.encode(text).ids
        assert len(ids) == embedded.count_tokens(Prompt(prefix=text))
        assert tokenizer.decode(ids) == text


def test_the_rotary_pairs_are_undone() -> None:
    class Whole:
        @staticmethod
        def dequantize(data: np.ndarray, _: object) -> np.ndarray:
            return data

    class Stored:
        name, tensor_type = "blk.7.attn_q.weight", None
        # two heads of 6 rows; GGUF interleaves the halves of a head: 0 3 1 4 2 5
        data = np.array([0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11], dtype="float32")[:, None]

    name, values = hf_folder._tensor(Whole, Stored, {"attn_q": 2})
    assert name == "model.layers.7.self_attn.q_proj.weight"
    assert values[:, 0].tolist() == list(range(12))


def test_a_second_conversion_leaves_the_first_alone(
    folder: Path, small_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = np.zeros(4, "float16")  # the weights take seconds, and are not what counts
    monkeypatch.setattr(hf_folder, "_tensor", lambda gguf, stored, heads: (stored.name, few))
    taken = tmp_path / "model"
    taken.mkdir()
    (taken / "config.json").write_text("{}")
    assert hf_folder.convert(Path(small_model), taken) == taken
    assert (taken / "config.json").read_text() == "{}"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "mamba.gguf"
    writer = gguf.GGUFWriter(file, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UsageError, match=r"mamba\.gguf cannot be converted"):
        hf_folder.convert(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_scores_are_those_of_the_embedded_engine(folder: Path, embedded: Embedded) -> None:
    """Up to the embedded engine's quantised kernels: 0.02 nats a token on average."""
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = " capital of France is Paris, a city with 2148000 people. Water boils at 100 degrees."
    told, _ = await embedded.logprob(LogProb(Prompt(prefix="The"), text))
    both = torch.tensor([Tokenizer.from_file(str(folder / "tokenizer.json")).encode("The" + text).ids])
    with torch.inference_mode():
        logp = model(both).logits.log_softmax(-1)[0, :-1].gather(1, both[0, 1:, None])[:, 0]
    assert float((logp - torch.tensor(told.logprobs)).mean().abs()) < 0.05
