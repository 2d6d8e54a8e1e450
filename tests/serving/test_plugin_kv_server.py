"""The KV methods on real SGLang servers: chosen by flag, exact within their budget, and good neighbours."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from abduce.serving.sglang import launch
from abduce.serving.sglang.plugin.kv_config import backend_of, parse

from .sglang_env import launcher
from .test_plugin_server import CASES, ROOT, ask, entry_point, generate, ids

pytestmark = pytest.mark.sglang

METHODS = [
    "ems:budget=72,window=16,tail=8,mass_bias=true,unrotated=true,release=true",
    "actqkv:budget=32,page=8,first=8,last=32,k_min=1,refresh=2",
    "deltallm:theta=0.0,local=64,block=8",  # Θ = 0: runs of single tokens, the keep ratio is 1
]
PREFIX = " ".join(f"{n} and {n} make {2 * n}." for n in range(1, 16))  # 149 tokens
WITHIN = CASES[:4]
BEYOND = [(PREFIX + more, {"max_new_tokens": 16}) for more in (" 16 and 16", " Again: 1 and")]
EXACT = {"custom_params": {"abduce_kv": "exact"}}
ROOM = 640  # tokens that the server has room for that gives slots back
N_REQUESTS = 168  # of each server: 504
N_CLIENTS = 24


@pytest.fixture(scope="module")
def stock(sglang_server: launch.Server) -> list[list[int]]:
    """What the stock server says to all cases, asked before the others start."""
    return ids(generate(sglang_server, [*WITHIN, *BEYOND]))


@pytest.fixture(scope="module")
def servers(
    stock: list[list[int]], hf_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, launch.Server]]:
    """One for each method, with a strict check of the memory after each step. They start together."""
    if not launcher.PYTHON.exists():
        pytest.skip("needs a real SGLang server: make test-sglang")
    folder = entry_point(tmp_path_factory)
    starting = {}
    for text in METHODS:
        chosen = launch.flags(gpu=False, amx=False, kv=parse(text))
        environment = {
            **launch.variables(chosen),
            "PYTHONPATH": f"{launcher.STAND_INS}:{ROOT}:{folder}",
            "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
            "OMP_NUM_THREADS": "1",  # three servers on the cores of a small machine
        }
        room = str(ROOM if "release" in text else 4096)
        words = ["--max-total-tokens", room, "--attention-backend", backend_of(parse(text))]
        # What the others take while this one loads counts against its share; the tokens bound it.
        words += ["--mem-fraction-static", "0.6"]
        log = tmp_path_factory.mktemp("kv") / "log"
        starting[text] = launcher.server(hf_model, log, *words, environment=environment)
    with launcher.running(*starting.values()):
        yield starting


@pytest.fixture(params=METHODS, ids=lambda text: str(text).partition(":")[0])
def method(request: pytest.FixtureRequest) -> str:
    text: str = request.param
    return text


def state(server: launch.Server) -> Any:
    return ask(server, "/server_info")["internal_states"][0]["abduce"]["kv"]


def post(server: launch.Server, route: str, **body: str) -> None:
    """Ask for something that is answered without JSON."""
    words = {"Content-Type": "application/json"}
    urlopen(Request(server.url + route, json.dumps(body).encode(), words), timeout=60).read()


def flush(server: launch.Server) -> None:
    """Empty the prefix cache, which a server does that has put its last request away."""
    end = monotonic() + 60
    while True:
        try:
            return post(server, "/flush_cache")
        except HTTPError:
            if monotonic() > end:
                raise


def logprobs(reply: Any) -> Any:
    return reply["meta_info"]["output_top_logprobs"]


def test_the_flag_chooses_the_backend(servers: dict[str, launch.Server], method: str) -> None:
    told = state(servers[method])
    assert (told["used"], told["method"]) == (backend_of(parse(method)), method)


def test_within_the_budget_greedy_text_is_the_stock_servers(
    servers: dict[str, launch.Server], stock: list[list[int]], method: str
) -> None:
    before = state(servers[method])
    assert ids(generate(servers[method], WITHIN)) == stock[: len(WITHIN)]
    after = state(servers[method])
    assert after["steps"] > before["steps"]
    assert after["reduced"] == before["reduced"]


def test_at_a_keep_ratio_of_one_greedy_text_is_the_stock_servers(
    servers: dict[str, launch.Server], stock: list[list[int]]
) -> None:
    """By the method's own reading, far beyond the window."""
    server = servers[METHODS[2]]
    assert ids(generate(server, BEYOND)) == stock[len(WITHIN) :]
    told = state(server)
    assert told["reduced"] >= 30
    assert told["runs"] == told["tokens_encoded"] > 0


def test_a_neighbour_under_a_method_changes_no_bit_of_exact_logits(
    servers: dict[str, launch.Server], method: str
) -> None:
    """First the neighbour, whose prefix the other finds in the cache; then the other. The neighbour is once
    exact, which is the stock backend, and once under the method."""
    server, found = servers[method], []
    for params in (EXACT, {}):
        flush(server)
        cases = [
            (PREFIX, {"max_new_tokens": 12, **params}),
            (PREFIX + " One more:", {"max_new_tokens": 12, **EXACT}),
        ]
        told = [generate(server, [case], return_logprob=True, top_logprobs_num=5)[0] for case in cases]
        assert told[1]["meta_info"]["cached_tokens"] > 140
        found.append([logprobs(reply) for reply in told])
    (exact, beside_exact), (reduced, beside_reduced) = found
    assert beside_reduced == beside_exact
    assert reduced[0] == exact[0]  # the prompt's own law is exact
    if "theta=0.0" not in method:
        assert reduced != exact


def test_what_was_generated_under_a_method_is_nobodys_prefix(
    servers: dict[str, launch.Server], method: str
) -> None:
    server = servers[method]
    flush(server)
    first = generate(server, [(PREFIX, {"max_new_tokens": 16})], return_logprob=True, logprob_start_len=0)[0]
    prompt = [token for _, token, _ in first["meta_info"]["input_token_logprobs"]]
    longer = [*prompt, *first["output_ids"]]
    params = {"temperature": 0, "max_new_tokens": 4, **EXACT}
    body = {"input_ids": longer, "sampling_params": params, "return_logprob": True, "top_logprobs_num": 5}
    ours = ask(server, "/generate", body)
    assert len(prompt) - 1 <= ours["meta_info"]["cached_tokens"] <= len(prompt)
    flush(server)
    afresh = ask(server, "/generate", body)
    assert afresh["meta_info"]["cached_tokens"] == 0
    for a, b in zip(logprobs(ours), logprobs(afresh), strict=True):
        assert [p for p, _, _ in a] == pytest.approx([p for p, _, _ in b], abs=1e-4)


def test_more_requests_fit_where_slots_are_given_back(servers: dict[str, launch.Server]) -> None:
    """Prompts that share nothing: exactly, no more can run than the memory holds prompts."""
    server, widest, fit = servers[METHODS[0]], [], 0
    prompt = PREFIX[: PREFIX.index(" 11 and")]
    for params in (EXACT, {}):
        flush(server)
        cases = [(f"{n}: {prompt}", {"max_new_tokens": 20, "ignore_eos": True, **params}) for n in range(8)]
        replies = [reply["meta_info"] for reply in generate(server, cases)]
        assert [reply["completion_tokens"] for reply in replies] == [20] * 8
        widest.append(state(server)["widest"])
        fit = ROOM // replies[0]["prompt_tokens"]
    assert widest[0] <= fit < widest[1]


def test_the_memory_is_accounted_for_after_many_requests_and_aborts(
    servers: dict[str, launch.Server],
) -> None:
    """Requests of all kinds, a fifth of them aborted, on all servers; a leak would have ended one."""

    def client(number: int) -> str:
        dice = random.Random(number)
        server = servers[METHODS[number % len(METHODS)]]
        words = PREFIX.split()
        text = " ".join([*words[: dice.randrange(len(words))], f"So {dice.randrange(9)}"])
        params = {"temperature": 0.8, "max_new_tokens": dice.choice([1, 2, 2, 3]), "ignore_eos": True}
        params |= EXACT if dice.random() < 0.3 else {}
        body: dict[str, Any] = {"text": text, "sampling_params": params, "rid": f"mixed-{number}"}
        if dice.random() < 0.2:
            params["max_new_tokens"] = 200
            with ThreadPoolExecutor(1) as other:
                waiting = other.submit(ask, server, "/generate", body)
                while not waiting.done():
                    try:
                        waiting.result(timeout=dice.uniform(0.05, 0.4))
                    except TimeoutError:
                        post(server, "/abort_request", rid=body["rid"])
                reply = waiting.result()
        else:
            reply = ask(server, "/generate", body)
        return str(reply["meta_info"]["finish_reason"]["type"])

    with ThreadPoolExecutor(N_CLIENTS) as pool:
        ends = list(pool.map(client, range(N_REQUESTS * len(METHODS))))
    assert ends.count("length") > 0.7 * len(ends)
    assert ends.count("abort") > 0.1 * len(ends)
    for server in servers.values():
        flush(server)
        generate(server, [("Hello", {"max_new_tokens": 2})])
        told = state(server)
        assert told["rows"] <= 1
        assert told["side_slots"] == 0
        assert "Leak" not in server.log.read_text()
