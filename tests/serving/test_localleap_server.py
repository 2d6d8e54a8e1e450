"""LocalLeap on a real SGLang server of a small block-diffusion model: the text of a plain recomputation."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from abduce.serving.errors import UsageError
from abduce.serving.sglang import launch

from .sglang_env import launcher
from .test_plugin_server import entry_point

pytestmark = pytest.mark.sglang

ROOT = Path(__file__).parents[2]
BLOCK, MASK, N_BLOCKS = 4, 151669, 4  # SGLang's own for SDAR
SETTINGS = {"anchor_threshold": 0.5, "relaxed_threshold": 0.2, "radius": 1}
LITERAL = 1
"""The prompt that holds the mask's id as text."""


def prompts() -> list[list[int]]:
    """Of whole blocks, with a literal mask, shorter than a block, and long."""
    rng = random.Random(0)
    made = [[rng.randrange(1000, 40000) for _ in range(n)] for n in (8, 9, 3, 21)]
    made[LITERAL][8] = MASK
    return made


@pytest.fixture(scope="module")
def expected(hf_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The model's folder, and for each prompt the ids and the forwards."""
    if not launcher.PYTHON.exists():
        pytest.skip("needs a real SGLang server: make test-sglang")
    folder = tmp_path_factory.mktemp("diffusion")
    asked = {"folder": str(folder), "tokenizer": str(hf_model), "prompts": prompts(), "blocks": N_BLOCKS}
    asked |= {"block": BLOCK, "mask": MASK, "settings": SETTINGS}
    return folder, launcher.told("diffusion.py", **asked)


def start(model: Path, factory: pytest.TempPathFactory, settings: dict[str, Any]) -> launch.Server:
    place = factory.mktemp("localleap")
    (place / "rule.yaml").write_text(json.dumps(settings))
    named = ["--dllm-algorithm", "LocalLeap", "--dllm-algorithm-config", str(place / "rule.yaml")]
    named += ["--max-running-requests", "4", "--max-total-tokens", "2048", "--context-length", "256"]
    environment = {"PYTHONPATH": f"{launcher.STAND_INS}:{ROOT}:{entry_point(factory)}"}
    return launcher.server(model, place / "log", *named, environment=environment)


@pytest.fixture(scope="module")
def server(
    expected: tuple[Path, list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[launch.Server]:
    """A server with SGLang's default loop; both loops: test_plugin_localleap.py."""
    started = start(expected[0], tmp_path_factory, SETTINGS)
    with launcher.running(started):
        yield started


def ask(server: launch.Server, route: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(server.url + route, data, {"Content-Type": "application/json"})
    return json.loads(urlopen(request, timeout=300).read())


def write(server: launch.Server, ids: list[list[int]], n: int, **more: Any) -> list[Any]:
    params = {"temperature": 0, "max_new_tokens": n, "ignore_eos": True, **more}
    replies: list[Any] = ask(server, "/generate", {"input_ids": ids, "sampling_params": params})
    return replies


def counts(server: launch.Server) -> dict[str, int]:
    told: dict[str, int] = ask(server, "/server_info")["internal_states"][0]["abduce"]["localleap"]
    return told


def test_the_text_is_that_of_a_plain_recomputation(
    server: launch.Server, expected: tuple[Path, list[Any]]
) -> None:
    """So the keys and values of a finished block, which later blocks read, are those of its final tokens."""
    replies = write(server, prompts(), BLOCK * N_BLOCKS)
    for reply, (ids, _) in zip(replies, expected[1], strict=True):
        assert reply["output_ids"][: len(ids)] == ids


def test_a_block_costs_its_forwards_and_one_more(server: launch.Server) -> None:
    prompt = prompts()[0]
    before = counts(server)
    assert before["used"] and before["radius"] == 1
    write(server, [[7, *prompt[1:]]], BLOCK * N_BLOCKS)  # nothing of it is known yet
    after = counts(server)
    gained = {name: after[name] - before[name] for name in ("forwards", "blocks", "tokens")}
    assert gained["tokens"] == BLOCK * N_BLOCKS
    assert gained["blocks"] == len(prompt) // BLOCK + N_BLOCKS
    assert gained["blocks"] <= gained["forwards"] <= gained["blocks"] + gained["tokens"]


def test_a_prefix_that_is_kept_is_gone_on_from(
    server: launch.Server, expected: tuple[Path, list[Any]]
) -> None:
    for prompt, (ids, _) in zip(prompts(), expected[1], strict=True):
        half = len(ids) - 2 * BLOCK
        [reply] = write(server, [prompt + ids[:half]], 2 * BLOCK)
        assert reply["output_ids"] == ids[half:]
        assert reply["meta_info"]["cached_tokens"] > 0


def test_a_temperature_is_refused(server: launch.Server) -> None:
    with pytest.raises(HTTPError, match="400") as caught:
        write(server, prompts()[:1], 4, temperature=0.7)
    assert "ask for temperature 0" in caught.value.read().decode()


def test_a_bad_configuration_ends_the_start(
    expected: tuple[Path, list[Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    bad = start(expected[0], tmp_path_factory, {"relaxed_threshold": 0.95})
    with pytest.raises(UsageError, match="ended with code"), launcher.running(bad):
        pass
    assert "relaxed_threshold <= anchor_threshold" in bad.log.read_text()
