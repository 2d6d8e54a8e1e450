"""Memories of a prefix on a small random model, and EMSPress: what is exact, what is kept, what comes out."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from abduce.serving.errors import UsageError  # noqa: E402
from abduce.serving.kernels import ems  # noqa: E402
from abduce.serving.kernels.ems import unrotated  # noqa: E402
from abduce.serving.transformers import kv  # noqa: E402

N, VOCABULARY = 150, 97
METHODS = [kv.EMS, kv.ActQKV, kv.DeltaLLM, kv.SnapKV, kv.MergedSnapKV, kv.H2O, kv.StreamingLLM, kv.Quest]
SMALL = {
    kv.EMS: {"window": 8},
    kv.SnapKV: {"window": 8},
    kv.MergedSnapKV: {"window": 8},
    kv.Quest: {"page": 8, "window": 8},
    kv.DeltaLLM: {"window": 8},
    kv.ActQKV: {"page": 8, "window": 8},
}


def tiny(seed=0, **changed):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.4,  # so that attention is far from uniform
        **changed,
    )
    return transformers.LlamaForCausalLM(config).eval()


def tokens(n=N + 20, seed=1):
    return torch.randint(0, VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def reader():
    return kv.Reader(tiny())


@pytest.fixture(scope="module")
def prefix(reader):
    return reader.read(tokens()[:N])


def plain_logits(ids):
    with torch.inference_mode():
        return tiny()(torch.tensor([ids])).logits[0]


def near(got, wanted):
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_keep_ratio_of_one_is_the_whole_cache(reader, prefix, method):
    memory = method(1.0, **SMALL.get(method, {}))(prefix)
    near(reader.tell(memory, tokens()[N:], N), plain_logits(tokens())[N:])
    assert memory.read_share == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0.5, 0.25])
def test_no_more_is_read_than_the_ratio_allows(reader, prefix, method, ratio):
    memory = method(ratio, **SMALL.get(method, {}))(prefix)
    logits = reader.tell(memory, tokens()[N:], N)
    assert torch.isfinite(logits).all()
    assert 0.7 * ratio < memory.read_share <= ratio + 1e-9
    assert (logits - plain_logits(tokens())[N:]).abs().max() > 1e-3  # something was lost


@pytest.mark.parametrize("method", METHODS)
def test_token_by_token_is_the_same_as_at_once(reader, prefix, method):
    make = method(0.5, **SMALL.get(method, {}))
    ids = tokens()[N:]
    first = reader.tell(make(prefix), ids, N)
    near(reader.tell(make(prefix), ids[:7], N), first[:7])
    if method is kv.ActQKV:  # within a refresh
        near(reader.tell(kv.ActQKV(0.5, page=8, window=8, refresh=4)(prefix), ids[:4], N), first[:4])


@pytest.mark.parametrize("method", METHODS)
def test_what_was_read_is_not_written_to(reader, prefix, method):
    before = [x.clone() for each in prefix for x in (each.q, each.k, each.v)]
    reader.tell(method(0.25, **SMALL.get(method, {}))(prefix), tokens()[N:], N)
    after = [x for each in prefix for x in (each.q, each.k, each.v)]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_a_text_read_in_two_parts_is_the_text(reader, prefix):
    parts = reader.read(tokens()[100:N], after=reader.read(tokens()[:100]))
    for is_, should in zip(parts, prefix, strict=True):
        near(is_.q, should.q)
        near(is_.k, should.k)
        for sums, whole in zip(is_.attention_sums(60), should.attention_sums(60), strict=True):
            near(sums, whole)


def test_what_is_said_side_by_side_is_what_each_memory_alone_says(reader, prefix):
    """ActQKV's memory adapts as it is read, so it is made twice; rows end at different times."""
    question, limit = tokens()[N : N + 11], 14

    def made():
        return [method(0.4, **SMALL.get(method, {}))(prefix) for method in METHODS]

    together = reader.greedy(made(), question, N, limit, lambda said: said[-1] % 11 == 3)
    for memory, again, said in zip(made(), made(), together, strict=True):
        assert reader.greedy([memory], question, N, limit, lambda said: said[-1] % 11 == 3) == [said]
        assert len(said) == limit or said[-1] % 11 == 3
        logits = reader.tell(again, [*question, *said[:-1]], N)
        if again.refresh is None:
            assert logits[len(question) - 1 :].argmax(-1).tolist() == said
    assert len({len(said) for said in together}) > 1


def test_attention_sums_are_those_of_ems(prefix):
    each = prefix[1]
    for is_, should in zip(
        each.attention_sums(8), ems.column_sums(each.q, each.k, 8, each.scale), strict=True
    ):
        near(is_, should)


def test_streaming_keeps_the_first_and_the_last(prefix):
    memory = kv.StreamingLLM(0.5)(prefix)
    torch.testing.assert_close(memory.k[0], torch.cat([prefix[0].k[:4], prefix[0].k[-71:]]))


def attention(each):
    """[kv_heads, n, n], the mean over the heads of a group, head by head."""
    n, n_heads, _ = each.q.shape
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    p = [
        torch.softmax((each.q[:, h] @ each.k[:, h // 3].T * each.scale).masked_fill(later, -torch.inf), -1)
        for h in range(n_heads)
    ]
    return torch.stack([torch.stack(p[:3]).mean(0), torch.stack(p[3:]).mean(0)])


@pytest.mark.parametrize("method", ["snapkv", "h2o"])
def test_the_baselines_keep_what_was_looked_at_and_the_last(prefix, method):
    each = prefix[2]
    p, last = attention(each), 8 if method == "snapkv" else 37
    score = p[:, -last:, : N - last].sum(1) if method == "snapkv" else p[:, :, : N - last].sum(1)
    if method == "snapkv":
        wide = torch.nn.functional.pad(score, (2, 2))
        score = sum(wide[:, i : i + N - last] for i in range(5))
    memory = (kv.SnapKV(0.5, window=8) if method == "snapkv" else kv.H2O(0.5))(prefix)
    for h in range(2):
        best = score[h].argsort(descending=True)[: 75 - last].sort().values
        there = torch.cat([best, torch.arange(N - last, N)])
        assert torch.equal(memory.k[2][:, h], each.k[there, h])
        assert torch.equal(memory.v[2][:, h], each.v[there, h])


def test_merging_puts_what_snapkv_forgets_into_the_values_of_the_nearest_keys(prefix):
    each = prefix[2]
    plain, merged = (method(0.5, window=8)(prefix) for method in (kv.SnapKV, kv.MergedSnapKV))
    assert torch.equal(plain.k[2], merged.k[2])
    there = kv.SnapKV(0.5, window=8).chosen(each)
    for h in range(2):
        k, v = each.k[:, h], each.v[:, h]
        sums, weights = v[there[h]].clone(), torch.ones(len(there[h]))
        for gone in sorted(set(range(N)) - set(there[h].tolist())):
            near_ = torch.cosine_similarity(k[gone][None], k[there[h]])
            at = int(near_.argmax())
            norm, into = v[gone].norm(), v[there[h][at]].norm()
            weight = near_[at].clamp_min(0) * norm / (norm + into)
            sums[at] += weight * v[gone]
            weights[at] += weight
        near(merged.v[2][:, h], sums / weights[:, None])


def test_quest_reads_the_pages_whose_bounds_are_the_largest(prefix):
    each = prefix[1]
    memory, q = kv.Quest(0.5, page=8, window=8)(prefix), each.q[-3:]
    o, _ = memory.attend(1, q)
    for i, h in ((0, 0), (2, 1)):
        mine = q[i, 3 * h : 3 * h + 3]
        pages = each.k[:, h].split(8)
        bound = [float(torch.maximum(mine * p.amin(0), mine * p.amax(0)).sum()) for p in pages]
        order = sorted(range(1, 18), key=lambda p: -bound[p])
        there = torch.cat([torch.arange(8 * p, min(8 * p + 8, N)) for p in sorted([0, 18, *order[:7]])])
        p = torch.softmax(mine @ each.k[there, h].T * each.scale, -1)
        near(o[i, 3 * h : 3 * h + 3], p @ each.v[there, h])


def test_positions_are_not_taken_off_keys_that_are_not_merged():
    for make in (
        lambda: kv.EMS(0.5, unrotated=True, merge_keys=False),
        lambda: kv.EMSPress(0.5, unrotated=True, merge_keys=False),
    ):
        with pytest.raises(UsageError, match="for merged keys"):
            make()


def test_the_positions_come_off_the_keys(reader, prefix):
    """One token all over: in the first layer all its keys are the same, but for their positions."""
    keys = reader.read([5] * 40)[0]
    back = unrotated.turned(keys.k, torch.arange(40).expand(2, -1), keys.rotary(), back=True)
    assert (keys.k[39] - keys.k[0]).abs().max() > 0.1
    near(back, keys.k[:1].expand_as(back))


def test_unrotated_keys_that_are_the_same_stay_as_they_are_where_their_centres_are(reader):
    prefix = reader.read([5] * 40)
    plain, unrotated = (kv.EMS(0.5, window=8, mass_bias=True, unrotated=u)(prefix) for u in (False, True))
    assert torch.equal(plain.mass[0], unrotated.mass[0])
    assert float(plain.mass[0].max()) >= 2  # something was merged

    def apart(memory):
        """From the nearest key that was there."""
        return (memory.k[0][:, None] - prefix[0].k[None]).abs().amax(-1).amin(1).max()

    assert apart(unrotated) < 1e-5
    assert apart(plain) > 1e-2


def test_keys_that_are_rotated_in_other_pairs_are_refused():
    config = transformers.CohereConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.CohereForCausalLM(config).eval()
    with pytest.raises(UsageError, match="otherwise than Llama"):
        pressed_by(kv.EMSPress(0.5, window_size=8, unrotated=True), model)
    read = kv.Reader(model).read(tokens()[:N])
    with pytest.raises(UsageError, match="Leave out unrotated"):
        kv.EMS(0.5, window=8, unrotated=True)(read)


def pressed_by(press, model):
    with torch.inference_mode(), press(model):
        model(torch.tensor([tokens()[:N]]), past_key_values=transformers.DynamicCache())


def test_runs_of_equal_keys_lose_nothing(reader):
    ids = tokens()
    prefix = reader.read(ids[:N])
    for i, each in enumerate(prefix):  # pairs of equal keys: half as many runs, exact with the bias ln 2
        k = each.k.clone()
        k[4:142:2] = k[5:143:2]
        prefix[i] = kv.Prefix(each.q, k, each.v, each.scale)
    far_share = (4 + 69 + 8) / N
    memory = kv.DeltaLLM(far_share + 1e-6, window=8)(prefix)
    assert memory.read_share == pytest.approx(far_share)
    near(reader.tell(memory, ids[N:], N), reader.tell(kv.FullCache()(prefix), ids[N:], N))


def test_actqkv_reads_the_first_page_the_last_and_the_best_between(prefix):
    each = prefix[1]
    memory = kv.ActQKV(0.5, page=8, window=8)([each])  # one layer: its budget is all, 9 - 2 pages
    q = each.q[-5:]
    o, lse = memory.attend(0, q)
    pages = each.k.split(8)
    for i, one in enumerate(q):
        total = one.view(2, 3, -1).sum(1)
        order = sorted(range(1, 18), key=lambda p: -float((total * pages[p].mean(0)).sum()))
        there = torch.cat([torch.arange(8 * p, min(8 * p + 8, N)) for p in sorted([0, 18, *order[:7]])])
        naive = kv.Kept([each.k[there]], [each.v[there]], each.scale, N).attend(0, one[None])
        near(o[i], naive[0][0])
        near(lse[i], naive[1][0])


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (lambda: kv.EMS(0.1, window=32), "window of 32"),
        (lambda: kv.H2O(0.0), "in \\(0, 1\\]"),
        (lambda: kv.ActQKV(0.3, page=16, window=32), "smaller"),
    ],
)
def test_what_leaves_nothing_to_choose_is_refused(prefix, method, told):
    with pytest.raises(UsageError, match=told):
        method()(prefix)


def test_packed_keys_of_no_threshold_lose_nothing_and_of_a_large_one_bytes(reader, prefix):
    full = reader.tell(kv.FullCache()(prefix), tokens()[N:], N)
    exact, packed = (kv.PackedDeltaLLM(theta, window=8)(prefix) for theta in (0.0, 1.0))
    near(reader.tell(exact, tokens()[N:], N), full)
    assert exact.read_share > 1  # every bit is set, and bits are stored
    assert 0.5 < packed.read_share < 0.95
    off = (reader.tell(packed, tokens()[N:], N) - full).abs().max()
    assert off > 1e-3


def test_packed_keys_are_what_is_read_by_differences(reader, prefix):
    """The last token reads what a hybrid over the whole text would give it."""
    each, method = prefix[0], kv.PackedDeltaLLM(0.7, window=8, n_sink=4)
    q = each.q[-1:]
    got, _ = method([each]).attend(0, q)
    whole = kv.ByDifferences(0.7, window=8)(each.q, each.k, each.v, each.scale)
    near(got, whole[-1:])


def test_int8_keys_are_within_half_a_step(prefix):
    for k, each in zip(kv.Int8Keys()(prefix).k, prefix, strict=True):
        step = each.k.abs().amax(-1, keepdim=True) / 127
        assert (k - each.k).abs().max() > 0
        assert ((k - each.k).abs() <= step / 2 * 1.001).all()


@pytest.mark.parametrize("prompt", [kv.Retrieving(99, window=16, page=8), kv.ByDifferences(0.0, window=8)])
def test_a_text_is_read_exactly_where_nothing_is_left_out(reader, prefix, prompt):
    for is_, should in zip(reader.read(tokens()[:N], prompt=prompt), prefix, strict=True):
        near(is_.k, should.k)
        near(is_.v, should.v)


@pytest.mark.parametrize("prompt", [kv.Retrieving(2, window=16, page=8), kv.ByDifferences(1.0, window=8)])
def test_a_text_that_is_read_inexactly_keeps_the_keys_of_its_first_layer(reader, prefix, prompt):
    read = reader.read(tokens()[:N], prompt=prompt)
    near(read[0].k, prefix[0].k)
    assert (read[2].k - prefix[2].k).abs().max() > 1e-3
    near(reader.read(tokens()[:N])[2].k, prefix[2].k)  # and the next is exact again


def test_retrieval_reads_no_more_than_it_says():
    whole, few = (kv.Retrieving(n_best, window=16, page=8) for n_best in (99, 2))
    assert whole.read_share(N) == 1
    assert few.read_share(N) < kv.Retrieving(4, window=16, page=8).read_share(N) < 1
    # by hand, of 40 tokens: windows at 0, 16, 32; behind them 0, 16 and 32 tokens, at most 1 page + 2 + 32
    assert few.read_share(40) == 1


# ---------------------------------------------------------------- EMSPress


def pressed(press, ids, seed=0, n_new=6):
    """Tokens chosen greedily after a prefill, with positions of our own; the cache's length after it."""
    model, cache = tiny(seed), transformers.DynamicCache()
    with torch.inference_mode(), press(model):
        logits = model(torch.tensor(ids), past_key_values=cache).logits[:, -1]
        n, kept = len(ids[0]), cache.get_seq_length()
        chosen = []
        for i in range(n_new):
            token = logits.argmax(-1, keepdim=True)
            chosen.append(token)
            logits = model(token, past_key_values=cache, position_ids=torch.tensor([[n + i]])).logits[:, -1]
    return torch.cat(chosen, 1), kept, logits


def generated(press, ids, n_new=6):
    model = tiny()
    with press(model):
        return model.generate(
            torch.tensor(ids), max_new_tokens=n_new, min_new_tokens=n_new, do_sample=False, pad_token_id=0
        )[:, len(ids[0]) :]


def no_press(model):
    from contextlib import nullcontext

    return nullcontext(model)


def test_a_ratio_of_zero_is_bit_identical_to_no_press():
    ids = [tokens(N, seed) for seed in (1, 2)]
    with_, without = pressed(kv.EMSPress(), ids), pressed(no_press, ids)
    assert torch.equal(with_[2], without[2])
    assert torch.equal(with_[0], without[0])
    assert with_[1] == N


def test_prefill_with_a_press_then_greedy_decode():
    press = kv.EMSPress(compression_ratio=0.75, window_size=8)
    ids = [tokens(N, seed) for seed in (1, 2)]
    chosen, kept, _ = pressed(press, ids)
    assert kept == int(N * 0.25)
    assert chosen.shape == (2, 6)
    rows = [pressed(press, [row])[0] for row in ids]
    assert torch.equal(chosen, torch.cat(rows))


def test_generate_counts_positions_from_the_whole_text():
    press = kv.EMSPress(compression_ratio=0.5, window_size=8)
    ids = [tokens(N)]
    assert torch.equal(generated(press, ids), pressed(press, ids)[0])
    assert not torch.equal(pressed(press, ids)[2], pressed(no_press, ids)[2])


@pytest.mark.parametrize("more", [{}, {"unrotated": True}])
def test_the_press_and_the_memory_are_the_same_method(reader, prefix, more):
    model, cache, ids = tiny(), transformers.DynamicCache(), tokens()
    with torch.inference_mode(), kv.EMSPress(compression_ratio=0.75, window_size=8, **more)(model):
        model(torch.tensor([ids[:N]]), past_key_values=cache)
        places = torch.arange(N, len(ids))[None]
        got = model(torch.tensor([ids[N:]]), past_key_values=cache, position_ids=places).logits[0]
    near(got, reader.tell(kv.EMS(0.25, window=8, **more)(prefix), ids[N:], N))


def test_the_score_is_that_of_the_queries_that_were_used(prefix):
    model, seen = tiny(), []

    class Watched(kv.EMSPress):
        def score(self, *arguments):
            seen.append(super().score(*arguments))
            return seen[-1]

    with torch.inference_mode(), Watched(compression_ratio=0.5, window_size=8)(model):
        model(torch.tensor([tokens()[:N]]), past_key_values=transformers.DynamicCache())
    each = prefix[0]
    near(seen[0][0], ems.score(each.q, each.k, ems.Config(9, 8), each.scale))


def test_outside_the_block_nothing_is_compressed():
    model, cache = tiny(), transformers.DynamicCache()
    with kv.EMSPress(compression_ratio=0.5, window_size=8)(model):
        pass
    with torch.inference_mode():
        model(torch.tensor([tokens(N)]), past_key_values=cache)
    assert cache.get_seq_length() == N


def test_ratios_beyond_bounds_are_refused():
    with pytest.raises(UsageError, match="compression_ratio"):
        kv.EMSPress(compression_ratio=1.0)
    with pytest.raises(UsageError, match="window of 32"):
        pressed(kv.EMSPress(compression_ratio=0.9), [tokens(N)])
