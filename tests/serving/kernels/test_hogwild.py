"""Hogwild's identity in float64: turned queries see what re-rotated keys would show, and nothing else."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.kernels import hogwild  # noqa: E402

D = 16
SCALE = D**-0.5
FREQUENCY = (1e4 ** (-torch.arange(D // 2) * 2 / D)).double()


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def random_views(n_workers, n_blocks, seed):
    """Each worker's own block last, the others before it in any order, some of them missing."""
    g = rng(seed)
    views = []
    for w in range(n_workers):
        own = w % n_blocks
        others = [f for f in torch.randperm(n_blocks, generator=g).tolist() if f != own]
        views.append([*others[: int(torch.randint(0, len(others) + 1, (), generator=g))], own])
    return views


def setting(n_workers, n_blocks, n_new, seed, dtype=torch.float64, n_kv=2, group=2):
    g = rng(seed)
    views = random_views(n_workers, n_blocks, seed)
    lengths = torch.randint(0, 40, (n_blocks,), generator=g).tolist()
    for view in views:
        lengths[view[-1]] = max(lengths[view[-1]], n_new)
    blocks, at, slots = [], 0, torch.full((n_blocks, max(*lengths, 1)), -1)
    for f, length in enumerate(lengths):
        k, v = (torch.randn(length, n_kv, D, generator=g, dtype=torch.float64) for _ in range(2))
        k = hogwild.rotate(k, torch.arange(length)[:, None, None] * FREQUENCY)
        blocks.append((k.to(dtype), v.to(dtype)))
        slots[f, :length] = torch.arange(at, at + length)
        at += length
    q = torch.randn(n_workers, n_new, n_kv * group, D, generator=g, dtype=torch.float64).to(dtype)
    pools = [
        torch.cat([block[i] for block in blocks] + [torch.zeros(1, n_kv, D, dtype=dtype)]) for i in (0, 1)
    ]
    return q, blocks, pools, slots, views, hogwild.locations(views, lengths, n_new)


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 5e-5), (torch.bfloat16, 3e-3)]
)
@pytest.mark.parametrize(("n_workers", "n_blocks", "n_new"), [(1, 1, 1), (2, 5, 1), (3, 4, 8), (4, 7, 3)])
def test_turned_queries_are_rerotated_keys(n_workers, n_blocks, n_new, dtype, close):
    for seed in range(4):
        q, blocks, pools, slots, views, loc = setting(n_workers, n_blocks, n_new, seed, dtype)
        out = hogwild.attend(q, *pools, slots, loc, FREQUENCY, SCALE)
        by_keys = hogwild.attend_by_keys(q, blocks, views, FREQUENCY, SCALE)
        size = float(by_keys.abs().max()) if dtype != torch.float64 else 1
        assert (out.double() - by_keys.double()).abs().max() <= close * max(2 * size, 1)


def test_one_worker_with_one_block_is_causal_attention():
    q, blocks, pools, slots, _, loc = setting(1, 1, 6, 3)
    n = len(blocks[0][0])
    turned = hogwild.rotate(q[0], torch.arange(n - 6, n)[:, None, None] * FREQUENCY)
    k, v = (x.repeat_interleave(2, 1).transpose(0, 1) for x in blocks[0])
    mask = torch.arange(n) <= torch.arange(n - 6, n)[:, None]
    plain = torch.nn.functional.scaled_dot_product_attention(turned.transpose(0, 1), k, v, mask, scale=SCALE)
    torch.testing.assert_close(
        hogwild.attend(q, *pools, slots, loc, FREQUENCY, SCALE)[0], plain.transpose(0, 1)
    )


def test_workers_that_see_nothing_of_each_other_are_alone():
    g = rng(2)
    lengths, views = [9, 14], [[0], [1]]
    pool_k, pool_v = (torch.randn(23, 1, D, generator=g, dtype=torch.float64) for _ in range(2))
    slots = torch.full((2, 14), -1)
    slots[0, :9], slots[1] = torch.arange(9), torch.arange(9, 23)
    q = torch.randn(2, 1, 2, D, generator=g, dtype=torch.float64)
    both = hogwild.attend(q, pool_k, pool_v, slots, hogwild.locations(views, lengths, 1), FREQUENCY, SCALE)
    for w in range(2):
        alone = hogwild.locations([[0]], [lengths[w]], 1)
        one = hogwild.attend(q[w : w + 1], pool_k, pool_v, slots[w : w + 1], alone, FREQUENCY, SCALE)
        torch.testing.assert_close(both[w], one[0], rtol=1e-12, atol=1e-12)


def test_what_is_masked_changes_nothing_and_what_is_seen_does():
    q, _, pools, slots, _, loc = setting(2, 4, 3, 5)
    before = hogwild.attend(q, *pools, slots, loc, FREQUENCY, SCALE)
    for f in range(4):
        for j in range(int((slots[f] >= 0).sum())):
            changed = [pools[0].clone(), pools[1]]
            changed[0][slots[f, j]] += 1
            after = hogwild.attend(q, *changed, slots, loc, FREQUENCY, SCALE)
            for w in range(2):
                for s in range(3):
                    assert torch.equal(before[w, s], after[w, s]) == bool(j > loc[f, w, s])
    poisoned = [pools[0].clone(), pools[1].clone()]
    for pool in poisoned:
        pool[-1] = float("nan")  # a slot that no block lists
    assert torch.equal(before, hogwild.attend(q, *poisoned, slots, loc, FREQUENCY, SCALE))


def test_a_block_that_moves_into_another_shows_the_same():
    q, blocks, pools, slots, _, _ = setting(1, 2, 1, 4)
    common, own = blocks[0], blocks[1]
    apart = hogwild.locations([[0, 1]], [len(common[0]), len(own[0])], 1)
    before = hogwild.attend(q, *pools, slots, apart, FREQUENCY, SCALE)
    merged = hogwild.moved(own[0], len(common[0]), FREQUENCY)
    torch.testing.assert_close(merged.norm(dim=-1), own[0].norm(dim=-1))
    k, v = torch.cat([common[0], merged]), torch.cat([common[1], own[1]])
    together = hogwild.locations([[0]], [len(k)], 1)
    after = hogwild.attend(q, k, v, torch.arange(len(k))[None], together, FREQUENCY, SCALE)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
