"""The same weights in three engines: SGLang and transformers in float32, llama.cpp as it was quantised."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from abduce.serving.embedded import Embedded
from abduce.serving.flow import LogProb, Message, Prompt, Rate
from abduce.serving.sglang import Sglang, launch

from .sglang_env import launcher

pytestmark = pytest.mark.sglang

TEXTS = {
    "What is the sea?": (
        " The sea is a body of salt water that covers most of the Earth. It is home to many kinds "
        "of fish, and people have sailed on it for thousands of years."
    ),
    "What is 17 + 25?": (
        " To add 17 and 25, first add the tens: 10 + 20 = 30. Then add the ones: 7 + 5 = 12. "
        "Together that is 30 + 12 = 42."
    ),
    "Name three colours.": (" Red, green and blue are three colours. Orange and violet are two more."),
    "Write a line of Python.": (" print(sum(range(10)))  # the numbers from 0 to 9 add up to 45"),
    "Tell me a story.": (
        " Once upon a time there was a little fox who lived at the edge of a wood. Every morning "
        "she walked down to the river, drank, and looked at the clouds in the water."
    ),
    "How is bread made?": (
        " Mix flour, water, yeast and a little salt. Knead the dough for ten minutes, cover it, and"
        " let it rise until it has doubled. Shape a loaf, let it rise once more, and bake it in a "
        "hot oven for about forty minutes. It is done when it sounds hollow."
    ),
    "Why is the sky blue?": (
        " Light from the sun is a mixture of all colours. When it passes through the air, small "
        "molecules scatter the short blue waves much more than the long red ones. So blue light "
        "reaches our eyes from every part of the sky, while at sunset most of it has been lost on "
        "the way."
    ),
    "What does a compiler do?": (
        " A compiler reads a program that people have written and turns it into instructions that a"
        " machine can carry out. It checks the text for mistakes, builds a tree of its parts, makes"
        " the result faster where it can, and writes the code to a file."
    ),
    "Write a letter to a friend.": (
        " Dear Anna, I hope you are well. We arrived in the mountains on Friday after a long drive,"
        " and it has snowed ever since. The children built a snowman that is taller than I am. We "
        "miss you, and hope that you can come in the spring. Yours, Peter"
    ),
    "Who was Isaac Newton?": (
        " Isaac Newton was an English scientist who lived from 1643 to 1727. He described the laws "
        "of motion and gravity, built the first telescope with a mirror, and showed that white "
        "light is made of many colours."
    ),
}


def reference(folder: Path, rows: list[list[int]]) -> Any:
    """What transformers says: see `sglang_env/reference.py`."""
    return launcher.told("reference.py", folder=str(folder), rows=rows)


async def test_three_engines_give_one_log_likelihood(
    sglang_server: launch.Server, embedded: Embedded, hf_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, starts, ours, llama = [], [], [], []
    gap = 0.0
    async with Sglang(sglang_server.url) as engine:
        for question, text in TEXTS.items():
            prompt = Prompt.user(question)
            ids = embedded._continuation(prompt, text)
            asked = LogProb(prompt, continuation_ids=ids)
            cold, _ = await engine.logprob(asked)
            hot, _ = await engine.logprob(asked)
            gap = max(gap, max(abs(x - y) for x, y in zip(cold.logprobs, hot.logprobs, strict=True)))
            ours.append(hot.logprobs)
            llama.append((await embedded.logprob(asked)).value.logprobs)
            head = embedded._tokens(prompt)
            assert head == await engine._ids(prompt)  # one tokeniser, one chat template
            rows.append([*head, *ids])
            starts.append(len(head) - 1)
    torch = [told[start:] for told, start in zip(reference(hf_model, rows), starts, strict=True)]
    flat = {
        name: np.concatenate([np.asarray(each) for each in table])
        for name, table in (("sglang", ours), ("transformers", torch), ("embedded", llama))
    }
    n = len(flat["sglang"])
    with capsys.disabled():
        print(f"\n{n} tokens; cold and warm differ by {gap:.1e} nats at most")
        for other in ("transformers", "embedded"):
            off = flat[other] - flat["sglang"]
            mean, apart, most = off.mean(), np.abs(off).mean(), np.abs(off).max()
            print(f"{other} - sglang: mean {mean:+.5f}, mean |.| {apart:.5f}, most {most:.5f} nats a token")
    assert n > 400
    assert gap < 1e-4
    assert abs((flat["transformers"] - flat["sglang"]).mean()) < 0.02
    assert abs((flat["embedded"] - flat["sglang"]).mean()) < 0.02


def reward_folder(model: Path, folder: Path) -> Path:
    """A reward model: two layers of the small model under a head of random numbers."""
    folder.mkdir()
    for file in model.iterdir():
        if file.name.startswith("tokenizer"):
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "num_hidden_layers": 2, "num_labels": 1}
    config |= {"id2label": {"0": "score"}, "label2id": {"score": 0}}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {
        name: value
        for name, value in load_file(model / "model.safetensors").items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < 2
    }
    weights.pop("lm_head.weight", None)
    head = np.random.default_rng(0).normal(size=(1, config["hidden_size"]))
    save_file(
        weights | {"score.weight": head.astype("float16")}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


@pytest.fixture(scope="module", autouse=True)
def rater(hf_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[launch.Server]:
    """A server of a reward model, which loads while the other test runs."""
    if not launcher.PYTHON.exists():
        pytest.skip("needs a real SGLang server: make test-sglang")
    folder = reward_folder(hf_model, tmp_path_factory.mktemp("rater") / "model")
    words = ["--is-embedding", "--max-total-tokens", "4096"]
    server = launcher.server(folder, folder.parent / "log", *words)
    yield server
    server.kill()


async def test_a_served_reward_model_rates_as_transformers_does(rater: launch.Server) -> None:
    question = Prompt.user("What is 17 + 25?").messages
    prompts = [
        Prompt(question, "It is 42."),
        Prompt(question, "It is 43."),
        Prompt((*question, Message("assistant", "It is 42."))),
    ]
    await asyncio.to_thread(rater.wait, 900)
    async with Sglang(rater.url) as engine:
        replies = [await engine.rate(Rate(prompt)) for prompt in prompts]
        rows = [list(await engine._talk(engine._tokens.whole(prompt))) for prompt in prompts]
    assert [usage.input_tokens for _, usage in replies] == [len(row) for row in rows]
    assert len({score for score, _ in replies}) == 3
    expected = [told[0] for told in reference(rater.log.parent / "model", rows)]
    assert [score for score, _ in replies] == pytest.approx(expected, abs=1e-3, rel=1e-3)
