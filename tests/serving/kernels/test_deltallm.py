"""DeltaLLM's laws in float64: how far keys and outputs are off, and that runs approximate no further."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.kernels import deltallm, paged  # noqa: E402
from abduce.serving.kernels.deltallm import reference  # noqa: E402


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def rotated(x, theta=10000.0):
    """Rotary positions: x [n, heads, d]."""
    n, _, d = x.shape
    angle = torch.arange(n)[:, None] * theta ** (-torch.arange(0, d, 2).double() / d)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def slow(n=512, n_kv=1, d=64, rho=0.98, seed=0, rotate=True):
    """AR(1) keys of unit variance."""
    k = torch.randn(n, n_kv, d, generator=rng(seed), dtype=torch.float64)
    for t in range(1, n):
        k[t] = rho * k[t - 1] + (1 - rho**2) ** 0.5 * k[t]
    return rotated(k) if rotate else k


def test_no_key_is_further_off_than_its_threshold():
    k = slow(200, 2)
    limit = deltallm.thresholds(k)
    approximate, changed, _ = deltallm.encode(k, limit, 4)
    assert ((k - approximate).abs() <= limit).all()
    assert torch.equal(approximate[:4], k[:4])
    assert changed[:4].all()
    assert 0.3 < (~changed).double().mean() < 0.95


def test_scores_by_differences_are_the_scores_of_the_approximate_keys():
    k = slow(100)
    approximate, changed, _ = deltallm.encode(k, deltallm.thresholds(k), 4)
    q = torch.randn(64, generator=rng(1), dtype=torch.float64)
    step = torch.diff(approximate[:, 0], dim=0, prepend=torch.zeros(1, 64).double())
    assert (step[~changed[:, 0]] == 0).all()
    torch.testing.assert_close((step @ q).cumsum(0), approximate[:, 0] @ q, rtol=1e-12, atol=1e-12)


def test_parts_give_what_the_whole_gives():
    k = slow(90, 2)
    limit = deltallm.thresholds(k)
    whole = deltallm.encode(k, limit, 4)
    first = deltallm.encode(k[:37], limit, 4)
    rest = deltallm.encode(k[37:], limit, 0, first[2])
    assert torch.equal(torch.cat([first[0], rest[0]]), whole[0])
    assert torch.equal(torch.cat([first[1], rest[1]]), whole[1])
    assert torch.equal(rest[2], whole[2])


def test_the_extremes_of_the_threshold():
    k = slow(60)
    assert torch.equal(deltallm.encode(k, torch.zeros(1, 64), 0)[0], k)
    constant = deltallm.encode(k, torch.full((1, 64), torch.inf), 4)[0]
    assert (constant[4:] == k[3]).all()


def attention(k, approximate, v, q, local, n_sink):
    return deltallm.hybrid_attention(q, k, approximate, v, local, n_sink, 64**-0.5)


@pytest.mark.parametrize("kind", ["slow", "random", "steps", "large"])
@pytest.mark.parametrize("theta", [0.02, 0.3])
def test_the_output_is_within_its_bound(kind, theta):
    for seed in range(5):
        g = rng(seed + 50)
        q, v = (torch.randn(60, 1, 64, generator=g, dtype=torch.float64) for _ in range(2))
        k = {
            "slow": slow(60, seed=seed),
            "random": torch.randn(60, 1, 64, generator=g, dtype=torch.float64),
            "steps": slow(60, seed=seed).round() + 0.05 * slow(60, seed=seed + 1),
            "large": 5 * slow(60, seed=seed),
        }[kind]
        limit = deltallm.thresholds(k, theta)
        approximate, _, _ = deltallm.encode(k, limit, 4)
        off = (attention(k, approximate, v, q, 16, 4) - attention(k, k, v, q, 16, 4)).abs().amax((1, 2))
        epsilon = 64**-0.5 * (q[:, 0].abs() * limit[0]).sum(-1)
        largest = v.abs().amax((1, 2)).cummax(0).values
        assert (off <= (torch.exp(2 * epsilon) - 1) * largest).all()
        assert off.max() > 0


def test_a_window_over_everything_is_exact():
    k = slow(70)
    q, v = slow(70, seed=1), slow(70, seed=2)
    approximate, _, _ = deltallm.encode(k, deltallm.thresholds(k), 0)
    assert torch.equal(attention(k, approximate, v, q, 70, 0), attention(k, k, v, q, 1, 0))


def test_runs_are_attention_over_the_approximate_keys():
    k, v = slow(200, 2, rotate=False), slow(200, 2, seed=3)
    ids = deltallm.run_ids(k, deltallm.thresholds(k, 2.0))
    runs = deltallm.gather_runs(k, v, ids)
    assert runs.mass.sum(1).tolist() == [200.0, 200.0]
    assert len(runs.k) < 150
    q = torch.randn(3, 4, 64, generator=rng(9), dtype=torch.float64)
    out, lse = deltallm.attend_runs(q, runs, 0.125)
    for h in range(4):
        approximate = runs.k[ids[h // 2].long(), h // 2]
        s = q[:, h] @ approximate.T * 0.125
        torch.testing.assert_close(out[:, h], torch.softmax(s, -1) @ v[:, h // 2], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(lse[:, h], torch.logsumexp(s, -1), rtol=1e-12, atol=1e-12)


def packed_keys(n=150, n_kv=2, theta=0.5):
    k = slow(n, n_kv)
    approximate, changed, _ = deltallm.encode(k, deltallm.thresholds(k, theta), 4)
    return approximate, changed, deltallm.pack(approximate, changed)


@pytest.mark.parametrize("n", [1, 63, 64, 150])
def test_packed_keys_come_back_to_the_bit(n):
    approximate, changed, packed = packed_keys(n)
    back = deltallm.unpack(packed)
    assert torch.equal(back[:n], approximate)
    assert (back[n:] == approximate[-1]).all()
    begins = changed.clone()
    begins[:: deltallm.TILE] = True  # a tile begins with whole keys
    assert len(packed.values) == begins.sum()


def test_tiles_that_were_packed_apart_are_those_of_the_whole():
    approximate, changed, whole = packed_keys(190)
    apart = [deltallm.pack(approximate[i : i + 64], changed[i : i + 64]) for i in range(0, 190, 64)]
    assert torch.equal(torch.cat([each.words for each in apart]), whole.words)
    assert torch.equal(torch.cat([each.values for each in apart]), whole.values)


def test_packing_saves_the_bytes_of_what_did_not_change():
    k = torch.randn(512, 2, 128, generator=rng(3)).bfloat16()
    changed = torch.rand(512, 2, 128, generator=rng(4)) > 0.6
    dense, n_tiles = k.numel() * 2, 512 // deltallm.TILE
    begins = changed.clone()
    begins[:: deltallm.TILE] = True
    of_bits = k.numel() // 8 + n_tiles * 2 * 8  # and where each tile and head begins
    assert deltallm.pack(k, changed).n_bytes == of_bits + 2 * int(begins.sum())
    assert deltallm.pack(k, changed).n_bytes < 0.5 * dense


def test_a_step_over_packed_keys_and_a_window_is_the_last_row_of_the_hybrid():
    n, local, n_sink = 150, 20, 4
    approximate, _, packed = packed_keys(n)
    k, g = slow(n, 2), rng(11)
    q, v = (torch.randn(n, heads, 64, generator=g, dtype=torch.float64) for heads in (6, 2))
    exact = deltallm.hybrid_attention(q, k, approximate, v, local, n_sink, 0.125)[-1:]
    place = torch.arange(packed.words.shape[0] * deltallm.TILE)
    near = (place < n_sink) | (place >= n - local)
    far = torch.where(near, -1, place)[None]
    tiles = torch.arange(len(packed.words))[None]
    parts = deltallm.attend_packed(q[-1:], packed, tiles, v, far, 0.125)
    listed = place[:n][near[:n]][None, None]
    out, _ = paged.merge(*parts, *paged.decode(q[-1:], k, v, listed, 0.125))
    torch.testing.assert_close(out, exact, rtol=1e-12, atol=1e-12)


def test_nothing_that_is_listed_gives_nothing():
    _, _, packed = packed_keys(64)
    v, q = torch.randn(64, 2, 8).double(), torch.randn(1, 2, 64).double()
    none = torch.full((1, 64), -1)
    for tiles, slots in ((torch.zeros(1, 1).int(), none), (none[:, :1], torch.arange(64)[None])):
        out, lse = deltallm.attend_packed(q, packed, tiles, v, slots, 0.125)
        assert (out == 0).all()
        assert torch.isneginf(lse).all()


@pytest.mark.parametrize("part", [1, 7, 30])
def test_runs_that_grow_are_the_runs_of_the_whole(part):
    k = slow(97, 2, d=8, rho=0.9)
    v = torch.randn(97, 2, 8, generator=rng(4), dtype=torch.float64)
    limit = torch.full((2, 8), 1.5).double()
    whole = deltallm.gather_runs(k, v, deltallm.run_ids(k, limit))
    grown = deltallm.gather_runs(k[:7], v[:7], deltallm.run_ids(k[:7], limit))
    for first in range(7, 97, part):
        before = [x.clone() for x in grown]
        more = deltallm.extend_runs(grown, k[first : first + part], v[first : first + part], limit)
        assert all(torch.equal(x, y) for x, y in zip(grown, before, strict=True))
        grown = more
    assert 20 < whole.mass.shape[1] < 90
    assert torch.equal(grown.mass, whole.mass)
    there = (whole.mass > 0).T[..., None]
    assert torch.equal(grown.k * there, whole.k * there)
    torch.testing.assert_close(grown.v * there, whole.v * there)


def test_each_key_of_a_run_is_near_its_first():
    k = slow(150, 2)
    limit = deltallm.thresholds(k, 2.5)
    ids = deltallm.run_ids(k, limit)
    runs = deltallm.gather_runs(k, k, ids)
    for h in range(2):
        assert ((k[:, h] - runs.k[ids[h].long(), h]).abs() <= limit[h]).all()
        assert set(ids[h].diff().tolist()) <= {0, 1}


def previous_token(k, limit):
    """The same with differences to the token before: the control, whose errors add up."""
    approximate = k.clone()
    for t in range(1, len(k)):
        step = k[t] - k[t - 1]
        approximate[t] = approximate[t - 1] + torch.where(step.abs() > limit, step, 0.0)
    return approximate


def off(rho, theta, local, n_sink, encoder):
    errors, shares = [], []
    for seed in range(3):
        k = slow(rho=rho, seed=seed)
        q, v = slow(rho=rho, seed=seed + 9), slow(rho=rho, seed=seed + 30, rotate=False)
        limit = torch.full((1, 64), theta).double()
        approximate, changed, _ = deltallm.encode(k, limit, n_sink)
        if encoder == "previous":
            approximate = previous_token(k, limit)
        exact = attention(k, k, v, q, 1, 0)
        errors.append((attention(k, approximate, v, q, local, n_sink) - exact).norm() / exact.norm())
        shares.append(deltallm.sparsity(changed, max(local, 1), n_sink).work)
    return float(sum(errors)) / 3, sum(shares) / 3


@pytest.mark.parametrize(
    ("rho", "settings", "known_previous"),
    [
        (0.9, [(0, 0, 0.053, 0.65), (64, 0, 0.037, 0.49), (128, 4, 0.028, 0.36)], 0.63),
        (0.98, [(0, 0, 0.037, 0.83), (64, 0, 0.027, 0.64), (128, 4, 0.020, 0.46)], 0.44),
    ],
)
def test_errors_and_sparsity_of_slowly_changing_keys(rho, settings, known_previous):
    measured = [off(rho, 0.5, local, n_sink, "accumulated") for local, n_sink, *_ in settings]
    for (error, share), (_, _, known_error, known_share) in zip(measured, settings, strict=True):
        assert share == pytest.approx(known_share, abs=0.03)
        assert error == pytest.approx(known_error, rel=0.15)
    assert measured[0][0] > measured[1][0] > measured[2][0]
    assert off(rho, 1.0, 64, 0, "accumulated")[0] > measured[1][0]
    previous = off(rho, 0.5, 0, 0, "previous")[0]
    assert previous >= 3 * measured[0][0]
    assert previous == pytest.approx(known_previous, rel=0.15)


def test_sparsity_counts_window_and_sinks_as_dense():
    changed = torch.zeros(10, 1, 4, dtype=torch.bool)
    assert deltallm.sparsity(changed, 10, 0).work == 0
    assert deltallm.sparsity(changed, 1, 0).work == pytest.approx(45 / 55)
    assert deltallm.sparsity(changed, 1, 10).work == 0
    assert deltallm.sparsity(changed, 1, 0).tokens == 1
    assert reference.sparsity(~changed, 1, 0).elements == 0
