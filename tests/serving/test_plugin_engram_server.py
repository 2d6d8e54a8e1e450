"""A model with Engram tables on real SGLang servers: what a plain recomputation says, whatever was cached."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from abduce.serving.sglang import launch

from .sglang_env import launcher
from .test_plugin_server import ROOT, ask, entry_point

pytestmark = pytest.mark.sglang

N_NEW = 12
Said = list[tuple[list[int], list[float], float]]


def prompts() -> list[list[int]]:
    """Shorter than an n-gram, of one chunk, of several that end at any place of a chunk, and some that go on
    from the same beginning."""
    dice = random.Random(0)
    made = [[dice.randrange(1000, 40000) for _ in range(n)] for n in (1, 2, 3, 5, 16, 17, 18, 19, 33, 50, 79)]
    return made + [made[-1][:n] + [dice.randrange(1000, 40000) for _ in range(3)] for n in (1, 2, 3, 40, 41)]


@pytest.fixture(scope="module")
def expected(hf_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """The model's folder, and what it says to each prompt."""
    if not launcher.PYTHON.exists():
        pytest.skip("needs a real SGLang server: make test-sglang")
    folder = tmp_path_factory.mktemp("engram")
    asked = {"folder": str(folder), "tokenizer": str(hf_model), "prompts": prompts(), "n_new": N_NEW}
    return folder, launcher.told("engram.py", **asked)


@pytest.fixture(scope="module")
def servers(
    expected: tuple[Path, Said], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, launch.Server]]:
    """One that decodes token by token, one by trees of drafts. Both read prompts in small parts, of 16 and of
    64 tokens, and have room for few texts, so that slots are given up and used again."""
    entry = entry_point(tmp_path_factory)
    environment = {
        "PYTHONPATH": f"{launcher.STAND_INS}:{ROOT}:{entry}",
        "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
        "OMP_NUM_THREADS": "1",
    }
    words = ["--max-total-tokens", "1024", "--context-length", "256", "--chunked-prefill-size", "16"]
    words += ["--max-running-requests", "8", "--mem-fraction-static", "0.6"]
    trees = ["--attention-backend", "abduce_tree", "--speculative-algorithm", "LOOKAHEAD"]
    trees += ["--speculative-num-draft-tokens", "6", "--chunked-prefill-size", "64"]
    trees += ["--json-model-override-args", '{"engram_kept": 300}']
    starting = {}
    for name, more in {"plain": [], "trees": trees}.items():
        log = tmp_path_factory.mktemp(name) / "log"
        starting[name] = launcher.server(expected[0], log, *words, *more, environment=environment)
    with launcher.running(*starting.values()):
        yield starting


@pytest.fixture
def plain(servers: dict[str, launch.Server]) -> launch.Server:
    return servers["plain"]


def write(server: launch.Server, ids: list[list[int]], n: int = N_NEW, **custom: Any) -> list[Any]:
    params = {"temperature": 0, "max_new_tokens": n, "ignore_eos": True, "custom_params": custom}
    body = {"input_ids": ids, "sampling_params": params, "return_logprob": True}
    replies: list[Any] = ask(server, "/generate", body)
    return replies


def logprobs(reply: Any) -> list[float]:
    return [value for value, _, _ in reply["meta_info"]["output_token_logprobs"]]


def state(server: launch.Server, member: str = "engram") -> Any:
    return ask(server, "/server_info")["internal_states"][0]["abduce"][member]


def flush(server: launch.Server) -> None:
    urlopen(server.url + "/flush_cache?timeout=30", b"", timeout=60).read()


def same(reply: Any, said: tuple[list[int], list[float], float]) -> None:
    assert reply["output_ids"] == said[0]
    assert logprobs(reply) == pytest.approx(said[1], abs=1e-4)


def test_the_folder_is_served_with_its_tables(plain: launch.Server, expected: tuple[Path, Said]) -> None:
    told = state(plain)
    assert (told["used"], told["layers"], told["orders"]) == (True, [0, 2], 4)
    assert told["host_bytes"] == told["rows"] * 8 * 4
    before = told["tokens"]
    write(plain, [[5, 6, 7]], n=1)
    after = state(plain)
    assert after["tokens"] == before + 3
    assert 0 < after["asked"] - told["asked"] <= 3 * 2 * 6  # tokens, layers, columns
    assert after["copied_bytes"] == after["asked"] * 8 * 4


def test_a_lost_token_would_be_seen(expected: tuple[Path, Said]) -> None:
    """So the tests below can fail: without the tokens before, the law differs by far more than they allow."""
    differences = [
        abs(said[1][0] - said[2])
        for prompt, said in zip(prompts(), expected[1], strict=True)
        if len(prompt) > 1
    ]
    assert min(differences) > 1e-3
    assert sorted(differences)[len(differences) // 2] > 0.05


def test_prompts_in_parts_and_steps_give_the_text_of_a_plain_recomputation(
    plain: launch.Server, expected: tuple[Path, Said]
) -> None:
    flush(plain)
    for prompt, said in zip(prompts(), expected[1], strict=True):
        same(write(plain, [prompt])[0], said)
        flush(plain)


def test_a_prefix_from_the_cache_changes_nothing(plain: launch.Server, expected: tuple[Path, Said]) -> None:
    """At every place where it can end near the beginning, and around the parts of a prompt."""
    i = prompts().index(next(p for p in prompts() if len(p) == 50))
    prompt, said = prompts()[i], expected[1][i]
    for n in (1, 2, 3, 4, 15, 16, 17, 47, 48, 49):
        flush(plain)
        write(plain, [prompt[:n]], n=1)
        [reply] = write(plain, [prompt])
        assert reply["meta_info"]["cached_tokens"] == n
        same(reply, said)


def test_a_text_that_the_server_wrote_itself_is_gone_on_from(
    plain: launch.Server, expected: tuple[Path, Said]
) -> None:
    for prompt, (ids, values, _) in zip(prompts(), expected[1], strict=True):
        flush(plain)
        write(plain, [prompt])
        for half in (N_NEW - 6, N_NEW - 5):
            [reply] = write(plain, [prompt + ids[:half]], n=N_NEW - half)
            assert reply["meta_info"]["cached_tokens"] >= len(prompt) + half - 1
            assert reply["output_ids"] == ids[half:]
            assert logprobs(reply) == pytest.approx(values[half:], abs=1e-4)


@pytest.mark.parametrize("name", ["plain", "trees"])
def test_many_at_once_with_slots_used_again(
    servers: dict[str, launch.Server], expected: tuple[Path, Said], name: str
) -> None:
    dice = random.Random(1)
    known = list(zip(prompts(), expected[1], strict=True))
    asked = [dice.choice(known) for _ in range(80)]

    def client(case: tuple[list[int], tuple[list[int], list[float], float]]) -> None:
        [reply] = write(servers[name], [case[0]], abduce_tenant="one")
        same(reply, case[1])

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(client, asked))
    assert "Leak" not in servers[name].log.read_text()


def test_trees_of_drafts_give_the_text_of_a_plain_recomputation(
    servers: dict[str, launch.Server], expected: tuple[Path, Said]
) -> None:
    """Drafts that are kept: what the tenant has been told before. And drafts that branch off: other texts
    with the same tokens in them."""
    server = servers["trees"]
    write(server, [prompt + ids for prompt, (ids, _, _) in zip(prompts(), expected[1], strict=True)], n=2)
    before = state(server, "lookahead")
    for _ in range(2):
        for prompt, said in zip(prompts(), expected[1], strict=True):
            same(write(server, [prompt], abduce_tenant="two")[0], said)
    after = state(server, "lookahead")
    gained = {name: after[name] - before[name] for name in ("forwards", "tokens")}
    assert gained["tokens"] > 1.3 * gained["forwards"]
    told = state(server)
    assert 0 < told["hits"] < told["asked"]  # rows that were kept
