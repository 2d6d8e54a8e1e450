"""ActQKV's laws in float64, and its selection against dense attention with everything else masked."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.kernels import actqkv, paged  # noqa: E402
from abduce.serving.kernels.actqkv import reference  # noqa: E402


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def window(m, d, seed=0):
    return torch.randn(m, d, generator=rng(seed), dtype=torch.float64)


@pytest.mark.parametrize(("m", "d"), [(2, 3), (7, 64), (512, 20)])
def test_the_mean_activation_bias_is_known(m, d):
    assert actqkv.activation_bias(window(m, d)).mean() == pytest.approx((m - 1) / m)


@pytest.mark.parametrize("m", [2, 5, 100])
def test_a_single_outlier_reaches_the_bound_and_nothing_exceeds_it(m):
    bound = (m - 1) ** 2 / m
    outlier = torch.zeros(m, 8, dtype=torch.float64)
    outlier[m // 2] = 3
    assert actqkv.activation_bias(outlier)[m // 2] == pytest.approx(bound)
    assert actqkv.activation_bias(window(m, 8, m)).max() <= bound * (1 + 1e-9)


def test_the_bias_ignores_affine_maps_of_channels_and_follows_permutations():
    x = window(40, 16)
    scale, shift = torch.linspace(-3, 5, 16).double() + 0.1, torch.arange(16).double()
    order = torch.randperm(40, generator=rng(1))
    bias = actqkv.activation_bias(x)
    torch.testing.assert_close(actqkv.activation_bias(x * scale + shift), bias)
    torch.testing.assert_close(actqkv.activation_bias(x[order]), bias[order])


def test_where_nothing_deviates_the_probe_is_the_mean():
    same = torch.full((9, 4), 2.5, dtype=torch.float64)
    torch.testing.assert_close(actqkv.probe_query(same), same[0])
    x = window(9, 4)
    torch.testing.assert_close(actqkv.probe_query(x, 0.0), x.mean(0))
    torch.testing.assert_close(actqkv.probe_query(x[:1]), x[0])


def anchors_found(power, n_seeds):
    """The share of seeds in which the page that 8 anchors of 512 queries look for is among 16 of 256."""
    found, d = 0, 128
    for seed in range(n_seeds):
        g = rng(seed)
        pages = torch.randn(256, d, generator=g) / d**0.5
        x = 2 * torch.randn(d, generator=g) + torch.randn(512, d, generator=g)
        x[torch.randperm(512, generator=g)[:8]] += 4 * d**0.5 * pages[7]
        found += 7 in (pages @ actqkv.probe_query(x, power)).topk(16).indices
    return found / n_seeds


def test_anchors_are_found_where_the_mean_query_misses_them():
    assert anchors_found(1.0, 200) == pytest.approx(0.97, abs=0.05)
    assert anchors_found(2.0, 200) == pytest.approx(1.00, abs=0.05)
    assert anchors_found(0.0, 200) == pytest.approx(0.13, abs=0.05)


def test_budgets_sum_to_what_there_is_and_keep_their_bounds():
    for seed in range(40):
        effective = torch.rand(12, generator=rng(seed)).double() * 30 + 1
        budgets = actqkv.layer_budgets(effective, 16, 4, 32)
        assert budgets.sum() == 12 * 16
        assert budgets.min() >= 4
        assert budgets.max() <= 32
    assert actqkv.layer_budgets(torch.full((5,), 3.3), 16, 4, 32).tolist() == [16] * 5
    with pytest.raises(ValueError, match="k_min <= k"):
        actqkv.layer_budgets(effective, 3, 4, 32)


def test_a_more_concentrated_layer_never_gets_more():
    for seed in range(40):
        effective = torch.rand(9, generator=rng(seed)).double() * 30 + 1
        before = actqkv.layer_budgets(effective, 16, 4, 32)[3]
        effective[3] *= 0.8
        assert actqkv.layer_budgets(effective, 16, 4, 32)[3] <= before + 1  # one page of rounding


def test_entropy_counts_pages():
    assert actqkv.effective_pages(torch.zeros(3, 10), 4, 64).tolist() == pytest.approx([10.0] * 3)
    sharp = torch.full((10,), -1e9)
    sharp[4] = 0
    assert actqkv.effective_pages(sharp, 4, 64) == pytest.approx(1.0)


PAGE, N_KV, GROUP, D = 4, 2, 3, 16


def cache(batch=3, places=9, seed=0):
    g = rng(seed)
    n_pages = batch * places
    keys = torch.randn(n_pages, PAGE, N_KV, D, generator=g, dtype=torch.float64)
    values = torch.randn(n_pages, PAGE, N_KV, D, generator=g, dtype=torch.float64)
    table = torch.randperm(n_pages, generator=g).view(batch, places)
    seq_lens = torch.randint(1, places * PAGE + 1, (batch,), generator=g)
    used = (seq_lens + PAGE - 1) // PAGE
    table = table.masked_fill(torch.arange(places) >= used[:, None], -1)
    q = torch.randn(batch, N_KV * GROUP, D, generator=g, dtype=torch.float64)
    return q, keys, values, table, seq_lens, used


def attend(q, keys, values, table, seq_lens, used, k, width, n_first=1, n_last=2):
    means = actqkv.page_means(keys, torch.full((len(keys),), PAGE))
    scores = actqkv.page_scores(q, means, table)
    chosen = actqkv.select(
        scores, used, torch.full_like(used, k), width=width, n_first=n_first, n_last=n_last
    )
    slots = actqkv.slots_of(chosen, table, seq_lens, PAGE)
    flat = keys.flatten(0, 1), values.flatten(0, 1)
    return paged.decode(q, *flat, slots, D**-0.5)[0], chosen, scores


def dense(q, keys, values, table, seq_lens, visible):
    out = torch.empty_like(q)
    for b in range(len(q)):
        where = torch.arange(int(seq_lens[b]))
        page, at = table[b, where // PAGE], where % PAGE
        for h in range(q.shape[1]):
            s = keys[page, at, h // GROUP] @ q[b, h] * D**-0.5
            s = s.masked_fill(~visible[b][where // PAGE], -torch.inf)
            out[b, h] = torch.softmax(s, 0) @ values[page, at, h // GROUP]
    return out


@pytest.mark.parametrize("seed", range(5))
def test_all_pages_selected_is_dense_attention(seed):
    q, keys, values, table, seq_lens, used = cache(seed=seed)
    out, _, _ = attend(q, keys, values, table, seq_lens, used, k=9, width=12)
    every = torch.ones(len(q), 9, dtype=torch.bool)
    torch.testing.assert_close(out, dense(q, keys, values, table, seq_lens, every))


@pytest.mark.parametrize("seed", range(5))
def test_a_selection_is_dense_attention_with_the_rest_masked(seed):
    q, keys, values, table, seq_lens, used = cache(seed=seed)
    out, chosen, scores = attend(q, keys, values, table, seq_lens, used, k=2, width=5)
    visible = torch.zeros(len(q), 10, dtype=torch.bool).scatter(1, chosen.masked_fill(chosen < 0, 9), True)
    torch.testing.assert_close(out, dense(q, keys, values, table, seq_lens, visible[:, :9]))
    for b, n in enumerate(used.tolist()):
        kept = {0, *range(max(n - 2, 0), n)}
        rest = sorted(set(range(n)) - kept, key=lambda p: -scores[b, p])[:2]
        assert sorted(chosen[b][chosen[b] >= 0].tolist()) == sorted({*kept, *rest})


def test_a_page_stands_for_its_own_keys_alone():
    """Whoever shares a page gets the same scores for it, whatever else is in the cache."""
    q, keys, values, table, seq_lens, used = cache()
    before = [x.clone() for x in (keys, values)]
    _, _, scores = attend(q, keys, values, table, seq_lens, used, k=2, width=5)
    alone = actqkv.page_scores(q[1:2], actqkv.page_means(keys, torch.full((len(keys),), PAGE)), table[1:2])
    assert torch.equal(scores[1:2], alone)
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])


# ---------------------------------------------------------------- a prompt, window by window

SIZES = {"window": 12, "page": PAGE, "n_first": 1, "n_local": 9}


def prompt(n=90, seed=3):
    g = rng(seed)
    q = torch.randn(n, N_KV * GROUP, D, generator=g, dtype=torch.float64)
    k, v = (torch.randn(n, N_KV, D, generator=g, dtype=torch.float64) for _ in range(2))
    return q, k, v


def causal(q, k, v, mask=None):
    wide = (x.repeat_interleave(GROUP, 1) for x in (k, v))
    heads_first = (x.transpose(0, 1)[None] for x in (q, *wide))
    seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q)) if mask is None else mask
    out = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=seen)
    return out[0].transpose(0, 1)


@pytest.mark.parametrize("n_q", [90, 41, 1])
def test_a_prompt_that_retrieves_every_page_is_read_exactly(n_q):
    q, k, v = prompt()
    for fast in (actqkv.retrieve, reference.retrieve):
        out = fast(q[-n_q:], k, v, D**-0.5, n_best=99, **SIZES)
        torch.testing.assert_close(out, causal(q[-n_q:], k, v))


@pytest.mark.parametrize("n_q", [90, 41, 1])
@pytest.mark.parametrize("n_best", [0, 1, 3])
def test_what_is_gathered_is_what_is_not_masked(n_q, n_best):
    q, k, v = prompt()
    got = actqkv.retrieve(q[-n_q:], k, v, D**-0.5, n_best=n_best, **SIZES)
    wanted = reference.retrieve(q[-n_q:], k, v, D**-0.5, n_best=n_best, **SIZES)
    torch.testing.assert_close(got, wanted)
    assert (got - causal(q[-n_q:], k, v)).abs().max() > 0.01


def test_each_window_reads_what_its_own_queries_look_for():
    """By hand: the first page, the best two of the rest by the window's probe, the window's surroundings."""
    q, k, v = prompt()
    seen = torch.zeros(90, 90, dtype=torch.bool)
    pages = k[:88].view(22, PAGE, N_KV, D).mean(1)
    for first in range(0, 90, 12):
        end, local = min(first + 12, 90), max(first - 9, 0) // PAGE * PAGE
        probe = actqkv.probe_query(q[first:end].flatten(1)).view(N_KV, GROUP, D).sum(1)
        order = sorted(range(1, local // PAGE), key=lambda p: -float((pages[p] * probe).sum()))
        for i in range(first, end):
            seen[i, local : i + 1] = True
            for p in {0, *order[:2]} if local else ():
                seen[i, p * PAGE : (p + 1) * PAGE] = True
    got = actqkv.retrieve(q, k, v, D**-0.5, n_best=2, **SIZES)
    torch.testing.assert_close(got, causal(q, k, v, seen))


def test_windows_keep_their_borders_wherever_a_part_begins():
    """So a prompt read in parts that end at borders is read as at once."""
    q, k, v = prompt()
    whole = actqkv.retrieve(q, k, v, D**-0.5, n_best=2, **SIZES)
    parts = [
        actqkv.retrieve(q[a:b], k[:b], v[:b], D**-0.5, n_best=2, **SIZES) for a, b in [(0, 48), (48, 90)]
    ]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert reference.windows(5, 30, 12) == [(5, 12), (12, 24), (24, 30)]
    assert reference.windows(12, 24, 12) == [(12, 24)]


def test_no_power_is_the_mean_query_of_infllm(monkeypatch):
    q, k, v = prompt()
    q[5::12] *= 4  # a token of each window that deviates
    plain = actqkv.retrieve(q, k, v, D**-0.5, n_best=1, power=0.0, **SIZES)
    weighed = actqkv.retrieve(q, k, v, D**-0.5, n_best=1, **SIZES)
    assert not torch.allclose(plain, weighed)
    for x in (q[:12].flatten(1), q[84:].flatten(1)):
        torch.testing.assert_close(actqkv.probe_query(x, 0.0), x.mean(0), rtol=0, atol=1e-14)
    monkeypatch.setattr(reference, "probe_query", lambda x, power: x.mean(-2))
    assert torch.equal(plain, actqkv.retrieve(q, k, v, D**-0.5, n_best=1, **SIZES))


def test_no_value_is_needed_on_the_host_to_choose_what_is_read():
    """Tensors without values would end it."""
    q, keys, _, table, seq_lens, used = (x.to("meta") for x in cache())
    means = actqkv.page_means(keys, torch.full((len(keys),), PAGE, device="meta"))
    scores = actqkv.page_scores(q, means, table)
    chosen = actqkv.select(scores, used, torch.full_like(used, 2), width=5, n_first=1, n_last=2)
    slots = actqkv.slots_of(chosen, table, seq_lens, PAGE)
    assert slots.shape == (3, 1, 5 * PAGE)
    assert actqkv.effective_pages(scores, q.shape[1], D).shape == (3,)
