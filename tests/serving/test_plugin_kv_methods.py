"""What the KV methods let a decoding step read, on a pool of their own making: no server, no model."""

from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.kernels import ems, paged  # noqa: E402
from abduce.serving.sglang.plugin.kv_base import Cache, Row, Watcher  # noqa: E402
from abduce.serving.sglang.plugin.kv_config import METHODS, ActQKV, DeltaLLM, Ems  # noqa: E402
from abduce.serving.sglang.plugin.kv_methods import _Encoded, method_of  # noqa: E402
from abduce.serving.sglang.plugin.kv_side import Kept, Part, attend, attend_gathered  # noqa: E402

N_KV, GROUP, D, SCALE = 2, 2, 16, 0.25
SMALL: list[Any] = [
    Ems(budget=24, window=8, tail=4, tau=0.1),
    ActQKV(budget=16, page=4, first=4, last=8, k_min=1, refresh=2),
    DeltaLLM(theta=1.5, local=12, sink=2, block=4),
]
NAMES = list(METHODS)


class Pool:
    """Layers of a paged pool with rows that grow, their slots scattered."""

    def __init__(
        self, n_rows: int = 3, length: int = 120, n_layers: int = 2, *, smooth: bool = False
    ) -> None:
        g = torch.Generator().manual_seed(5)

        def draw(*shape: int) -> Any:
            return torch.randn(*shape, generator=g)

        n_slots = n_rows * length
        self.table = torch.randperm(n_slots, generator=g).view(n_rows, length).int()
        self.caches, self.queries = [], []
        for layer in range(n_layers):
            k = torch.zeros(n_slots, N_KV, D)
            for row in self.table.long():
                fresh = draw(length, N_KV, D)
                k[row] = fresh.cumsum(0) * 0.3 if smooth else fresh
            self.caches.append(Cache(layer, k, draw(n_slots, N_KV, D), self.table, SCALE))
            self.queries.append(draw(n_rows, length, N_KV * GROUP, D))

    def prompt(self, method: Any, row: Row, n: int, *, parts: int = 1) -> None:
        """Read a prompt of n tokens, in parts."""
        if isinstance(method, Watcher):
            bounds = [n * i // parts for i in range(parts + 1)]
            for first, end in pairwise(bounds):
                row.n = end
                for cache, q in zip(self.caches, self.queries, strict=True):
                    method.watch(cache, row, q[row.at, first:end])
        row.n = n

    def step(self, method: Any, rows: list[Row]) -> list[Any]:
        """One token more in each row: the output in each layer, of all rows together. Dense where a row
        leaves nothing out."""
        for row in rows:
            row.n += 1
            row.reduced = method.begin(row)
        reduced = [row for row in rows if row.reduced]
        outs = []
        for cache, all_q in zip(self.caches, self.queries, strict=True):
            q = torch.stack([all_q[row.at, row.n - 1] for row in rows])
            out = torch.stack([self.dense(cache, row, q[i]) for i, row in enumerate(rows)])
            if reduced:
                at = [i for i, row in enumerate(rows) if row.reduced]
                out[at] = attend(q[at], *method.parts(cache, reduced, q[at]), SCALE)
            if isinstance(method, Watcher):
                for i, row in enumerate(rows):
                    method.watch_step(cache, row, q[i : i + 1])
            outs.append(out)
        return outs

    @staticmethod
    def dense(cache: Cache, row: Row, q: Any) -> Any:
        slots = cache.slots(row, 0, row.n)[None, None]
        return paged.decode(q[None], cache.k, cache.v, slots, SCALE)[0][0]


def row(at: int) -> Row:
    return Row(at, generation=1)


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by_mass", [False, True])
def test_a_cpu_gathers_what_the_kernels_read_in_place(by_mass: bool) -> None:
    g = torch.Generator().manual_seed(0)
    q = torch.randn(3, N_KV * GROUP, D, generator=g)
    parts = []
    for width, heads in ((7, N_KV), (5, 1)):
        k, v = torch.randn(2, 40, N_KV, D, generator=g)
        slots = torch.randint(-10, 40, (3, heads, width), generator=g)
        slots[..., 0] = 3
        parts.append(Part(k, v, slots))
    pool, side = parts
    if by_mass:
        side = side._replace(mass=torch.randint(0, 4, (40, N_KV), generator=g).float())
    one = paged.decode_beside(q, *pool[:3], *side, SCALE)[0]
    close(attend_gathered(q, [side, pool], SCALE), one)
    close(attend(q, pool, side, SCALE), one)
    close(attend(q, pool, None, SCALE), paged.decode(q, *pool[:3], SCALE)[0])


def test_what_is_listed_is_made_again_only_when_something_changes() -> None:
    kept, a, b = Kept(), torch.zeros(2), torch.zeros(2)
    made = [kept(of, list) for of in ([a, 1], [a, 1], [b, 1], [b, 2], [b], [b])]
    assert [x is y for x, y in pairwise(made)] == [True, False, False, False, True]


@pytest.mark.parametrize("config", SMALL, ids=NAMES)
def test_within_the_budget_nothing_is_left_out(config: Any) -> None:
    method, pool, one = method_of(config), Pool(), row(1)
    pool.prompt(method, one, 5)
    for _ in range(6):
        pool.step(method, [one])
        assert not one.reduced


@pytest.mark.parametrize("config", SMALL, ids=NAMES)
def test_beyond_it_less_is_read(config: Any) -> None:
    method, pool, one = method_of(config), Pool(smooth=True), row(1)
    pool.prompt(method, one, 80)
    for _ in range(9):
        pool.step(method, [one])
        assert one.reduced
    told = method.table()
    assert 0 < told["tokens_read"] < 0.8 * told["tokens_held"]


@pytest.mark.parametrize("config", SMALL, ids=NAMES)
def test_the_pool_and_the_table_are_not_written(config: Any) -> None:
    method, pool, one = method_of(config), Pool(), row(0)
    tensors = [pool.table, *(x for cache in pool.caches for x in (cache.k, cache.v)), *pool.queries]
    before = [x.clone() for x in tensors]
    pool.prompt(method, one, 60)
    for _ in range(20):
        pool.step(method, [one])
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


@pytest.mark.parametrize("config", SMALL, ids=NAMES)
def test_rows_of_one_batch_do_not_touch_each_other(config: Any) -> None:
    pool = Pool()
    together, rows = method_of(config), [row(0), row(1), row(2)]
    lengths = (70, 9, 41)
    for each, n in zip(rows, lengths, strict=True):
        pool.prompt(together, each, n)
    outs = [pool.step(together, rows) for _ in range(12)]
    for i, n in enumerate(lengths):
        alone, one = method_of(config), row(i)
        pool.prompt(alone, one, n)
        for step in outs:
            for all_rows, own in zip(step, pool.step(alone, [one]), strict=True):
                close(all_rows[i], own[0])


@pytest.mark.parametrize("config", SMALL, ids=NAMES)
def test_a_row_that_ends_gives_all_back(config: Any) -> None:
    method, pool = method_of(config), Pool()
    for at in (0, 1):
        one = row(at)
        pool.prompt(method, one, 60)
        for _ in range(14):
            pool.step(method, [one])
        assert method.table()["side_slots"] > 0
        method.forget(one)
        assert method.table()["side_slots"] == 0


@pytest.mark.parametrize("config", SMALL[1:], ids=NAMES[1:])
def test_who_shares_a_prefix_reads_the_same_in_any_order_and_without_sharing(config: Any) -> None:
    """Rows 0 and 1 begin with the same slots; row 2 is row 1 in slots of its own, as without a cache."""
    pool, n_shared = Pool(length=90), 50
    pool.table[1, :n_shared] = pool.table[0, :n_shared]
    for cache, q in zip(pool.caches, pool.queries, strict=True):
        q[1, :n_shared], q[2] = q[0, :n_shared], q[1]
        for x in (cache.k, cache.v):
            x[pool.table[2].long()] = x[pool.table[1].long()]
    told: dict[int, list[list[Any]]] = {0: [], 1: [], 2: []}
    for order in ([0, 1], [1, 0], [2]):
        method, rows = method_of(config), {at: row(at) for at in order}
        for at in order:
            pool.prompt(method, rows[at], 70)
        steps = [(at, pool.step(method, [rows[at]])) for _ in range(9) for at in order]
        assert all(each.reduced for each in rows.values())
        for at in order:
            told[at].append([out for who, outs in steps if who == at for out in outs])
    for one, *others in (told[0], told[1] + told[2]):
        assert others
        assert all(torch.equal(a, b) for other in others for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------- EMS


@pytest.mark.parametrize("parts", [2, 7])
def test_a_prompt_read_in_parts_is_compressed_alike(parts: int) -> None:
    pool, outs = Pool(), []
    for n_parts in (1, parts):
        method, one = method_of(SMALL[0]), row(2)
        pool.prompt(method, one, 64, parts=n_parts)
        outs.append(pool.step(method, [one]))
        assert method.table()["partial"] == 0
    for a, b in zip(*outs, strict=True):
        close(a, b)


def test_a_prompt_whose_beginning_was_cached_is_counted() -> None:
    method, pool, one = method_of(SMALL[0]), Pool(), row(0)
    one.n = 64
    for cache, q in zip(pool.caches, pool.queries, strict=True):
        method.watch(cache, one, q[0, 60:64])
    pool.step(method, [one])
    assert method.table()["partial"] == 1


def test_entries_stay_as_many_and_account_for_their_tokens() -> None:
    method, pool, one = method_of(SMALL[0]), Pool(n_layers=1), row(0)
    pool.prompt(method, one, 40)
    masses = []
    for _ in range(30):
        pool.step(method, [one])
        slots = one.layers[0].slots
        assert len(slots) == SMALL[0].budget
        assert one.n - 1 - one.plan.covered <= SMALL[0].tail
        masses.append(float(method.sides[0].mass[slots].sum(0).max()))
        assert masses[-1] <= one.plan.covered
    assert max(masses) > SMALL[0].budget  # some were merged


def test_prompts_that_grow_beyond_the_budget_are_scored_by_what_was_generated() -> None:
    method, pool, one = method_of(SMALL[0]), Pool(), row(0)
    pool.prompt(method, one, 10)
    for _ in range(30):
        outs = pool.step(method, [one])
    assert one.reduced
    assert all(torch.isfinite(out).all() for out in outs)


def test_duplicates_are_merged_without_loss_by_mass() -> None:
    method = method_of(Ems(budget=24, window=8, tau=0.5, gamma=1.0, rho=99, mass_bias=True))
    pool, one = Pool(n_layers=1), row(0)
    cache = pool.caches[0]
    for x in (cache.k, cache.v):
        slots = pool.table[0, :96].long()
        x[slots] = x[slots[:12]].repeat(8, 1, 1)
    pool.prompt(method, one, 96)
    (out,) = pool.step(method, [one])
    assert one.reduced
    close(out[0], pool.dense(cache, one, pool.queries[0][0, one.n - 1]))


@pytest.mark.parametrize("mass_bias", [False, True])
def test_an_entry_counts_as_often_as_it_stands_for_tokens_if_told_so(mass_bias: bool) -> None:
    config = Ems(budget=24, window=8, tail=4, tau=0.1, mass_bias=mass_bias)
    method, pool, one = method_of(config), Pool(n_layers=1, smooth=True), row(0)
    pool.prompt(method, one, 64)
    (out,) = pool.step(method, [one])
    cache, slots = pool.caches[0], one.layers[0].slots
    side, last = method.sides[0], cache.slots(one, 64, 65)
    assert side.mass[slots].max() > 1
    k, v = torch.cat([side.k[slots], cache.k[last]]), torch.cat([side.v[slots], cache.v[last]])
    mass = torch.cat([side.mass[slots], torch.ones(1, N_KV)]).T
    entries = ems.Entries(k, v, mass, mass, mass, mass)
    wanted, _ = ems.attend(pool.queries[0][0, 64:65], entries, SCALE, mass_bias=mass_bias)
    close(out, wanted)
    other, _ = ems.attend(pool.queries[0][0, 64:65], entries, SCALE, mass_bias=not mass_bias)
    assert (out - other).abs().max() > 1e-3


@pytest.mark.parametrize("release", [False, True])
def test_what_no_later_step_reads_may_be_told(release: bool) -> None:
    """From then on the pool may hold anything there."""
    config = Ems(budget=24, window=8, tail=4, tau=0.1, release=release)
    pool, outs = Pool(), []
    for spoil in (False, True):
        method, one = method_of(config), row(0)
        pool.prompt(method, one, 40)
        assert method.n_done(one) == 0
        for _ in range(11):
            outs.append(pool.step(method, [one])[-1])
            assert method.n_done(one) == (one.plan.covered if release else 0)
            if spoil:
                for cache in pool.caches:
                    cache.k[cache.slots(one, 0, method.n_done(one))] = torch.nan
                    cache.v[cache.slots(one, 0, method.n_done(one))] = torch.nan
    assert all(torch.equal(a, b) for a, b in zip(outs[:11], outs[11:], strict=True))


def test_entries_may_be_made_of_keys_without_their_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the prompt, and again with what was generated, each entry at its own position."""
    angle = torch.arange(200)[:, None] * 0.3 ** torch.arange(D // 2)
    rotary, made, compress = ems.Rotary(angle.cos(), angle.sin()), [], ems.compress

    def watched(*args: Any, **words: Any) -> Any:
        made.append((words["rotary"], words["position"], compress(*args, **words)))
        return made[-1][2]

    monkeypatch.setattr(ems, "compress", watched)
    pool, one = Pool(n_layers=1, smooth=True), row(0)
    config = Ems(budget=24, window=8, tail=4, tau=0.1, unrotated=True)
    method = method_of(config, lambda: rotary)
    pool.prompt(method, one, 80)
    for _ in range(6):
        pool.step(method, [one])
    (first, _, entries), (second, again, _) = made
    assert first is second is rotary
    slots = pool.caches[0].slots(one, 0, 80)
    k, v, q = pool.caches[0].k[slots], pool.caches[0].v[slots], pool.queries[0][0, :80]
    score = ems.score(q, k, ems.Config(budget=24, window=8), SCALE)
    wanted, rotated = (
        compress(k, v, score, ems.Config(budget=24, window=8, tau=0.1), rotary=r) for r in (rotary, None)
    )
    close(entries.k, wanted.k)
    assert (entries.k - rotated.k).abs().max() > 1e-3
    assert torch.equal(again, torch.cat([entries.position, torch.arange(80, 84).expand(2, -1)], 1))


def test_the_sizes_and_defaults_are_the_kernels_own() -> None:
    assert {**vars(ems.Config()), "unrotated": False, "release": False} == vars(Ems())


def test_entries_of_single_tokens_are_dense_attention() -> None:
    """A keep ratio of 1 by the method's own reading: a budget for all, and a step that uses it."""
    method, pool, one = method_of(Ems(budget=90, window=8, tail=4, mass_bias=True)), Pool(), row(1)
    pool.prompt(method, one, 70)
    method.begin(one)
    one.plan.before, one.plan.covered, one.n = 0, 70, 71
    for cache, q in zip(pool.caches, pool.queries, strict=True):
        out = attend(q[1, 70:71], *method.parts(cache, [one], q[1, 70:71]), SCALE)
        close(out[0], pool.dense(cache, one, q[1, 70]))


# ---------------------------------------------------------------- ActQKV


def test_all_pages_are_dense_attention() -> None:
    pool, one = Pool(), row(1)
    method = method_of(ActQKV(budget=120, page=4, first=4, last=4))
    one.n, one.plan = 70, 1
    for cache, q in zip(pool.caches, pool.queries, strict=True):
        out = attend(q[1, 69:70], *method.parts(cache, [one], q[1, 69:70]), SCALE)
        close(out[0], pool.dense(cache, one, q[1, 69]))


def test_the_budget_is_divided_over_the_layers_and_kept() -> None:
    method, pool, one = method_of(SMALL[1]), Pool(n_layers=3), row(0)
    pool.caches[0].k.mul_(30)  # one layer that looks at few pages
    pool.prompt(method, one, 90)
    pool.step(method, [one])
    assert [one.layers[i].k for i in range(3)] == [4, 4, 4]
    pool.step(method, [one])
    shares = [one.layers[i].k for i in range(3)]
    assert sum(shares) == 12
    assert shares[0] < 4


@pytest.mark.parametrize(("n_before", "n", "own"), [(0, 40, False), (0, 41, True), (38, 40, True)])
def test_a_prompt_is_read_by_retrieval_where_that_leaves_something_out(
    n_before: int, n: int, own: bool
) -> None:
    """Windows of 10, the first page, 4 to choose, and the pages of the 8 tokens before."""
    sizes = {"budget": 16, "page": 4, "first": 4, "last": 8, "k_min": 1}
    method, exact = method_of(ActQKV(**sizes, prefill=10)), method_of(ActQKV(**sizes))
    assert method.reads_prompt(n_before, n) is own
    assert not exact.reads_prompt(n_before, n)
    pool = Pool(n_layers=1)
    cache, one, q = pool.caches[0], row(0), pool.queries[0][0, n_before:n]
    one.n = n
    dense = [pool.dense(cache, Row(0, 1, n_before + i + 1), q[i]) for i in range(len(q))]
    off = (method.prompt(cache, one, q) - torch.stack(dense)).abs().max()
    assert bool(off > 1e-3) is own


# ---------------------------------------------------------------- DeltaLLM


def test_runs_of_single_tokens_are_dense_attention() -> None:
    method, pool, one = method_of(DeltaLLM(theta=0, local=12, sink=2, block=4)), Pool(), row(1)
    pool.prompt(method, one, 50)
    for _ in range(11):
        outs = pool.step(method, [one])
        assert one.reduced
        for cache, q, out in zip(pool.caches, pool.queries, outs, strict=True):
            close(out[0], pool.dense(cache, one, q[1, one.n - 1]))
    assert method.table()["runs"] == method.table()["tokens_encoded"]


def test_what_is_in_runs_depends_on_the_length_alone() -> None:
    pool, outs = Pool(smooth=True), []
    for n_steps in (1, 16):
        method, one = method_of(SMALL[2]), row(1)
        pool.prompt(method, one, 80)
        # Θ is that of the first step: give both the same.
        limit = torch.full((N_KV, D), 1.0)
        one.n = 80 - n_steps
        method.begin(one)
        for layer in (0, 1):
            one.layers[layer] = _Encoded(limit, SMALL[2].sink)
        for _ in range(n_steps):
            last = pool.step(method, [one])
        assert 0 < method.table()["runs"] < 0.8 * method.table()["tokens_encoded"]
        outs.append(last)
    for a, b in zip(*outs, strict=True):
        close(a, b)
