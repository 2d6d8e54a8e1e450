"""The plug-in's tensor parts against plain recomputation: kernels, attention, penalties, draws, entropy."""

import functools
import importlib.util
import math
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from abduce.serving.sglang.plugin import cpu_kernels  # noqa: E402


def random_tree(n: int, generator: Any) -> list[int]:
    """Parents before children; the root's parent is -1."""
    return [-1, *(int(torch.randint(0, i, (), generator=generator)) for i in range(1, n))]


def mask_of(parents: list[int]) -> Any:
    mask = torch.eye(len(parents), dtype=torch.bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            mask[i] |= mask[parent]
    return mask


def path_of(parents: list[int], node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]


@pytest.mark.parametrize("n", [1, 2, 8, 63])
def test_links_rebuilt_from_a_mask_are_the_trees(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    trees = [random_tree(n, generator) for _ in range(3)]
    seq_lens = torch.tensor([5, 1, 9])
    positions = torch.full((3 * n,), -7)
    index, child, sibling = (torch.full((3, n), -7) for _ in range(3))
    masks = torch.stack([mask_of(tree) for tree in trees]).flatten()
    cpu_kernels.reconstruct_indices_from_tree_mask(masks, seq_lens, positions, index, child, sibling, 3, n)
    assert index.flatten().tolist() == list(range(3 * n))
    for b, tree in enumerate(trees):
        depths = [len(path_of(tree, i)) - 1 for i in range(n)]
        assert (positions.view(3, n)[b] - seq_lens[b]).tolist() == depths
        for node in range(n):
            children, at = [], int(child[b, node])
            while at != -1:
                children.append(at)
                at = int(sibling[b, at])
            assert children == [i for i in range(n) if tree[i] == node]


def links(trees: list[list[int]]) -> tuple[Any, Any, Any]:
    n = len(trees[0])
    index, child, sibling = (torch.empty(len(trees), n, dtype=torch.int64) for _ in range(3))
    masks = torch.stack([mask_of(tree) for tree in trees]).flatten()
    lens, positions = (
        torch.zeros(len(trees), dtype=torch.int64),
        torch.empty(len(trees) * n, dtype=torch.int64),
    )
    cpu_kernels.reconstruct_indices_from_tree_mask(
        masks, lens, positions, index, child, sibling, len(trees), n
    )
    return index, child, sibling


@pytest.mark.parametrize("n", [1, 2, 8, 63])
def test_the_walk_keeps_the_longest_path_of_picks(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    trees = [random_tree(n, generator) for _ in range(4)]
    tokens = torch.randint(0, 3, (4, n), generator=generator)
    picks = torch.randint(0, 3, (4, n), generator=generator)
    index, child, sibling = links(trees)
    predict = torch.full((4 * n,), -7, dtype=torch.int32)
    rows = torch.full((4, n), -1, dtype=torch.int32)
    kept = torch.full((4,), -7, dtype=torch.int32)
    cpu_kernels.verify_tree_greedy(
        predicts=predict, accept_index=rows, accept_token_num=kept, candidates=tokens, retrive_index=index,
        retrive_next_token=child, retrive_next_sibling=sibling, target_predict=picks,
    )  # fmt: skip
    for b, tree in enumerate(trees):
        node, walk = 0, [0]
        while matching := [i for i in range(n) if tree[i] == node and tokens[b, i] == picks[b, node]]:
            node = matching[0]
            walk.append(node)
        assert [int(row) - b * n for row in rows[b] if row >= 0] == walk
        assert int(kept[b]) == len(walk) - 1
        assert [int(predict[b * n + i]) for i in walk] == [int(picks[b, i]) for i in walk]


def test_slots_are_written_read_and_moved() -> None:
    table = torch.zeros(3, 8, dtype=torch.int32)
    rows, start, end = torch.tensor([2, 0]), torch.tensor([1, 4]), torch.tensor([4, 6])
    cpu_kernels.assign_req_to_token_pool(rows, table, start, end, torch.tensor([7, 8, 9, 5, 6]), 8)
    assert table[2].tolist() == [0, 7, 8, 9, 0, 0, 0, 0] and table[0].tolist() == [0, 0, 0, 0, 5, 6, 0, 0]
    read = torch.zeros(5, dtype=torch.int64)
    cpu_kernels.assign_extend_cache_locs(rows, table, start, end, read, 8)
    assert read.tolist() == [7, 8, 9, 5, 6]
    packed = torch.zeros(6, dtype=torch.int64)
    cpu_kernels.fill_accept_out_cache_loc(
        torch.tensor([[0, 2, -1], [3, -1, -1]]), torch.arange(10, 16), packed
    )
    assert packed.tolist() == [10, 12, 13, 0, 0, 0]


def test_the_cache_after_the_move_is_the_accepted_path() -> None:
    """K and V of the accepted nodes, in any of several buffers, lie in the slots after the prefix."""
    buffers = [torch.randn(12, 2, 4), torch.randn(12, 3)]
    before = [buffer.clone() for buffer in buffers]
    addresses = torch.tensor([buffer.data_ptr() for buffer in buffers], dtype=torch.uint64)
    strides = torch.tensor([buffer[0].nbytes for buffer in buffers])
    cpu_kernels.copy_all_layer_kv_cache(
        addresses, strides, torch.tensor([4, 5, 6, 0]), torch.tensor([4, 6, 9, 0])
    )
    for buffer, old in zip(buffers, before, strict=True):
        assert torch.equal(buffer[[4, 5, 6]], old[[4, 6, 9]])
        assert torch.equal(buffer[[0, 1, 2, 3, 7, 8, 9, 10, 11]], old[[0, 1, 2, 3, 7, 8, 9, 10, 11]])


@pytest.fixture(scope="module")
def plugin() -> Iterator[Any]:
    """The members that import SGLang, which needs its CPU build or the stand-in for it."""
    pytest.importorskip("sglang")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_USE_CPU_ENGINE", "1")
        if importlib.util.find_spec("sgl_kernel") is None:
            patch.syspath_prepend(str(Path(__file__).parent / "sglang_env" / "stand_ins"))
        yield members()


def members() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SGLang's imports, and PyTorch's own
            importlib.import_module("sglang.srt.layers.sampler")
            importlib.import_module("sglang.srt.sampling.penaltylib")
            from abduce.serving.sglang.plugin import probe, tree_attention, tree_sampling
    except ImportError as error:
        pytest.skip(f"SGLang's CPU build or its stand-in is not on the path ({error})")
    return SimpleNamespace(probe=probe, attention=tree_attention, sampling=tree_sampling)


@pytest.mark.parametrize(("n", "prefix", "heads", "kv_heads"), [(1, 5, 4, 4), (8, 7, 9, 3), (63, 1, 4, 2)])
def test_a_node_attends_as_if_its_path_were_the_text(
    plugin: Any, n: int, prefix: int, heads: int, kv_heads: int
) -> None:
    generator = torch.Generator().manual_seed(n)
    parents = random_tree(n, generator)
    q = torch.randn(n, heads, 16, generator=generator)
    k, v = (torch.randn(prefix + n, kv_heads, 16, generator=generator) for _ in range(2))
    out = plugin.attention.tree_attention(q, k, v, mask_of(parents), 0.25)
    for node in range(n):
        seen = [*range(prefix), *(prefix + i for i in path_of(parents, node))]
        kk, vv = (x[seen].repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
        weights = torch.einsum("hd,shd->hs", q[node], kk).mul(0.25).softmax(-1)
        assert torch.allclose(out[node], torch.einsum("hs,shd->hd", weights, vv), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_models_logits_at_a_node_are_those_of_its_path(plugin: Any, seed: int) -> None:
    """A whole model in one forward over prefix and tree; then the slots of a path, moved behind the prefix,
    hold what plain decoding would have put there."""
    transformers = pytest.importorskip("transformers")
    n_prefix, n, prefix = 9, 14, torch.randint(1, 97, (9,))
    torch.manual_seed(seed)
    sizes = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "initializer_range": 0.4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()
    parents, tokens = random_tree(n, torch.Generator().manual_seed(seed)), torch.randint(1, 97, (n,))
    depth = torch.tensor([len(path_of(parents, node)) - 1 for node in range(n)])

    def attend(module: Any, q: Any, k: Any, v: Any, *_: Any, scaling: float, **__: Any) -> tuple[Any, None]:
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        mask = torch.zeros(n_prefix + n, n_prefix + n, dtype=torch.bool)
        mask[:n_prefix, :n_prefix] = torch.ones(n_prefix, n_prefix).tril() > 0
        mask[n_prefix:, :n_prefix], mask[n_prefix:, n_prefix:] = True, mask_of(parents)
        return plugin.attention.tree_attention(q, k, v, mask, scaling)[None], None

    transformers.AttentionInterface.register("a_tree", attend)
    places = torch.cat([torch.arange(n_prefix), n_prefix + depth])[None]
    with torch.inference_mode():
        plain = [model(torch.cat([prefix, tokens[path_of(parents, i)]])[None]) for i in range(n)]
        model.set_attn_implementation("a_tree")
        told = model(torch.cat([prefix, tokens])[None], position_ids=places)
    for node, alone in enumerate(plain):
        torch.testing.assert_close(told.logits[0, n_prefix + node], alone.logits[0, -1], rtol=1e-4, atol=1e-4)
    node = int(depth.argmax())
    path = [n_prefix + i for i in path_of(parents, node)]
    for ours, theirs in zip(told.past_key_values.layers, plain[node].past_key_values.layers, strict=True):
        for pool, wanted in ((ours.keys[0], theirs.keys[0]), (ours.values[0], theirs.values[0])):
            slots = pool.transpose(0, 1).contiguous()
            address = torch.tensor([slots.data_ptr()], dtype=torch.uint64)
            to = torch.arange(n_prefix, n_prefix + len(path))
            cpu_kernels.copy_all_layer_kv_cache(
                address, torch.tensor([slots[0].nbytes]), to, torch.tensor(path)
            )
            kept = slots[: n_prefix + len(path)].transpose(0, 1)
            torch.testing.assert_close(kept, wanted, rtol=1e-4, atol=1e-4)


def test_siblings_do_not_see_each_other(plugin: Any) -> None:
    parents = [-1, 0, 0, 1, 2]
    q, k, v = torch.randn(5, 2, 8), torch.randn(9, 2, 8), torch.randn(9, 2, 8)
    out = plugin.attention.tree_attention(q, k, v, mask_of(parents), 1.0)
    k[[4 + 2, 4 + 4]], v[[4 + 2, 4 + 4]] = 9.0, -9.0
    again = plugin.attention.tree_attention(q, k, v, mask_of(parents), 1.0)
    assert torch.equal(out[[0, 1, 3]], again[[0, 1, 3]])
    assert not torch.allclose(out[[2, 4]], again[[2, 4]])


@pytest.mark.parametrize(
    "penalties",
    [
        {"frequency_penalty": 0.7},
        {"presence_penalty": -0.4},
        {"repetition_penalty": 1.3},
        {"min_new_tokens": 4},
        {"frequency_penalty": 0.2, "presence_penalty": 0.5, "repetition_penalty": 0.8, "min_new_tokens": 3},
    ],
)
def test_each_node_is_penalised_as_plain_decoding_would(plugin: Any, penalties: dict[str, float]) -> None:
    """Against SGLang's own penalisers, fed token by token with the node's text."""
    from sglang.srt.sampling import penaltylib
    from sglang.srt.sampling.penaltylib import repetition_penalty

    params = SimpleNamespace(
        **{"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "min_new_tokens": 0}
        | penalties,
        stop_token_ids={5},
    )
    tokenizer = SimpleNamespace(additional_stop_token_ids=None, eos_token_id=2)
    request = SimpleNamespace(sampling_params=params, eos_token_ids={2}, tokenizer=tokenizer)
    output, parents, tokens = [3, 4, 3], [-1, 0, 0, 1, 3, 2], [3, 4, 6, 6, 6, 3]
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    plain = logits.clone()
    plugin.sampling.penalise(logits, params, output, tokens, parents, stops=plugin.sampling._stops(request))
    batch = type("Batch", (), {"reqs": [request], "device": "cpu"})()
    eager = repetition_penalty.apply_scaling_penalties.__wrapped__
    for node in range(6):
        orchestrator = penaltylib.BatchedPenalizerOrchestrator(
            vocab_size=9,
            batch=batch,
            penalizers={
                penaltylib.BatchedFrequencyPenalizer,
                penaltylib.BatchedMinNewTokensPenalizer,
                penaltylib.BatchedPresencePenalizer,
                penaltylib.BatchedRepetitionPenalizer,
            },
        )
        for token in [*output, *(tokens[i] for i in path_of(parents, node)[1:])]:
            orchestrator.cumulate_output_tokens(torch.tensor([token]))
        additive = torch.zeros(1, 9)
        orchestrator.accumulate_additive_penalties(additive)
        expected = plain[node : node + 1] + additive
        if (scaling := orchestrator.accumulate_scaling_penalties()) is not None:
            eager(expected, scaling)
        assert torch.allclose(logits[node], expected[0], atol=1e-5)


DEPTH, VOCABULARY = 3, 4


def toy_logits(text: tuple[int, ...]) -> Any:
    """A small model: the law of the next token depends on the whole text."""
    generator = torch.Generator().manual_seed(hash(text) % 2**31)
    return torch.randn(VOCABULARY, generator=generator) * 1.5


def exact_law() -> dict[tuple[int, ...], float]:
    law = {}
    for text in product(range(VOCABULARY), repeat=DEPTH):
        log_p = sum(
            float(torch.log_softmax(toy_logits(text[:i]).double(), -1)[text[i]]) for i in range(DEPTH)
        )
        law[text] = math.exp(log_p)
    return law


def likely_tree() -> tuple[list[int], list[int]]:
    """The two likeliest tokens at each node, two deep."""
    tokens, parents, texts = [0], [-1], [()]
    for node in range(3):
        for token in toy_logits(texts[node]).topk(2).indices.tolist():
            tokens.append(token)
            parents.append(node)
            texts.append((*texts[node], token))
    return tokens, parents


def hostile_tree() -> tuple[list[int], list[int]]:
    """The unlikeliest tokens, one of them twice, and padding with token 0."""
    worst = int(toy_logits(()).argmin())
    return [0, worst, worst, int(toy_logits((worst,)).argmin()), 0, 0, 0], [-1, 0, 0, 1, 0, 0, 0]


def tied_to_positions(probs: Any, info: Any, positions: Any, simple: bool) -> Any:
    """Draws by one random number for each seed and position, as SGLang's compiled seeded sampler does."""
    assert simple
    numbers = [random.Random(f"{s} {p}").random() for s, p in zip(info.sampling_seed, positions, strict=True)]
    return (probs.cumsum(-1) < torch.tensor(numbers)[:, None]).sum(-1).clamp_max(VOCABULARY - 1), None


def decode(plugin: Any, tree: tuple[list[int], list[int]] | None, samples: int, *, seeds: Any = None) -> Any:
    """Many texts side by side with one draft tree each forward, by the plug-in's picks and SGLang's sampler.

    The tree is that of the empty text, used wherever the text has got to: bad drafts are drafts too.
    """
    from sglang.srt.layers.sampler import Sampler

    tokens, parents = tree if tree is not None else ([0], [-1])
    n = len(tokens)
    draw = functools.partial(Sampler._sample_from_probs, None) if seeds is None else tied_to_positions
    sampler = SimpleNamespace(_sample_from_probs=draw)
    texts: list[list[int]] = [[] for _ in range(samples)]
    going = list(range(samples))
    while going:
        paths = [tuple(tokens[j] for j in path_of(parents, i)[1:]) for i in range(n)]
        cache = {text: toy_logits(text) for text in {(*texts[s], *path) for s in going for path in paths}}
        logits = torch.stack([cache[(*texts[s], *path)] for s in going for path in paths])
        positions = torch.tensor([len(texts[s]) + len(path) for s in going for path in paths])
        info = SimpleNamespace(
            is_all_greedy=False, temperatures=torch.ones(len(going), 1), top_ks=None, top_ps=None,
            min_ps=None, sampling_seed=None if seeds is None else seeds[going], need_top_p_sampling=False,
            need_top_k_sampling=False, need_min_p_sampling=False,
        )  # fmt: skip
        picked = plugin.sampling._pick(sampler, logits, info, positions, n).view(len(going), n)
        for row, s in enumerate(going):
            node: int | None = 0
            while node is not None and len(texts[s]) < DEPTH:
                token = int(picked[row, node])
                texts[s].append(token)
                node = next((i for i in range(n) if parents[i] == node and tokens[i] == token), None)
        going = [s for s in going if len(texts[s]) < DEPTH]
    return texts


def chi_square_p(texts: list[list[int]], law: dict[tuple[int, ...], float]) -> float:
    stats = pytest.importorskip("scipy.stats")
    counts = Counter(map(tuple, texts))
    expected = [law[text] * len(texts) for text in law]
    return float(stats.chisquare([counts[text] for text in law], expected).pvalue)


@pytest.mark.parametrize("tree", [likely_tree, hostile_tree])
def test_the_law_of_sampled_texts_is_the_models(plugin: Any, tree: Any) -> None:
    torch.manual_seed(3)
    assert chi_square_p(decode(plugin, tree(), 100_000), exact_law()) > 1e-3


def test_a_draft_taken_on_trust_would_bend_the_law(plugin: Any) -> None:
    """Negative control: keep the likeliest draft without asking the model."""
    torch.manual_seed(3)
    texts = decode(plugin, likely_tree(), 20_000)
    first = likely_tree()[0][1]
    trusting = [[first, *text[1:]] for text in texts]
    assert chi_square_p(trusting, exact_law()) < 1e-6


@pytest.mark.parametrize("tree", [likely_tree, hostile_tree])
def test_with_draws_tied_to_positions_the_text_is_the_same(plugin: Any, tree: Any) -> None:
    seeds = torch.arange(500)
    assert decode(plugin, tree(), 500, seeds=seeds) == decode(plugin, None, 500, seeds=seeds)


def test_entropy_is_that_of_the_softmax(plugin: Any) -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, -math.inf], [50.0, 0.0, 0.0, 0.0]])
    p = torch.softmax(logits.double(), -1)
    expected = -(p * p.clamp_min(1e-300).log()).sum(-1)
    assert plugin.probe.entropy(logits).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert plugin.probe.entropy(logits)[0].item() == pytest.approx(math.log(4))
