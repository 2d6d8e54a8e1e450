"""Hogwild's identity in float64: turned queries see what re-rotated keys would show, and nothing else."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.kernels import hogwild, paged  # noqa: E402

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
        k, v = hogwild.rotate(k, torch.arange(length)[:, None, None] * FREQUENCY), v.clamp(-0.5, 0.5)
        blocks.append((k.to(dtype), v.to(dtype)))
        slots[f, :length] = torch.arange(at, at + length)
        at += length
    q = torch.randn(n_workers, n_new, n_kv * group, D, generator=g, dtype=torch.float64).to(dtype)
    pools = [
        torch.cat([block[i] for block in blocks] + [torch.zeros(1, n_kv, D, dtype=dtype)]) for i in (0, 1)
    ]
    return q, blocks, pools, slots, views, hogwild.locations(views, lengths, n_new)


CLOSE = {torch.float64: 1e-12, torch.float32: 5e-5, torch.bfloat16: 3e-3}


@pytest.mark.parametrize("dtype", CLOSE)
def test_turned_queries_are_rerotated_keys(dtype):
    """Any number of workers, blocks and new tokens; empty blocks, and blocks that a worker does not see."""
    seen = set()
    for seed in range(60):
        n_workers, n_blocks, n_new = (
            int(torch.randint(1, most + 1, (), generator=rng(1000 * most + seed))) for most in (4, 7, 8)
        )
        q, blocks, pools, slots, views, loc = setting(n_workers, n_blocks, n_new, seed, dtype)
        out = hogwild.attend(q, *pools, slots, loc, FREQUENCY, SCALE)
        by_keys = hogwild.attend_by_keys(q, blocks, views, FREQUENCY, SCALE)
        assert (out.double() - by_keys.double()).abs().max() <= CLOSE[dtype]
        seen |= {("workers", n_workers), ("blocks", n_blocks), ("new", n_new)}
        seen |= {"empty"} if any(not len(k) for k, _ in blocks) else set()
        seen |= {"missing"} if any(len(view) < n_blocks for view in views) else set()
    assert len(seen) == 4 + 7 + 8 + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_turned_queries_are_as_near_to_the_truth_as_rerotated_keys(dtype):
    """Beside float64 on the same numbers, at positions of thousands, where angles are rounded."""
    errors = []
    for seed in range(3):
        q, blocks, pools, slots, views, loc, frequency = far(seed, dtype)
        exact = [tuple(x.double() for x in block) for block in blocks]
        truth = hogwild.attend_by_keys(q.double(), exact, views, frequency, 128**-0.5)
        turned = hogwild.attend(q, *pools, slots, loc, frequency, 128**-0.5)
        by_keys = hogwild.attend_by_keys(q, blocks, views, frequency, 128**-0.5)
        errors.append([(x.double() - truth).abs().max() for x in (turned, by_keys)])
    ours, theirs = (max(column) for column in zip(*errors, strict=True))
    assert 0 < ours <= 1.2 * theirs


@pytest.mark.usefixtures("interpreted")
def test_so_is_the_kernel_in_half_precision():
    """Its errors have no share that all keys of a block have alike. In float16, since the interpreter cuts
    where it should round to bfloat16."""
    from abduce.serving.kernels.hogwild import kernel

    ours = theirs = 0.0
    for seed in range(3):
        q, blocks, *read, views, loc, frequency = far(seed, torch.float16, [130, 7, 30, 5, 57], 64)
        exact = [tuple(x.double() for x in block) for block in blocks]
        truth = hogwild.attend_by_keys(q.double(), exact, views, frequency, 0.125)
        by_keys = hogwild.attend_by_keys(q, blocks, views, frequency, 0.125)
        turned = kernel.attend(q, *read[0], read[1], loc, frequency, 0.125)
        ours += float((turned.double() - truth).square().mean())
        theirs += float((by_keys.double() - truth).square().mean())
    assert 0 < ours**0.5 <= 1.2 * theirs**0.5


def far(seed, dtype, lengths=(4000, 7, 300, 5, 257), d=128):
    """Two workers in front of blocks of so many tokens, with the angles of a large base."""
    g, views = rng(seed), [[0, 1, 2, 3, 4], [0, 1, 4, 3, 2]]
    frequency, blocks, slots, at = 1e6 ** (-torch.arange(d // 2).double() * 2 / d), [], [], 0
    for n in lengths:
        k, v = (torch.randn(n, 2, d, generator=g) for _ in range(2))
        k = hogwild.rotate(k.double(), torch.arange(n)[:, None, None] * frequency)
        blocks.append((k.to(dtype), v.to(dtype)))
        slots.append(torch.arange(at, at + n))
        at += n
    slots = torch.nn.utils.rnn.pad_sequence(slots, batch_first=True, padding_value=-1)
    q = (3 * torch.randn(2, 1, 4, d, generator=g)).to(dtype)
    pools = [torch.cat([block[i] for block in blocks]) for i in (0, 1)]
    return q, blocks, pools, slots, views, hogwild.locations(views, lengths, 1), frequency


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
            for i in (0, 1):  # its key, its value
                changed = [pool.clone() for pool in pools]
                changed[i][slots[f, j]] += 1
                after = hogwild.attend(q, *changed, slots, loc, FREQUENCY, SCALE)
                for w in range(2):
                    for s in range(3):
                        assert torch.equal(before[w, s], after[w, s]) == bool(j > loc[f, w, s])
    poisoned = [pools[0].clone(), pools[1].clone()]
    for pool in poisoned:
        pool[-1] = float("nan")  # a slot that no block lists
    assert torch.equal(before, hogwild.attend(q, *poisoned, slots, loc, FREQUENCY, SCALE))


@pytest.mark.usefixtures("interpreted")
def test_the_kernel_reads_no_slot_that_is_not_listed_and_no_key_behind_a_query():
    from abduce.serving.kernels.hogwild import kernel

    q, _, pools, slots, _, loc = setting(2, 4, 3, 5, torch.float32)
    before = kernel.attend(q, *pools, slots, loc, FREQUENCY, SCALE)
    spoilt = [pool.clone() for pool in pools]
    for pool in spoilt:
        pool[-1] = float("nan")
        for f in range(4):
            for j, slot in enumerate(slots[f][slots[f] >= 0].tolist()):
                if j > loc[f].max():
                    pool[slot] = float("nan")
    assert torch.equal(before, kernel.attend(q, *spoilt, slots, loc, FREQUENCY, SCALE))


@pytest.mark.parametrize("seed", range(12))
def test_each_block_by_itself_united_is_one_softmax(seed):
    """In float32; of a block that a worker sees nothing of the log-sum-exp is minus infinity."""
    q, blocks, pools, slots, views, loc = setting(3, 5, 1, seed, torch.float32)
    whole = hogwild.attend(q, *pools, slots, loc, FREQUENCY, SCALE)
    o, lse = torch.zeros_like(q[:, 0]), torch.full(q[:, 0].shape[:2], -torch.inf)
    for f in range(5):
        turned = hogwild.rotate(q[:, 0], loc[f, :, 0].float()[:, None, None] * FREQUENCY)
        seen = torch.where(torch.arange(slots.shape[1]) <= loc[f], slots[f], -1)
        o, lse = paged.merge(o, lse, *paged.decode(turned, *pools, seen[:, None], SCALE))
    assert any(len(view) < 5 for view in views) or not all(len(k) for k, _ in blocks)
    assert (o - whole[:, 0]).abs().max() <= 1e-6


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


@pytest.mark.usefixtures("interpreted")
def test_far_positions_keep_their_angle_in_the_kernel():
    from abduce.serving.kernels.base import disagreement
    from abduce.serving.kernels.hogwild.suite import KERNELS, blocks

    case = blocks([[0, 1], [1, 0]], [9, 5], 1, 1, 2, 16, torch.float32, torch.device("cpu"))
    far = {**case, "loc": torch.where(case["loc"] >= 0, case["loc"] + 1_000_000, -1)}
    assert disagreement(KERNELS[0], far) <= 1
