"""The plug-in on a real SGLang server: lossless, exact in law, isolated, accounted for, loud when missing."""

import json
import math
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from abduce.serving.errors import UsageError
from abduce.serving.sglang import launch
from abduce.serving.sglang.plugin import MEMBERS

from .sglang_env import launcher

pytestmark = pytest.mark.sglang

ROOT = Path(__file__).parents[2]
LIST = "red apple, green pear, blue plum, black grape, white peach"
PROMPTS = [
    f"The list: {LIST}. The list once more: ",
    "The capital of France is",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "one two three one two three one two three one two",
]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stops": {"stop": ["pear", "\n"]},
    "repetition": {"repetition_penalty": 1.2},
    "penalties": {"frequency_penalty": 0.4, "presence_penalty": 0.3, "min_new_tokens": 9},
    "grammar": {"regex": "[A-Za-z, ]{3,30}[.]"},
    "on": {"ignore_eos": True},
}
DRAFTS: dict[str, list[str]] = {
    "wrong": ["apple apple pear 7 7 7", "The capital of France is the the the the"],
    "eos": ["The capital<|im_end|> of France<|endoftext|> is<|im_end|>", LIST],
}


def ask(server: launch.Server, route: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(server.url + route, data, {"Content-Type": "application/json"})
    try:
        return json.loads(urlopen(request, timeout=300).read())
    except HTTPError as error:
        return json.loads(error.read())


def generate(server: launch.Server, cases: list[tuple[str, dict[str, Any]]], **more: Any) -> list[Any]:
    """One batch of requests, greedy with 12 new tokens where a case says nothing else."""
    params = [{"temperature": 0, "max_new_tokens": 12, **params} for _, params in cases]
    body = {"text": [text for text, _ in cases], "sampling_params": params, **more}
    replies: list[Any] = ask(server, "/generate", body)
    return replies


def ids(replies: list[Any]) -> list[list[int]]:
    return [reply["output_ids"] for reply in replies]


def custom(tenant: str | None, drafts: list[str] | None = None, **more: str) -> dict[str, Any]:
    params: dict[str, Any] = {"abduce_drafts": drafts or [], **more}
    return {"custom_params": params if tenant is None else {**params, "abduce_tenant": tenant}}


CASES = [(prompt, setting) for setting in SETTINGS.values() for prompt in PROMPTS]
FEW = [0, 1, 8, 9]
"""Of these cases for many drafts: two prompts, with and without a repetition penalty."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the server finds the stand-ins, this package and its entry point, installed or not."""
    if not launcher.PYTHON.exists():
        pytest.skip("needs a real SGLang server: make test-sglang")
    return {"PYTHONPATH": f"{launcher.STAND_INS}:{ROOT}:{entry_point(tmp_path_factory)}"}


def entry_point(
    tmp_path_factory: pytest.TempPathFactory, value: str = "abduce.serving.sglang.plugin:register"
) -> Path:
    folder = tmp_path_factory.mktemp("entry")
    info = folder / "abduce_plugin-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: abduce-plugin\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[sglang.srt.plugins]\nabduce = {value}\n")
    return folder


@pytest.fixture(scope="module")
def plain(sglang_server: launch.Server) -> dict[str, Any]:
    """What a server without speculation and without the plug-in says, asked before the others start."""
    replies = generate(sglang_server, CASES)
    return {"ids": ids(replies), "texts": [reply["text"] for reply in replies]}


@pytest.fixture(scope="module")
def servers(
    plain: dict[str, Any],
    hf_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    environment: dict[str, str],
) -> Iterator[dict[int, launch.Server]]:
    """A server for each number of drafts. They start together: most of a start is imports."""
    words = ["--attention-backend", "abduce_tree", "--speculative-algorithm", "LOOKAHEAD"]
    words += ["--max-total-tokens", "8192", "--speculative-num-draft-tokens"]
    starting = {
        n: launcher.server(
            hf_model, tmp_path_factory.mktemp("lookahead") / "log", *words, str(n), environment=environment
        )
        for n in (8, 64)
    }
    with launcher.running(*starting.values()):
        yield starting


@pytest.fixture(scope="module")
def server(servers: dict[int, launch.Server]) -> launch.Server:
    return servers[8]


def check_lossless(server: launch.Server, plain: dict[str, Any], chosen: Sequence[int], gain: float) -> None:
    cases = [CASES[i] for i in chosen]
    expected = [plain["ids"][i] for i in chosen]
    for tenant, drafts in DRAFTS.items():
        bad = [(text, {**params, **custom(tenant, drafts)}) for text, params in cases]
        assert ids(generate(server, bad)) == expected
    # Drafts that are the answers themselves.
    right = [
        (text, {**params, **custom("right", [plain["texts"][i]])})
        for i, (text, params) in zip(chosen, cases, strict=True)
    ]
    before = state(server)
    assert ids(generate(server, right)) == expected
    after = state(server)
    assert after["tokens"] - before["tokens"] >= gain * (after["forwards"] - before["forwards"])


def state(server: launch.Server) -> Any:
    return ask(server, "/server_info")["internal_states"][0]["abduce"]["lookahead"]


def test_greedy_text_is_that_without_speculation_with_many_drafts(
    servers: dict[int, launch.Server], plain: dict[str, Any]
) -> None:
    """Other sizes: `benchmarks/lookahead.py`."""
    check_lossless(servers[64], plain, FEW, 1.5)


def test_greedy_text_is_that_without_speculation(server: launch.Server, plain: dict[str, Any]) -> None:
    check_lossless(server, plain, range(len(CASES)), 1.5)


def test_the_server_says_which_members_are_in_force(server: launch.Server) -> None:
    info = ask(server, "/server_info")
    assert info["abduce"] == sorted(MEMBERS)
    told = info["internal_states"][0]["abduce"]
    assert told["lookahead"]["used"] and told["tree_attention"]["used"]


def test_drafts_are_counted_by_source(server: launch.Server) -> None:
    before = state(server)
    generate(server, [(PROMPTS[3], custom("counted"))])
    prompted = state(server)
    generate(server, [("The fruits are apple, pear, plum,", custom("counted2", [LIST]))])
    after = state(server)

    def kept(source: str, a: Any, b: Any) -> int:
        return int(b["sources"][source]["kept"] - a["sources"][source]["kept"])

    assert kept("prompt", before, prompted) > 3 and kept("texts", before, prompted) == 0
    assert after["sources"]["texts"]["drafted"] > prompted["sources"]["texts"]["drafted"]
    for source in after["sources"].values():
        assert 0 <= source["runs"] <= source["kept"] <= source["drafted"]
    assert after["edl"] >= 1.0


def test_a_corpus_is_drafted_from_for_its_tenant_only(server: launch.Server, plain: dict[str, Any]) -> None:
    refused = ask(server, "/add_external_corpus", {"corpus_id": "nobody", "documents": [LIST]})
    assert not refused["success"] and "tenant:name" in refused["message"]
    added = ask(server, "/add_external_corpus", {"corpus_id": "reader:book", "documents": plain["texts"]})
    assert added["success"] and added["loaded_token_count"] > 10
    assert "reader:book" in ask(server, "/list_external_corpora")["corpus_token_counts"]

    def drafted(tenant: str) -> int:
        before = state(server)["sources"]["corpus"]["drafted"]
        assert ids(generate(server, [(PROMPTS[1], custom(tenant))])) == [plain["ids"][1]]
        return int(state(server)["sources"]["corpus"]["drafted"] - before)

    assert drafted("reader") > 0
    assert drafted("another") == 0
    assert ask(server, "/remove_external_corpus", {"corpus_id": "reader:book"})["success"]
    assert drafted("reader") == 0


def test_a_tenant_gains_nothing_from_another_tenants_past(server: launch.Server) -> None:
    def histogram(tenant: str | None) -> list[int]:
        reply = generate(server, [(PROMPTS[1], custom(tenant))])[0]["meta_info"]
        counts: list[int] = reply["spec_correct_drafts_histogram"]
        return counts

    first = histogram("iso-a")
    assert histogram("iso-a") != first  # its own past it does gain from
    assert histogram("iso-b") == first
    assert histogram(None) == first


ENTROPY = """
import json, sys, torch, transformers
transformers.logging.set_verbosity_error()
folder, rows = json.loads(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
told = []
for ids, n in rows:
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0, -n - 1:-1].log_softmax(-1)
    told.append((-(log_p.exp() * log_p).sum(-1)).tolist())
print(json.dumps(told))
"""


def test_the_probe_reports_the_entropy_of_each_token(server: launch.Server, hf_model: Path) -> None:
    found, rows = [], []
    for temperature in (0, 0.7):
        params = {
            "temperature": temperature,
            "repetition_penalty": 1.1,
            **custom("p", abduce_probe="entropy"),
        }
        cases = [(PROMPTS[0], params), (PROMPTS[1], {})]
        asked, other = generate(server, cases, return_logprob=True, logprob_start_len=0)
        found.append(asked["meta_info"]["abduce_entropy"])
        prompt = [token for _, token, _ in asked["meta_info"]["input_token_logprobs"]]
        output = asked["output_ids"]
        assert len(found[-1]) == len(output)
        rows.append(([*prompt, *output], len(output)))
        assert not any(other["meta_info"].get("abduce_entropy") or ())
    argument = json.dumps([str(hf_model), rows])
    told = subprocess.run(
        [launcher.PYTHON, "-c", ENTROPY, argument], capture_output=True, text=True, check=True
    )
    for ours, theirs in zip(found, json.loads(told.stdout), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("drafts", [["tails tails tails heads heads"], ["zebra zebra"]])
def test_the_law_of_sampled_texts_is_the_servers_own(drafts: list[str], server: launch.Server) -> None:
    """Three tokens of the two likeliest each: the eight texts come as often as log-probs say."""
    stats = pytest.importorskip("scipy.stats")
    text, n = "Heads or tails? The coin shows", 240
    start = generate(server, [(text, {})], return_logprob=True, logprob_start_len=0)[0]
    prompt = [token for _, token, _ in start["meta_info"]["input_token_logprobs"]]

    def two_best(more: list[int]) -> dict[int, float]:
        body = {"input_ids": [*prompt, *more], "sampling_params": {"temperature": 0, "max_new_tokens": 1}}
        best = ask(server, "/generate", {**body, "return_logprob": True, "top_logprobs_num": 2})
        weights = {token: math.exp(p) for p, token, _ in best["meta_info"]["output_top_logprobs"][0]}
        return {token: weight / sum(weights.values()) for token, weight in weights.items()}

    law = {
        (a, b, c): p * q * r
        for a, p in two_best([]).items()
        for b, q in two_best([a]).items()
        for c, r in two_best([a, b]).items()
    }
    counts: Counter[tuple[int, ...]] = Counter()
    params = {
        "temperature": 1.0,
        "top_k": 2,
        "max_new_tokens": 3,
        "ignore_eos": True,
        **custom("law", drafts),
    }
    for _ in range(n // 40):
        body = {"input_ids": [prompt] * 40, "sampling_params": [params] * 40}
        counts.update(tuple(reply["output_ids"]) for reply in ask(server, "/generate", body))
    assert counts.keys() <= law.keys()
    expected = [n * p / sum(law.values()) for p in law.values()]
    assert stats.chisquare([counts[text] for text in law], expected).pvalue > 1e-3


# ---------------------------------------------------------------- servers that must not start

SABOTAGE = """
def register():
    import {place} as place
    del place.{name}
    from abduce.serving.sglang.plugin import register
    register()
"""
LOST = """
def register():
    from abduce.serving.sglang.plugin import register
    register()
    from sglang.srt.speculative import ngram_worker
    ngram_worker.eagle_sample = ngram_worker.eagle_sample.__wrapped__.__wrapped__
"""
NGRAM = {"place": "sglang.srt.speculative.ngram_worker", "name": "eagle_sample"}
POOL = {"place": "sglang.srt.mem_cache.allocation", "name": "assign_req_to_token_pool_cpu"}
PLUGINS = {"lookahead": SABOTAGE.format(**NGRAM), "cpu_kernels": SABOTAGE.format(**POOL), "lost": LOST}


@pytest.fixture(scope="module")
def refusals(
    hf_model: Path, tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> dict[str, tuple[str, str]]:
    """What `wait` and what the log say of each. They start together: most of a start is imports."""
    folders = {name: entry_point(tmp_path_factory, f"{name}:register") for name in PLUGINS}
    starting = {}
    for name, folder in folders.items():
        (folder / f"{name}.py").write_text(PLUGINS[name])
        path = {"PYTHONPATH": f"{launcher.STAND_INS}:{ROOT}:{folder}"}
        starting[name] = launcher.server(hf_model, folder / "log", environment=path)
    log, words = tmp_path_factory.mktemp("backend") / "log", ["--speculative-algorithm", "LOOKAHEAD"]
    starting["backend"] = launcher.server(hf_model, log, *words, environment=environment)
    told = {}
    for name, server in starting.items():
        with pytest.raises(UsageError) as caught, launcher.running(server):
            pass
        told[name] = (str(caught.value), server.log.read_text())
    return told


def test_a_backend_without_trees_is_refused(refusals: dict[str, tuple[str, str]]) -> None:
    assert "Write --attention-backend abduce_tree" in refusals["backend"][0]


@pytest.mark.parametrize("member", ["lookahead", "cpu_kernels"])
def test_a_plug_in_that_cannot_register_stops_the_server(
    member: str, refusals: dict[str, tuple[str, str]]
) -> None:
    assert f"could not register '{member}'" in refusals[member][0]


def test_a_hook_lost_after_registering_stops_the_server(refusals: dict[str, tuple[str, str]]) -> None:
    assert "eagle_sample is not in force" in refusals["lost"][1]
