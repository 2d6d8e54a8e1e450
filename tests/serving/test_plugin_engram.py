"""The member `engram` and the tokens of slots, in this process: places, trees, moves, refusals."""

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.engram_folder import MODEL_TYPE  # noqa: E402
from abduce.serving.sglang.plugin.engram_slots import SlotTokens, in_line, in_trees  # noqa: E402

ORDER = 3
CONFIG = {
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "engram": {"layers": [1], "max_order": 3, "n_heads": 1, "d_head": 4, "base": 11, "n_compressed": 90},
}


@pytest.fixture(scope="module")
def member() -> Iterator[Any]:
    """The member, with the stand-in for SGLang's CPU build."""
    pytest.importorskip("sglang", reason="SGLang is not installed: make test-sglang runs this")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SGLang's imports
        patch.setenv("SGLANG_USE_CPU_ENGINE", "1")
        if importlib.util.find_spec("sgl_kernel") is None:
            patch.syspath_prepend(str(Path(__file__).parent / "sglang_env" / "stand_ins"))
        try:
            found = importlib.import_module("abduce.serving.sglang.plugin.engram")
            found.register()
            yield found
        except ImportError as error:
            pytest.skip(f"SGLang's CPU build or its stand-in is not on the path ({error})")


# ---------------------------------------------------------------- places


def test_tokens_before_are_found_by_their_slots_wherever_these_lie() -> None:
    """Two rows that share a prefix, slots in any order, a row that is shorter than an n-gram."""
    slots, table = SlotTokens(40, "cpu"), torch.zeros(3, 8, dtype=torch.int32)
    table[0, :5] = torch.tensor([31, 7, 2, 18, 5])
    table[1, :4] = torch.tensor([31, 7, 9, 1])
    table[2, :1] = torch.tensor([30])
    texts = {0: [10, 11, 12, 13, 14], 1: [10, 11, 22, 23], 2: [40]}
    for row, text in texts.items():
        slots.write(table[row, : len(text)], torch.tensor(text))
    rows, positions = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([4, 1, 3, 2, 0])
    near = slots.near(table, rows, in_line(positions, ORDER))
    assert near.tolist() == [[14, 13, 12], [11, 10, -1], [23, 22, 11], [22, 11, 10], [40, -1, -1]]


def test_a_drafts_predecessors_are_its_own_ancestors() -> None:
    """Against walking up the tree, over random trees behind prefixes shorter and longer than an n-gram."""
    dice = torch.Generator().manual_seed(0)
    for _ in range(200):
        n, begun = 6, int(torch.randint(1, 6, (), generator=dice))
        parents = [-1] + [int(torch.randint(0, i, (), generator=dice)) for i in range(1, n)]
        mask, depth = torch.eye(n, dtype=torch.bool), [0] * n
        for i in range(1, n):
            mask[i] |= mask[parents[i]]
            depth[i] = depth[parents[i]] + 1
        text = list(range(100, 100 + begun))
        nodes = list(range(200, 200 + n))
        slots, table = SlotTokens(64, "cpu"), torch.randperm(64, generator=dice)[None, : begun + n]
        slots.write(table[0], torch.tensor(text + nodes))
        positions = begun + torch.tensor([depth])
        places = in_trees(mask[None], positions, torch.tensor([begun]), ORDER)
        near = slots.near(table, torch.zeros(n, dtype=torch.int64), places)
        for i in range(n):
            line, at = [], i
            while at >= 0:
                line.append(nodes[at])
                at = parents[at]
            wanted = ([*line, *reversed(text)] + [-1] * ORDER)[:ORDER]
            assert near[i].tolist() == wanted


def test_tokens_move_as_keys_and_values_do(member: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = SlotTokens(10, "cpu")
    slots.write(torch.arange(10), torch.arange(10) + 50)
    monkeypatch.setattr(member, "_served", [SimpleNamespace(slots=slots)])
    calls: list[Any] = []
    member.move(lambda *given: calls.append(given), "pool", torch.tensor([1, 2]), torch.tensor([2, 5]))
    assert slots.tokens.tolist() == [50, 52, 55, 53, 54, 55, 56, 57, 58, 59]
    assert len(calls) == 1


def test_a_mask_with_columns_for_the_tokens_before_has_the_same_trees(member: Any) -> None:
    model = importlib.import_module("abduce.serving.sglang.plugin.engram_model")
    dice = torch.Generator().manual_seed(0)
    trees = torch.rand(2, 3, 3, generator=dice) < 0.5
    before = torch.tensor([4, 1])
    whole = [torch.cat([torch.ones(3, n), tree.float()], 1) for n, tree in zip(before, trees, strict=True)]
    assert torch.equal(model.tree_masks(trees.flatten(), before, 3), trees)
    assert torch.equal(model.tree_masks(torch.cat([x.flatten() for x in whole]), before, 3), trees)


# ---------------------------------------------------------------- refusals


def runner(member: Any, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """A runner whose settings are served, but for the changes."""
    off = SimpleNamespace(backend="disabled")
    args = {
        **dict.fromkeys(member.SIZES, 1),
        **dict.fromkeys(member.SWITCHES, False),
        "disaggregation_mode": "null",
        "dllm_algorithm": None,
        "speculative_algorithm": None,
        "cuda_graph_config": SimpleNamespace(decode=off, prefill=off),
    }
    told = changes.pop("config", CONFIG)
    config = SimpleNamespace(to_dict=lambda: told, engram_kept=changes.pop("kept", 0), model_type=MODEL_TYPE)
    model = SimpleNamespace(
        hf_config=config,
        quantization=changes.pop("quantization", None),
        is_generation=changes.pop("is_generation", True),
    )
    device = changes.pop("device", "cpu")
    settings = SimpleNamespace(**{**args, **changes})
    monkeypatch.setattr(member, "resolved_view", lambda given: given)
    return SimpleNamespace(server_args=settings, model_config=model, device=device)


def test_what_it_serves_passes(member: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    member.refuse(runner(member, monkeypatch))
    member.refuse(runner(member, monkeypatch, speculative_algorithm="LOOKAHEAD", kept=10))
    member.refuse(runner(member, monkeypatch, device="cuda"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tp_size": 2}, "--tp-size"),
        ({"quantization": "fp8"}, "--quantization"),
        ({"enable_hierarchical_cache": True}, "--enable-hierarchical-cache"),
        ({"disaggregation_mode": "decode"}, "--disaggregation-mode"),
        ({"speculative_algorithm": "EAGLE"}, "--speculative-algorithm"),
        ({"is_generation": False}, "--is-embedding"),
        ({"kept": -1}, "engram_kept"),
        ({"config": {**CONFIG, "engram": None}}, 'no "engram"'),
    ],
)
def test_what_it_does_not_serve_is_said(
    member: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        member.refuse(runner(member, monkeypatch, **changes))
    assert told in str(caught.value)


def test_tables_of_another_size_are_refused(member: Any) -> None:
    model = importlib.import_module("abduce.serving.sglang.plugin.engram_model")
    shape = SimpleNamespace(layers=(1,), d_head=4)
    addresses = SimpleNamespace(layouts=[SimpleNamespace(n_rows=24)], token_map=torch.zeros(1))
    made = SimpleNamespace(
        shape=shape, addresses=addresses, tables={}, config=SimpleNamespace(engram_kept=99)
    )
    for layer, size in ((1, (24, 8)), (1, (23, 4)), (0, (24, 4))):
        with pytest.raises(ValueError, match="of different models"):
            model.Model.put_table(made, layer, torch.zeros(size))
    for _ in range(2):  # new weights take the place of the old ones
        model.Model.put_table(made, 1, torch.ones(24, 4))
    assert made.tables[1].n_bytes == 24 * 4 * 4
    assert made.tables[1](torch.tensor([[3, 3]])).tolist() == [[1.0] * 8]
    made.tables[1].close()


def test_a_gpus_graphs_are_refused(member: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = SimpleNamespace(
        decode=SimpleNamespace(backend="full"), prefill=SimpleNamespace(backend="disabled")
    )
    with pytest.raises(ValueError, match="--disable-decode-cuda-graph"):
        member.refuse(runner(member, monkeypatch, device="cuda", cuda_graph_config=graphs))


def test_a_model_without_its_class_ends_the_start(member: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "_served", [])
    found = runner(member, monkeypatch)
    found.model = SimpleNamespace(model=None)
    scheduler = SimpleNamespace(tp_worker=SimpleNamespace(model_runner=found), tokenizer=None)
    with pytest.raises(RuntimeError, match="serves it without"):
        member.verify(scheduler)
    found.model_config.hf_config.model_type = "llama"
    assert member.verify(scheduler) == {"used": False}


class Letters:
    """A tokeniser whose tokens are the letters of a text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __len__(self) -> int:
        return len(self.text)

    def convert_ids_to_tokens(self, ids: range) -> list[str]:
        return [self.text[i] for i in ids]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(self.text[i] for i in ids)


def test_another_tokeniser_ends_the_start(member: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hashing = importlib.import_module("abduce.serving.kernels.engram.hashing")
    token_map, n_compressed = hashing.map_of(Letters("aAbc"), 6)  # two ids that name nothing
    assert (token_map.tolist(), n_compressed) == ([0, 0, 1, 2, 3, 4], 5)
    model = SimpleNamespace(
        addresses=SimpleNamespace(token_map=token_map, layouts=[]),
        tables={},
        shape=SimpleNamespace(layers=(1,), max_order=3),
        n_tokens=7,
    )
    found = runner(member, monkeypatch)
    found.model = SimpleNamespace(model=model)
    for text, fits in (("abAc", False), ("aAbc", True)):
        monkeypatch.setattr(member, "_served", [model])
        scheduler = SimpleNamespace(tp_worker=SimpleNamespace(model_runner=found), tokenizer=Letters(text))
        if fits:
            told = member.verify(scheduler)
            assert (told["used"], told["layers"], told["tokens"]) == (True, [1], 7)
        else:
            with pytest.raises(RuntimeError, match="another tokeniser"):
                member.verify(scheduler)


def test_embeddings_have_no_address(member: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    request = SimpleNamespace(input_embeds=[[0.0]], set_finish_with_abort=ended.append)
    for served, n in ([], 0), ([object()], 1):
        monkeypatch.setattr(member, "_served", served)
        member.arrive(lambda *_: None, None, request)
        assert len(ended) == n
    assert "no input_embeds" in ended[0]
    assert request.input_embeds is None
