"""Engram's addresses to the bit, and its gate and convolution by their laws."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

from abduce.serving.kernels import engram  # noqa: E402
from abduce.serving.kernels.base import TOLERANCE, disagreement  # noqa: E402
from abduce.serving.kernels.engram import hashing  # noqa: E402
from abduce.serving.kernels.engram.generator import integers  # noqa: E402


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def layout(max_order=3, n_heads=2, base=101, size=5000):
    return engram.layouts([1], size, max_order=max_order, n_heads=n_heads, base=base)[0]


def rows_by_integers(tokens, at, layout, pad):
    """The addresses of one position, by Python's own integers."""
    rows = []
    for order in range(2, layout.max_order + 1):
        mix = 0
        for s in range(order):
            token = tokens[at - s] if at >= s else pad
            mix ^= token * layout.multipliers[s]
        assert 0 <= mix < 2**63
        for head in range(layout.n_heads):
            column = (order - 2) * layout.n_heads + head
            rows.append(mix % layout.primes[column] + layout.offsets[column])
    return rows


def test_hashes_are_those_of_unbounded_integers():
    for seed in range(5):
        table = layout(max_order=4, n_heads=3, size=99_092)
        tokens = torch.randint(0, 99_092, (40,), generator=rng(seed))
        rows = engram.hash_rows(engram.predecessors(tokens, [40], 4, pad=2), table)
        for t in range(40):
            assert rows[t].tolist() == rows_by_integers(tokens.tolist(), t, table, pad=2)
        assert int(rows.max()) < table.n_rows


def test_the_tables_have_the_sizes_of_a_known_model():
    tables = engram.layouts([1, 14], 99_092, max_order=4, n_heads=8, base=16_000_000)
    assert [table.n_rows for table in tables] == [384_006_168, 384_016_682]
    every = [prime for table in tables for prime in table.primes]
    assert len(set(every)) == len(every) == 48


def test_columns_have_ascending_primes_of_their_own():
    for table in engram.layouts([0, 3, 9], 700, max_order=3, n_heads=4, base=50):
        for order in (0, 1):
            primes = table.primes[4 * order : 4 * order + 4]
            assert list(primes) == sorted(primes)
            assert all(p >= 50 and all(p % q for q in range(2, p)) for p in primes)


def test_multipliers_are_odd_and_products_fit():
    for n_compressed in (2, 1000, 99_092):
        for a in engram.multipliers_of(7, n_compressed, 5):
            assert a % 2 == 1
            assert (n_compressed - 1) * a < 2**63
    assert engram.multipliers_of(1, 100, 3) != engram.multipliers_of(2, 100, 3)


def as_published(tokens, layers, size, max_order, n_heads, base, pad, seed=0):
    """The source's demonstration anew, in numpy: for each layer its multipliers, its primes in the order of
    the columns, and its rows [tokens, columns]."""
    numpy = pytest.importorskip("numpy")
    half, seen, told = max(1, (2**63 - 1) // size // 2), set(), []
    for layer in layers:
        drawn = numpy.random.default_rng(seed + 10007 * layer).integers(0, half, (max_order,), numpy.int64)
        shifted = [numpy.concatenate([numpy.full(s, pad), tokens])[: len(tokens)] for s in range(max_order)]
        primes, rows, begin = [], [], 0
        for order in range(2, max_order + 1):
            mix, start = shifted[0] * (2 * drawn[0] + 1), base - 1
            for s in range(1, order):
                mix = mix ^ (shifted[s] * (2 * drawn[s] + 1))
            for _ in range(n_heads):
                start += 1
                while start in seen or any(start % q == 0 for q in range(2, int(start**0.5) + 1)):
                    start += 1
                seen.add(start)
                primes.append(start)
                rows.append(mix % start + begin)
                begin += start
        told.append((tuple(int(2 * x + 1) for x in drawn), tuple(primes), numpy.stack(rows, 1)))
    return told


@pytest.mark.parametrize(("max_order", "n_heads", "base"), [(3, 8, 646_400), (4, 3, 1000)])
def test_layouts_and_rows_are_those_of_the_published_demonstration(max_order, n_heads, base):
    size, tokens = 98_980, torch.randint(0, 98_980, (50,), generator=rng(6))
    ours = engram.layouts([1, 15], size, max_order=max_order, n_heads=n_heads, base=base)
    theirs = as_published(tokens.numpy(), [1, 15], size, max_order, n_heads, base, pad=2)
    for layout_, (multipliers, primes, rows) in zip(ours, theirs, strict=True):
        assert (layout_.multipliers, layout_.primes) == (multipliers, primes)
        found = engram.hash_rows(engram.predecessors(tokens, [50], max_order, pad=2), layout_)
        assert found.tolist() == rows.tolist()


def test_multipliers_are_those_that_numpy_draws():
    drawn = integers(0, 2**40, 3)
    assert drawn == [700_346_781_657, 296_633_628_802, 45_050_865_998]
    numpy = pytest.importorskip("numpy", reason="numpy is not installed")
    for seed in (0, 7, 10_007, 2**32, 2**100 + 1):
        for bound in (2**32 + 1, 2**40, 46_540_000_000_000, 3 * 2**61 + 7, 2**63 - 1):
            theirs = numpy.random.default_rng(seed).integers(0, bound, 50, dtype=numpy.int64)
            assert integers(seed, bound, 50) == theirs.tolist()


def test_parts_batches_and_prefixes_give_what_one_pass_gives():
    table = layout()
    tokens = torch.randint(0, 5000, (30,), generator=rng(1))
    whole = engram.hash_rows(engram.predecessors(tokens, [30], 3, pad=2), table)
    first = engram.hash_rows(engram.predecessors(tokens[:11], [11], 3, pad=2), table)
    rest = engram.predecessors(tokens[11:], [19], 3, pad=2, history=tokens[None, 9:11])
    assert torch.equal(torch.cat([first, engram.hash_rows(rest, table)]), whole)
    ragged = torch.cat([tokens, tokens[:7], tokens[:0], tokens[:1]])
    together = engram.hash_rows(engram.predecessors(ragged, [30, 7, 0, 1], 3, pad=2), table)
    assert torch.equal(together, torch.cat([whole, whole[:7], whole[:1]]))


def test_nothing_looks_ahead():
    table = layout()
    tokens = torch.randint(0, 5000, (20,), generator=rng(2))
    before = engram.hash_rows(engram.predecessors(tokens, [20], 3, pad=2), table)
    tokens[12] += 1
    after = engram.hash_rows(engram.predecessors(tokens, [20], 3, pad=2), table)
    assert torch.equal(before[:12], after[:12])
    assert not torch.equal(before[12], after[12])


def test_collisions_are_those_of_chance():
    table = layout(max_order=2, n_heads=4, base=20_000, size=50_000)
    pairs = torch.randint(0, 50_000, (20_000, 2), generator=rng(3)).unique(dim=0)
    rows = engram.hash_rows(pairs, table)
    for head in range(4):
        used, size = len(rows[:, head].unique()), table.primes[head]
        expected = size * (1 - (1 - 1 / size) ** len(pairs))
        assert used == pytest.approx(expected, rel=0.02)
    assert len(rows.unique(dim=0)) == len(pairs)


def test_tokens_that_look_alike_share_an_id():
    texts = [" The", "the", "THE", "thé", "\n \t", " ", "", "\ufffd", "\ufffd", "ﬁ", "fi", "x"]
    raw = ["ĠThe", "the", "THE", "thé", "ĊĠĉ", "Ġ", "<s>", "Ã", "©", "ï¬ģ", "fi", "x"]
    ids, size = engram.token_map(texts, raw)
    told = ids.tolist()
    assert told[0] == told[1] == told[2] == told[3] == 0
    assert told[4] == told[5] == 1
    assert told[9] == told[10]
    assert told[7] != told[8]
    assert size == len(set(told)) == max(told) + 1
    assert sorted(set(told), key=told.index) == [*range(size)]


def test_texts_are_normalised_as_the_source_does():
    """By its own library; what is new in Unicode's tables its version need not know."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    normalizers, regex, lone = tokenizers.normalizers, tokenizers.Regex, "\ue000"
    steps = [normalizers.NFKC(), normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    steps += [normalizers.Replace(regex(r"[ \t\r\n]+"), " ")]
    steps += [normalizers.Replace(regex("^ $"), lone), normalizers.Strip()]
    theirs = normalizers.Sequence([*steps, normalizers.Replace(lone, " ")])
    points = [*range(0x600), *range(0x900, 0x970), *range(0x1E00, 0x2070), *range(0x3000, 0x3100), 0xFB01]
    for text in (f"{before}{chr(point)}" for point in points for before in ("", " ", "a")):
        assert hashing.normalised(text) == theirs.normalize_str(text), ascii(text)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", ["engram.gate", "engram.short_conv"])
def test_kernels_in_float32_are_within_a_millionth(name):
    from abduce.serving.kernels.engram.suite import KERNELS

    [kernel] = [each for each in KERNELS if each.name == name]
    for case in kernel.cases(torch.float32, torch.device("cpu")):
        assert disagreement(kernel, case) * TOLERANCE[torch.float32] <= 1e-6


def test_the_gate_lies_between_nothing_and_everything_and_is_a_half_for_an_empty_key():
    h = torch.randn(50, 2, 16, generator=rng(4), dtype=torch.float64) * 5
    kv = torch.randn(50, 48, generator=rng(5), dtype=torch.float64)
    kv[:, 32:] = 1
    ones = torch.ones(2, 16, dtype=torch.float64)
    alpha = engram.gate(h, kv, ones, ones)
    assert ((alpha > 0) & (alpha < 1)).all()
    kv[:, :32] = 0
    torch.testing.assert_close(engram.gate(h, kv, ones, ones), torch.full_like(h, 0.5))


def test_a_zero_convolution_is_the_identity_and_it_only_looks_back():
    u = torch.randn(20, 1, 8, generator=rng(6), dtype=torch.float64)
    norm, weight = torch.ones(1, 8).double(), torch.randn(1, 8, 4, generator=rng(7)).double()
    assert torch.equal(engram.short_conv(u, torch.zeros(1, 8, 4).double(), norm, 3), u)
    before = engram.short_conv(u, weight, norm, 3)
    changed = u.clone()
    changed[10] += 1
    moved = (engram.short_conv(changed, weight, norm, 3) - before).abs().amax((1, 2)) > 1e-9
    assert [*torch.nonzero(moved)[:, 0].tolist()] == [10, 13, 16, 19]


def test_a_convolution_goes_on_from_what_was_before():
    u = torch.randn(25, 2, 8, generator=rng(8), dtype=torch.float64)
    norm, weight = (
        torch.rand(2, 8, generator=rng(9)).double(),
        torch.randn(2, 8, 4, generator=rng(7)).double(),
    )
    whole = engram.short_conv(u, weight, norm, 3)
    rest = engram.short_conv(u[12:], weight, norm, 3, before=u[3:12])
    torch.testing.assert_close(rest, whole[12:])


def test_what_is_looked_up_is_the_row():
    table = torch.arange(12.0).view(6, 2)
    rows = torch.tensor([[0, 5], [3, 3]])
    assert engram.lookup(table, rows).tolist() == [[0, 1, 10, 11], [6, 7, 6, 7]]
