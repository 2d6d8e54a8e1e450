"""EMS's laws in float64: what is kept, merged and dropped, and what that does to attention."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.kernels import ems  # noqa: E402
from abduce.serving.kernels.ems import reference  # noqa: E402
from abduce.serving.kernels.ems.unrotated import turned  # noqa: E402

D = 16
SCALE = D**-0.5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def sequence(n=120, n_kv=2, group=3, seed=0):
    g = rng(seed)
    q = torch.randn(n, n_kv * group, D, generator=g, dtype=torch.float64)
    k, v = (torch.randn(n, n_kv, D, generator=g, dtype=torch.float64) for _ in range(2))
    return q, k, v


def small(**changed):
    return ems.Config(**{"budget": 24, "window": 8, "tau": 0.1, **changed})


def full(q, k, v):
    entries = ems.compress(k, v, torch.ones(k.shape[1], len(k)).double(), small(budget=len(k) + 9))
    return ems.attend(q, entries, SCALE)[0]


def test_the_mean_factor_is_window_over_length():
    q, k, _ = sequence()
    total, local = reference.column_sums(q, k, reference.row_lse(q, k, SCALE), 8, SCALE)
    torch.testing.assert_close(total.mean(1), torch.ones(2).double())
    torch.testing.assert_close(local.mean(1), torch.full((2,), 8 / 120).double())


def test_within_the_budget_nothing_changes():
    q, k, v = sequence(20)
    config = small()
    entries = ems.compress(k, v, ems.score(q, k, config, SCALE), config)
    assert entries.k is k
    assert entries.v is v
    assert torch.equal(entries.source[0], torch.arange(20, dtype=torch.int32))


def test_inputs_are_not_written_to_and_the_same_comes_out_again():
    q, k, v = sequence()
    before = [x.clone() for x in (q, k, v)]
    config = small()
    first, second = (ems.compress(k, v, ems.score(q, k, config, SCALE), config) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip((q, k, v), before, strict=True))
    assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in vars(first))


def test_every_token_is_in_one_entry_or_dropped_and_counts_add_up():
    q, k, v = sequence()
    config = small()
    s = ems.score(q, k, config, SCALE)
    entries = ems.compress(k, v, s, config)
    assert entries.source.shape == (2, 120)
    for h in range(2):
        kept = entries.source[h] >= 0
        assert entries.source[h].max() == config.budget - 1
        assert entries.mass[h].sum() == kept.sum()
        assert entries.weight[h].sum() == pytest.approx(float(s[h][kept].sum()))
        counts = torch.bincount(entries.source[h][kept], minlength=config.budget)
        assert torch.equal(counts.double(), entries.mass[h])
        assert entries.source[h, -8:].tolist() == [*range(16, 24)]
        assert 0 < int((~kept).sum()) < 120 - config.budget  # some are merged, some dropped
        assert (entries.position[h, 1:] > entries.position[h, :-1]).all()


def test_every_token_is_in_one_class():
    """Important, merged, in the zero class, irrelevant or in the window; what became of it follows."""
    q, k, v = sequence()
    config = small(gamma=0.8)
    s = ems.score(q, k, config, SCALE)
    entries = ems.compress(k, v, s, config)
    centres, tokens = ems.classify(s, config)
    target = reference.assign(k, v, centres, tokens, config.tau)
    for h in range(2):
        candidates, became = tokens[h][tokens[h] >= 0], target[h][tokens[h] >= 0]
        important, window = set(centres[h].tolist()), set(range(112, 120))
        merged = dict(zip(candidates.tolist(), became.tolist(), strict=True))
        zero = {token for token, entry in merged.items() if entry == config.n_centres}
        merged = {token: entry for token, entry in merged.items() if entry < config.n_centres}
        irrelevant = set(range(120)) - important - window - merged.keys() - zero
        classes = [important, set(merged), zero, irrelevant, window]
        assert all(classes)
        assert sum(map(len, classes)) == 120 == len(set().union(*classes))
        source = entries.source[h].tolist()
        assert [source[token] for token in sorted(important)] == [*range(16)]
        assert all(source[token] == entry for token, entry in merged.items())
        assert all(source[token] == -1 for token in zero | irrelevant)
        assert [source[token] for token in sorted(window)] == [*range(16, 24)]


def test_heads_are_compressed_each_for_itself():
    q, k, v = sequence()
    config = small()
    both = ems.compress(k, v, ems.score(q, k, config, SCALE), config)
    swapped = ems.compress(
        k.flip(1), v.flip(1), ems.score(torch.cat([q[:, 3:], q[:, :3]], 1), k.flip(1), config, SCALE), config
    )
    torch.testing.assert_close(swapped.k.flip(1), both.k)
    torch.testing.assert_close(swapped.v.flip(1), both.v)
    assert torch.equal(swapped.source.flip(0), both.source)


def test_the_budget_goes_to_the_best_scores():
    s = torch.rand(2, 60, generator=rng(1)).double()
    centres, tokens = ems.classify(s, small())
    for h in range(2):
        best = s[h, :52].topk(16).indices.sort().values
        assert torch.equal(centres[h], best)
        merged = tokens[h][tokens[h] >= 0]
        assert s[h, merged].max() <= s[h, centres[h]].min()
        covered = (s[h, centres[h]].sum() + s[h, merged].sum()) / s[h, :52].sum()
        assert covered >= 0.98


def test_a_score_may_be_the_largest_of_its_neighbours():
    s = torch.tensor([[0.0, 3, 0, 0, 0, 1, 2]])
    assert ems.pooled(s, 1) is s
    assert ems.pooled(s, 3).tolist() == [[3, 3, 3, 0, 1, 2, 2]]
    q, k, _ = sequence()
    plain = ems.score(q, k, small(), SCALE)
    assert torch.equal(ems.score(q, k, small(pool=5), SCALE), ems.pooled(plain, 5))


def test_a_sparse_head_merges_nothing_and_a_head_without_attention_keeps_its_latest():
    s = torch.full((2, 60), 1e-9).double()
    s[0, [3, 9, 27]] = 1.0
    s[1] = 0
    centres, tokens = ems.classify(s, small())
    assert (tokens[0] < 0).all()
    assert {3, 9, 27} <= set(centres[0].tolist())
    assert centres[1].tolist() == [*range(36, 52)]


def test_two_negative_cosines_are_not_similar():
    k = torch.zeros(3, 1, 4).double()
    v = torch.zeros(3, 1, 4).double()
    k[0, 0, 0] = v[0, 0, 0] = 1
    k[1, 0, 0] = v[1, 0, 0] = -1
    k[2, 0, 0] = v[2, 0, 0] = 2
    target = reference.assign(k, v, torch.tensor([[0]]), torch.tensor([[1, 2]]), 0.5)
    assert target.tolist() == [[1, 0]]


def test_tau_above_one_is_plain_eviction():
    q, k, v = sequence()
    config = small(tau=1.1)
    entries = ems.compress(k, v, ems.score(q, k, config, SCALE), config)
    for h in range(2):
        assert torch.equal(entries.k[:, h], k[entries.position[h], h])
        assert torch.equal(entries.v[:, h], v[entries.position[h], h])


def tables(n=200, half=D // 2):
    angle = torch.arange(n).double()[:, None] * 100.0 ** -(torch.arange(half).double() / half)
    return ems.Rotary(angle.cos(), angle.sin())


def test_unrotated_without_merging_is_eviction_bit_for_bit():
    q, k, v = sequence()
    config = small(tau=1.1)
    s = ems.score(q, k, config, SCALE)
    plain, unrotated = ems.compress(k, v, s, config), ems.compress(k, v, s, config, rotary=tables())
    assert all(torch.equal(x, y) for x, y in zip(vars(plain).values(), vars(unrotated).values(), strict=True))
    within = ems.compress(k, v, s, small(budget=120), rotary=tables())
    assert within.k is k


@pytest.mark.parametrize("what", ["one position", "no rotation"])
def test_unrotated_is_the_plain_merge_where_positions_do_not_differ(what):
    q, k, v = sequence()
    config = small(merge_keys=True)
    s = ems.score(q, k, config, SCALE)
    rotary, position = tables(), torch.full((2, 120), 77)
    if what == "no rotation":
        rotary = ems.Rotary(torch.ones(120, 8).double(), torch.zeros(120, 8).double())
        position = torch.arange(120).expand(2, -1)
    plain = ems.compress(k, v, s, config, position=position)
    unrotated = ems.compress(k, v, s, config, position=position, rotary=rotary)
    assert float(plain.mass.max()) > 1
    assert torch.equal(plain.source, unrotated.source)
    for name in ("k", "v", "weight"):
        torch.testing.assert_close(getattr(plain, name), getattr(unrotated, name), rtol=1e-12, atol=1e-12)


def test_unrotated_copies_of_a_word_leave_its_key_as_it_was():
    """Twelve words, each several times a few positions apart: near enough to be alike while they are rotated.
    Merged without their positions, a centre's key stays what it was, and merged with them it does not."""
    g, n = rng(3), 80
    word = torch.cat([torch.arange(12), torch.randint(0, 12, (60,), generator=g), torch.arange(8)])
    position = torch.arange(n)[None]
    k, v = (torch.randn(12, 1, D, generator=g).double()[word] for _ in range(2))
    slow = tables(half=2)  # the other channels are not turned
    k = turned(k, position, slow)
    s = torch.ones(1, n).double()
    s[0, :12] = 2
    config = small(budget=20, tau=0.5, gamma=1.0)
    plain, unrotated = (ems.compress(k, v, s, config, position=position, rotary=r) for r in (None, slow))
    assert torch.equal(plain.source, unrotated.source)
    own = plain.source[0, 12:72] == word[12:72]
    merged = plain.source[0, 12:72] >= 0
    assert int(merged.sum()) > 20
    assert torch.equal(own, merged)
    torch.testing.assert_close(unrotated.k[:12], k[:12], rtol=1e-12, atol=1e-12)
    assert (plain.k[:12] - k[:12]).abs().max() > 1e-2


def test_turning_back_undoes_turning_and_keeps_lengths():
    _, k, _ = sequence()
    position = torch.stack([torch.arange(120), torch.arange(120).flip(0)])
    for half in (8, 5):  # of all channels, and of ten of sixteen
        rotary = ems.Rotary(*(3 * x for x in tables(half=half)))
        there = turned(k, position, rotary)
        torch.testing.assert_close(there.norm(dim=-1), k.norm(dim=-1))
        assert torch.equal(there[..., 2 * half :], k[..., 2 * half :])
        assert (there - k).abs().max() > 1
        torch.testing.assert_close(turned(there, position, rotary, back=True), k)


def test_duplicates_are_merged_without_loss_when_their_mass_counts():
    g = rng(5)
    kinds = torch.cat([torch.arange(12), torch.randint(0, 12, (60,), generator=g), torch.arange(8)])
    k = torch.randn(12, 1, D, generator=g).double()[kinds]
    v = torch.randn(12, 1, D, generator=g).double()[kinds]
    q = torch.randn(5, 2, D, generator=g).double()
    s = torch.ones(1, 80).double()
    s[0, :12] = 2  # one of each kind is a centre
    config = small(budget=20, tau=0.999, gamma=1.0)
    entries = ems.compress(k, v, s, config)
    assert (entries.source >= 0).all()
    out, _ = ems.attend(q, entries, SCALE, mass_bias=True)
    torch.testing.assert_close(out, full(q, k, v), rtol=1e-12, atol=1e-12)
    without, _ = ems.attend(q, entries, SCALE)
    assert (without - full(q, k, v)).abs().max() > 1e-3


def test_compressing_again_carries_weight_and_mass():
    q, k, v = sequence()
    config = small()
    s = ems.score(q, k, config, SCALE)
    first = ems.compress(k, v, s, config)
    more_k, more_v = (torch.randn(30, 2, D, generator=rng(7)).double() for _ in range(2))
    new = torch.rand(2, 30, generator=rng(8)).double()
    ones, at = torch.ones(2, 30).double(), torch.arange(120, 150).expand(2, -1)
    again = ems.compress(
        torch.cat([first.k, more_k]),
        torch.cat([first.v, more_v]),
        torch.cat([first.weight, new], 1),
        config,
        position=torch.cat([first.position, at], 1),
        mass=torch.cat([first.mass, ones], 1),
    )
    dropped = torch.cat([first.mass, ones], 1)[again.source < 0].sum()
    assert again.mass.sum() + dropped == first.mass.sum() + 60
    assert again.position[:, -8:].tolist() == [[*range(142, 150)]] * 2


def test_a_cached_prefix_counts_columns_by_who_could_see_them():
    q, k, _ = sequence()
    total, local = reference.column_sums(q[60:], k, reference.row_lse(q[60:], k, SCALE), 8, SCALE)
    s = ems.global_local_score(total, local, 60)
    assert (s >= local).all()
    seen = torch.tensor([min(120 - j, 60) for j in range(120)])
    rate = total / seen
    torch.testing.assert_close(s, torch.maximum(rate * local.mean(1, True) / rate.mean(1, True), local))


def test_a_prompt_scored_a_few_queries_at_a_time_is_scored_alike(monkeypatch):
    q, k, _ = sequence()
    whole = reference.row_lse(q[60:], k, SCALE), *ems.column_sums(q[60:], k, 8, SCALE)
    monkeypatch.setattr(reference, "_chunks", lambda q, _: [(0, 1), (1, 40), (40, 55), (55, len(q))])
    parts = reference.row_lse(q[60:], k, SCALE), *ems.column_sums(q[60:], k, 8, SCALE)
    for part, all_at_once in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, all_at_once)


def test_the_logits_in_memory_do_not_grow_with_the_prompt():
    for n in (1000, 100_000):
        q, k = torch.empty(n, 32, 1, device="meta"), torch.empty(n, 8, 1, device="meta")
        chunks = reference._chunks(q, k)
        assert chunks[0][0] == 0 and chunks[-1][1] == n
        assert all((b - a) * 32 * n <= 2**24 for a, b in chunks)


def test_what_is_not_finite_is_told():
    broken = torch.ones(1, 5)
    broken[0, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        ems.global_local_score(broken, torch.ones(1, 5), 5)


@pytest.mark.parametrize(
    "changed",
    [{"window": 0}, {"window": 24}, {"budget": 5}, {"rho": 0}, {"gamma": 0.0}, {"tail": 0}, {"pool": 4}],
)
def test_sizes_that_leave_nothing_are_told(changed):
    with pytest.raises(ValueError, match="EMS: write"):
        small(**changed)


def drift(method, seed, drifting):
    """Relative error of future attention after compressing 1,024 keys in 48 clusters to 128 entries."""
    g, n, d = rng(seed), 1024, 64
    centres = torch.randn(48, d, generator=g, dtype=torch.float64)
    values = torch.randn(48, d, generator=g, dtype=torch.float64)
    kind = torch.randint(0, 48, (n,), generator=g)
    k = (centres[kind] + 0.5 * torch.randn(n, d, generator=g, dtype=torch.float64))[:, None]
    v = (values[kind] + 0.5 * torch.randn(n, d, generator=g, dtype=torch.float64))[:, None]

    def queries(which, count):
        near = which[torch.randint(0, len(which), (count,), generator=g)]
        return (centres[near] + 0.5 * torch.randn(count, d, generator=g, dtype=torch.float64))[:, None]

    early, late = torch.arange(24), torch.arange(24, 48) if drifting else torch.arange(24)
    q = torch.cat([queries(early, n - 32), queries(late, 32)])
    future = queries(torch.cat([early, late]), 128)
    scale = d**-0.5
    total, local = reference.column_sums(q, k, reference.row_lse(q, k, scale), 32, scale)
    s = {"h2o": total, "snapkv": local}.get(method, ems.global_local_score(total, local, n))
    config = ems.Config(budget=128, window=32, tau=0.5 if method == "ems" else 1.1)
    everything = ems.compress(k, v, s, ems.Config(budget=n))
    exact = ems.attend(future, everything, scale)[0]
    return float((ems.attend(future, ems.compress(k, v, s, config), scale)[0] - exact).norm() / exact.norm())


@pytest.mark.parametrize("drifting", [True, False])
def test_merging_beats_evicting_by_the_same_scores(drifting):
    error = {
        method: sum(drift(method, seed, drifting) for seed in range(6)) / 6
        for method in ("ems", "evict", "h2o", "snapkv")
    }
    assert error["ems"] < error["evict"]
    assert error["ems"] == min(error.values())
    if drifting:
        assert error["evict"] < error["h2o"] < error["snapkv"]
    else:
        assert error["h2o"] < error["evict"]
