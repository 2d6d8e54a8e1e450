"""The KV backends over SGLang's own torch_native and pools, in this process: whom a step touches."""

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.sglang.plugin.kv_config import METHODS, parse  # noqa: E402

HEADS, N_KV, D, N_LAYERS = 4, 2, 16, 2
SMALL = {
    "ems": "ems:budget=24,window=8,tail=4,tau=0.1",
    "actqkv": "actqkv:budget=16,page=4,first=4,last=8,k_min=1",
    "deltallm": "deltallm:theta=4,local=12,sink=2,block=4",
}


@pytest.fixture(scope="module")
def plugin() -> Iterator[Any]:
    """The member and what it needs of SGLang, with the stand-in for SGLang's CPU build."""
    pytest.importorskip("sglang", reason="SGLang is not installed: make test-sglang runs this")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SGLang's imports
        patch.setenv("SGLANG_USE_CPU_ENGINE", "1")
        patch.delenv("ABDUCE_KV", raising=False)
        if importlib.util.find_spec("sgl_kernel") is None:
            patch.syspath_prepend(str(Path(__file__).parent / "sglang_env" / "stand_ins"))
        try:
            names = {
                "kv": "abduce.serving.sglang.plugin.kv",
                "backend": "abduce.serving.sglang.plugin.kv_backend",
                "native": "sglang.srt.layers.attention.torch_native_backend",
                "pools": "sglang.srt.mem_cache.memory_pool",
                "batch": "sglang.srt.model_executor.forward_batch_info",
                "radix": "sglang.srt.layers.radix_attention",
                "rotary": "abduce.serving.sglang.plugin.kv_rotary",
            }
            found = SimpleNamespace(**{name: importlib.import_module(path) for name, path in names.items()})
            found.kv.register()
            yield found
        except ImportError as error:
            pytest.skip(f"SGLang's CPU build or its stand-in is not on the path ({error})")


class Request:
    def __init__(self, rid: str, n: int, *, exact: bool = False, max_new_tokens: int = 50) -> None:
        self.rid, self.n, self.session = rid, n, None
        self.beam_group: str | None = None
        custom = {"abduce_kv": "exact"} if exact else None
        self.sampling_params = SimpleNamespace(custom_params=custom, max_new_tokens=max_new_tokens)
        self.origin_input_ids = list(range(n))


class World:
    """Pools with rows in them, a backend over them, and the stock one beside it."""

    def __init__(self, plugin: Any, text: str) -> None:
        self.plugin = plugin
        pool = plugin.pools.MHATokenToKVPool(
            999, 1, torch.float32, N_KV, D, N_LAYERS, "cpu", False, enable_alt_stream=False
        )
        self.table = plugin.pools.ReqToTokenPool(6, 128, "cpu", False)
        self.pool = pool
        runner = SimpleNamespace(device="cpu", req_to_token_pool=self.table, token_to_kv_pool=pool)
        self.backend = plugin.backend.backend(runner, parse(SMALL.get(text, text)))
        self.stock = plugin.native.TorchNativeAttnBackend(runner)
        self.generator = torch.Generator().manual_seed(1)
        self.free = torch.randperm(999, generator=self.generator) + 1
        decoder = plugin.radix.AttentionType.DECODER
        self.layers = [
            SimpleNamespace(
                layer_id=i, tp_q_head_num=HEADS, tp_k_head_num=N_KV, tp_v_head_num=N_KV, qk_head_dim=D,
                v_head_dim=D, head_dim=D, scaling=D**-0.5, is_cross_attention=False, attn_type=decoder,
                sliding_window_size=None, k_scale=None, v_scale=None,
            )
            for i in range(N_LAYERS)
        ]  # fmt: skip
        self.rows: dict[str, int] = {}

    def draw(self, n: int, heads: int) -> Any:
        return torch.randn(n, heads, D, generator=self.generator)

    def take(self, n: int) -> Any:
        taken, self.free = self.free[:n], self.free[n:]
        return taken

    def open(self, request: Request, *, shared: Request | None = None) -> list[tuple[Any, Any]]:
        """Give it a row, of a shared prefix the other's slots, and read the rest: what the backend says in
        each layer, and what the stock one does."""
        (at,) = self.table.alloc_rows(1)
        self.rows[request.rid] = at
        n_shared = 0
        if shared is not None:
            n_shared = shared.n // 2
            self.table.req_to_token[at, :n_shared] = self.table.req_to_token[self.rows[shared.rid], :n_shared]
        self.table.req_to_token[at, n_shared : request.n] = self.take(request.n - n_shared).int()
        self.plugin.backend.REQUESTS[request.rid] = request
        return self.extend(request, n_shared)

    def close(self, request: Request) -> None:
        self.table.free_rows([self.rows.pop(request.rid)])

    def batch(self, mode: Any, requests: list[Request], **more: Any) -> Any:
        rows = torch.tensor([self.rows[request.rid] for request in requests])
        lengths = torch.tensor([request.n for request in requests])
        return SimpleNamespace(
            forward_mode=mode, batch_size=len(requests), req_pool_indices=rows, seq_lens=lengths,
            rids=[request.rid for request in requests], encoder_lens=None, out_cache_loc_is_physical=False,
            **more,
        )  # fmt: skip

    def extend(self, request: Request, n_before: int) -> list[tuple[Any, Any]]:
        n = request.n - n_before
        slots = self.table.req_to_token[self.rows[request.rid], n_before : request.n].long()
        batch = self.batch(
            self.plugin.batch.ForwardMode.EXTEND, [request], out_cache_loc=slots,
            extend_seq_lens_cpu=[n], extend_prefix_lens_cpu=[n_before],
            extend_seq_lens=torch.tensor([n]), extend_prefix_lens=torch.tensor([n_before]),
        )  # fmt: skip
        self.backend.init_forward_metadata(batch)
        told = []
        for layer in self.layers:
            q = self.draw(n, HEADS).flatten(1)
            k, v = self.draw(n, N_KV), self.draw(n, N_KV)
            out = self.backend.forward_extend(q, k, v, layer, batch)
            told.append((out, self.stock.forward_extend(q, k, v, layer, batch, save_kv_cache=False)))
        return told

    def step(self, requests: list[Request]) -> list[tuple[Any, Any]]:
        """One token more in each: what the backend says in each layer, and what the stock one does."""
        slots = self.take(len(requests))
        for request, slot in zip(requests, slots, strict=True):
            self.table.req_to_token[self.rows[request.rid], request.n] = slot
            request.n += 1
        batch = self.batch(self.plugin.batch.ForwardMode.DECODE, requests, out_cache_loc=slots)
        self.backend.init_forward_metadata(batch)
        told = []
        for layer in self.layers:
            q, k, v = self.draw(len(slots), HEADS).flatten(1), *(self.draw(len(slots), N_KV) for _ in "kv")
            out = self.backend.forward_decode(q, k, v, layer, batch)
            told.append((out, self.stock.forward_decode(q, k, v, layer, batch, save_kv_cache=False)))
        return told


@pytest.mark.parametrize("name", METHODS)
def test_within_the_budget_a_step_is_stock_bit_for_bit(plugin: Any, name: str) -> None:
    world, request = World(plugin, name), Request("a", 6)
    world.open(request)
    for _ in range(6):
        assert all(torch.equal(ours, stock) for ours, stock in world.step([request]))
    assert world.backend.state()["reduced"] == 0
    assert not hasattr(request, plugin.backend.EXACT)


@pytest.mark.parametrize("name", METHODS)
def test_who_shares_a_prefix_is_not_disturbed(plugin: Any, name: str) -> None:
    world = World(plugin, name)
    lossy, exact, short = Request("lossy", 60), Request("exact", 70, exact=True), Request("short", 5)
    world.open(lossy)
    world.open(exact, shared=lossy)
    world.open(short)
    slots = world.table.req_to_token[world.rows["lossy"], :60].long()
    buffers = [world.pool.get_key_buffer(i) for i in range(N_LAYERS)]
    buffers += [world.pool.get_value_buffer(i) for i in range(N_LAYERS)]
    before = [buffer[slots] for buffer in buffers]
    for _ in range(7):
        for ours, stock in world.step([lossy, exact, short]):
            assert torch.equal(ours[1:], stock[1:])
            assert not torch.allclose(ours[0], stock[0], atol=1e-3)
    assert all(torch.equal(buffer[slots], old) for buffer, old in zip(buffers, before, strict=True))
    assert getattr(lossy, plugin.backend.EXACT) == 60
    assert not hasattr(exact, plugin.backend.EXACT)
    told = world.backend.state()
    assert (told["steps"], told["reduced"]) == (21, 7)
    assert told["tokens_read"] < told["tokens_held"]


@pytest.mark.parametrize("name", METHODS)
def test_a_row_that_is_given_on_is_forgotten(plugin: Any, name: str) -> None:
    world = World(plugin, name)
    outs = []
    for rid in ("first", "second"):
        request = Request(rid, 60)
        world.generator.manual_seed(3)
        world.open(request)
        outs.append([out for out, _ in world.step([request])])
        used = world.backend.state()["side_slots"]
        world.close(request)
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))
    assert used > 0
    last = Request("last", 4)
    world.open(last)
    told = world.backend.state()
    assert told["side_slots"] == 0
    assert told["rows"] <= 1


@pytest.mark.parametrize("name", METHODS)
def test_a_step_that_is_made_again_reads_where_it_is_now(plugin: Any, name: str) -> None:
    world, request = World(plugin, name), Request("a", 60)
    world.open(request)
    world.step([request])
    outs = []
    for _ in range(2):
        world.generator.manual_seed(7)
        outs.append([out for out, _ in world.step([request])])
        slot = int(world.table.req_to_token[world.rows["a"], request.n - 1])
        for i in range(N_LAYERS):
            world.pool.get_key_buffer(i)[slot] = torch.nan
            world.pool.get_value_buffer(i)[slot] = torch.nan
        request.n -= 1
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_prompts_are_read_exactly(plugin: Any, name: str) -> None:
    world, first = World(plugin, name), Request("first", 60)
    told = [*world.open(first), *world.open(Request("second", 70), shared=first)]
    assert all(torch.equal(ours, stock) for ours, stock in told)


def test_prompts_may_be_read_by_differences(plugin: Any) -> None:
    """Little differs at a small Θ, more at a large one, and nothing for who asks for exact attention."""
    errors = []
    for theta in (1e-6, 0.5, 2.0):
        world = World(plugin, f"deltallm:local=12,sink=2,block=4,prefill={theta}")
        assert all(torch.equal(*each) for each in world.open(Request("exact", 60, exact=True)))
        first = Request("first", 60)
        told = [*world.open(first), *world.open(Request("second", 70), shared=first)]
        errors.append(max(float((ours - stock).abs().max()) for ours, stock in told))
    assert errors[0] < 1e-4 < 1e-2 < errors[1] < errors[2]


def test_scoring_and_short_requests_are_not_watched(plugin: Any) -> None:
    world = World(plugin, "ems")
    world.open(Request("scored", 60, max_new_tokens=1))
    world.open(Request("short", 6, max_new_tokens=8))
    assert world.backend.state()["rows"] == 0


# ---------------------------------------------------------------- the member


class Tree:
    def checkpoint(self, request: Any, *, up_to: int) -> int:
        return up_to


@pytest.mark.parametrize(
    ("exact", "protected", "kept"), [(None, 0, 90), (60, 0, 60), (60, 64, 64), (95, 0, 90)]
)
def test_only_what_is_exact_goes_into_the_prefix_cache(
    plugin: Any, exact: int | None, protected: int, kept: int
) -> None:
    request = Request("a", 60)
    request.kv = SimpleNamespace(cache_protected_len=protected)  # type: ignore[attr-defined]
    if exact is not None:
        setattr(request, plugin.backend.EXACT, exact)
    assert plugin.kv.keep_exact(Tree.checkpoint, Tree(), request, up_to=90) == kept


class Lender:
    """What `release` asks of a prefix cache."""

    page_size = 4

    def __init__(self) -> None:
        self.told: list[Any] = []

    def unlock(self, lock: Any) -> None:
        self.told.append(lock)

    def free_kv_row(self, kv: Any, ranges: list[tuple[int, int]]) -> None:
        self.told += ranges


def test_slots_that_no_step_will_read_are_given_back_once_and_page_by_page(plugin: Any) -> None:
    """And a request that is read again, after a retraction, goes into the prefix cache as before."""
    tree, request = Lender(), Request("a", 60)
    request.kv = SimpleNamespace(cache_protected_len=56, holds_kv=True)  # type: ignore[attr-defined]
    request.lock, request.skip_radix_cache_insert = "lock", False  # type: ignore[attr-defined]
    assert [plugin.kv.release(tree, request, n) for n in (59, 59, 67, 67)] == [True, False, True, False]
    assert tree.told == ["lock", (56, 64)]
    assert (request.lock, request.skip_radix_cache_insert) == (None, True)  # type: ignore[attr-defined]
    assert request.kv.cache_protected_len == 64  # type: ignore[attr-defined]
    request.kv.holds_kv = False  # type: ignore[attr-defined]
    assert not plugin.kv.release(tree, request, 80)
    assert len(tree.told) == 2
    mode = plugin.batch.ForwardMode
    for now, skipped in ((mode.DECODE, True), (mode.EXTEND, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plugin.kv, "_in_use", [parse("ems:release=true")])
            plugin.kv.note(lambda *_: None, None, SimpleNamespace(reqs=[request], forward_mode=now))
        assert request.skip_radix_cache_insert is skipped  # type: ignore[attr-defined]


def test_room_that_was_given_back_is_looked_for_again(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request("a", 60)
    request.kv = SimpleNamespace(cache_protected_len=0, holds_kv=True)  # type: ignore[attr-defined]
    request.lock, request.skip_radix_cache_insert = "lock", False  # type: ignore[attr-defined]
    scheduler = SimpleNamespace(tree_cache=Lender(), running_batch=SimpleNamespace(batch_is_full=True))
    seen = []
    for n in (8, 8, 12):
        monkeypatch.setattr(plugin.kv, "_backends", [SimpleNamespace(n_done=lambda n=n: [(request, n)])])
        scheduler.running_batch.batch_is_full = True
        assert plugin.kv.give_back(lambda scheduler, batch: batch, scheduler, "batch") == "batch"
        seen.append(scheduler.running_batch.batch_is_full)
    assert seen == [False, True, False]


@pytest.mark.parametrize("release", [False, True])
def test_the_backend_tells_what_is_done_after_a_step(plugin: Any, release: bool) -> None:
    world = World(plugin, SMALL["ems"] + (",release=true" if release else ""))
    long, short = Request("long", 60), Request("short", 5)
    world.open(long)
    world.open(short)
    world.step([long, short])
    assert world.backend.n_done() == ([(long, 60)] if release else [])
    assert world.backend.n_done() == []
    assert world.backend.state()["widest"] == 2


@pytest.mark.parametrize("name", METHODS)
def test_rows_of_beams_beside_requests_are_exact(plugin: Any, name: str) -> None:
    world = World(plugin, name)
    lossy, leader = Request("lossy", 60), Request("leader", 60)
    leader.beam_group = "group"
    world.open(lossy)
    world.open(leader)
    for ours, stock in world.step([lossy, leader]):
        assert torch.equal(ours[1:], stock[1:])
        assert not torch.allclose(ours[0], stock[0], atol=1e-3)


def test_prompts_may_be_read_by_what_their_windows_find(plugin: Any) -> None:
    """Nothing differs within the budget, or for who asks for exact attention; beside another, too."""
    world = World(plugin, SMALL["actqkv"] + ",prefill=10")
    assert all(torch.equal(*each) for each in world.open(Request("short", 30)))
    assert all(torch.equal(*each) for each in world.open(Request("exact", 60, exact=True)))
    first = Request("first", 60)
    told = [*world.open(first), *world.open(Request("second", 70), shared=first)]
    assert all(float((ours - stock).abs().max()) > 0.01 for ours, stock in told)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("deltallm", [None, "tenant", None]),
        ("actqkv", [None, "tenant", None]),
        ("actqkv:prefill=64", ["abduce:actqkv:prefill=64", "tenant|abduce:actqkv:prefill=64", None]),
        ("deltallm:prefill=0.5", ["abduce:deltallm:prefill=0.5", "tenant|abduce:deltallm:prefill=0.5", None]),
    ],
)
def test_prompts_that_are_read_inexactly_have_a_prefix_cache_of_their_own(
    plugin: Any, monkeypatch: pytest.MonkeyPatch, text: str, keys: list[str | None]
) -> None:
    monkeypatch.setattr(plugin.kv, "_in_use", [parse(text)])
    requests = [Request("a", 9), Request("b", 9), Request("c", 9, exact=True)]
    for request, key in zip(requests, (None, "tenant", None), strict=True):
        request.extra_key = key  # type: ignore[attr-defined]
        plugin.kv.keep_apart(lambda scheduler, request: None, None, request)
    assert [request.extra_key for request in requests] == keys  # type: ignore[attr-defined]


def model(plugin: Any, *rotary: Any) -> Any:
    """Of layers that turn their keys by these."""
    layers = []
    for i, each in enumerate(rotary):
        layer = torch.nn.Module()
        layer.attn = plugin.radix.RadixAttention(HEADS, D, 1.0, N_KV, i)
        layer.rotary_emb = each
        layers.append(layer)
    return torch.nn.Sequential(*layers)


def turns(plugin: Any, base: int = 10_000, half: bool = True) -> Any:
    return plugin.rotary.RotaryEmbedding(D, D, 200, base, half, torch.float32)


def test_the_positions_that_the_model_put_on_its_keys_come_off(plugin: Any) -> None:
    from abduce.serving.kernels.ems import unrotated

    rotary = turns(plugin)
    tables = plugin.rotary.rotary_of(model(plugin, rotary, rotary))
    k, position = torch.randn(50, N_KV, D), torch.arange(50) * 3
    turned = rotary.forward_native(position, k.flatten(1).clone(), k.flatten(1).clone())[1].view_as(k)
    assert (turned - k).abs().max() > 0.5
    back = unrotated.turned(turned, position.expand(N_KV, -1), tables(), back=True)
    torch.testing.assert_close(back, k, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("plain_model")
def test_a_model_that_is_rotated_otherwise_is_refused(plugin: Any) -> None:
    one, other, pairs = turns(plugin), turns(plugin, 500), turns(plugin, half=False)
    asked = parse("ems:unrotated=true")
    plugin.kv.refuse(runner(model=model(plugin, one, one)), asked)
    for layers in ((one, other), (one, None), (pairs, pairs), ()):
        with pytest.raises(ValueError, match="Leave out unrotated=true"):
            plugin.kv.refuse(runner(model=model(plugin, *layers)), asked)


def runner(**changed: Any) -> Any:
    graphs = SimpleNamespace(
        decode=SimpleNamespace(backend=changed.pop("graph", "disabled")),
        prefill=SimpleNamespace(backend=changed.pop("prefill_graph", "disabled")),
    )
    args = {
        "speculative_algorithm": None, "enable_mixed_chunk": False, "disaggregation_mode": "null",
        "enable_dp_attention": False, "dcp_size": 1, "cuda_graph_config": graphs,
        "strip_thinking_cache": False,
    }  # fmt: skip
    model = {
        "hf_text_config": SimpleNamespace(attn_logit_softcapping=changed.pop("cap", None)),
        "is_encoder_decoder": False,
        "is_generation": True,
    }
    for name in list(changed):
        for where in (args, model):
            if name in where:
                where[name] = changed.pop(name)
    about = {
        "device": "cpu", "use_mla_backend": False, "sliding_window_size": None, "is_hybrid_swa": False,
        "kv_cache_dtype": 1, "dtype": 1, "prefill_attention_backend_str": "abduce_ems",
        "decode_attention_backend_str": "abduce_ems", **changed,
    }  # fmt: skip
    return SimpleNamespace(
        server_args=SimpleNamespace(**args), model_config=SimpleNamespace(**model), **about
    )


@pytest.fixture
def plain_model(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin.kv, "resolved_view", lambda args: args)
    monkeypatch.setattr(plugin.kv, "mambaish_config", lambda model: None)


@pytest.mark.usefixtures("plain_model")
def test_a_plain_model_is_served(plugin: Any) -> None:
    for name in METHODS:
        plugin.kv.refuse(runner(), parse(name))
    for name in ("actqkv", "deltallm"):  # which have no need of prompts
        plugin.kv.refuse(runner(prefill_attention_backend_str="fa3"), parse(name))


@pytest.mark.usefixtures("plain_model")
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"use_mla_backend": True}, "multi-head latent attention. Serve it without --kv"),
        ({"sliding_window_size": 4096}, "sliding windows"),
        ({"is_hybrid_swa": True}, "sliding windows"),
        ({"is_encoder_decoder": True}, "an encoder"),
        ({"cap": 50.0}, "capped logits"),
        ({"speculative_algorithm": "NGRAM"}, "--speculative-algorithm. Leave it out"),
        ({"enable_mixed_chunk": True}, "--enable-mixed-chunk"),
        ({"disaggregation_mode": "decode"}, "--disaggregation-mode"),
        ({"kv_cache_dtype": 2}, "--kv-cache-dtype"),
        ({"strip_thinking_cache": True}, "--strip-thinking-cache"),
        ({"device": "cuda", "graph": "full"}, "--disable-decode-cuda-graph"),
        ({"device": "cuda", "prefill_graph": "breakable"}, "--disable-prefill-cuda-graph"),
        ({"prefill_attention_backend_str": "fa3"}, "no --prefill-attention-backend"),
    ],
)
def test_what_is_not_served_is_refused_with_what_to_do(
    changed: dict[str, Any], told: str, plugin: Any
) -> None:
    with pytest.raises(ValueError, match=told):
        plugin.kv.refuse(runner(**changed), parse("ems:release=true"))


@pytest.mark.usefixtures("plain_model")
def test_prompts_that_another_backend_reads_cannot_be_read_inexactly(plugin: Any) -> None:
    with pytest.raises(ValueError, match="abduce_deltallm is to see prompts"):
        plugin.kv.refuse(runner(prefill_attention_backend_str="fa3"), parse("deltallm:prefill=0.5"))


def test_a_method_that_was_asked_for_and_is_not_in_force_stops_the_server(
    plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scheduler(name: str, backend: Any, cache: Any = None) -> Any:
        runner = SimpleNamespace(decode_attention_backend_str=name, attn_backend=backend)
        return SimpleNamespace(tp_worker=SimpleNamespace(model_runner=runner), tree_cache=cache)

    world = World(plugin, "ems")
    assert plugin.kv.verify(scheduler("torch_native", world.stock)) == {"used": None}
    with pytest.raises(RuntimeError, match="abduce_ems was asked for, and TorchNative"):
        plugin.kv.verify(scheduler("abduce_ems", world.stock))
    with pytest.raises(RuntimeError, match="not out of Tree"):
        plugin.kv.verify(scheduler("abduce_ems", world.backend, Tree()))
    monkeypatch.setenv("ABDUCE_KV", "ems:budget=100")
    with pytest.raises(RuntimeError, match=r"decodes by torch_native\. Write --attention-backend abduce_ems"):
        plugin.kv.verify(scheduler("torch_native", world.stock))
