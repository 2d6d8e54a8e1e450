import random
from dataclasses import replace
from math import exp, log

import pytest

from abduce.memory.decay import Decay, decay, log_evidence
from abduce.memory.in_memory import InMemory
from abduce.serving.entries import Entry, Evidence
from abduce.serving.errors import UsageError


@pytest.mark.parametrize(("wins", "uses", "base"), [(0, 5, 0.5), (3, 20, 0.3), (7, 10, 0.6), (12, 40, 0.9)])
def test_the_evidence_is_the_integral(wins: int, uses: int, base: float) -> None:
    n = 20_000
    points = ((i + 0.5) * base / n for i in range(n))
    mean = sum(p**wins * (1 - p) ** (uses - wins) for p in points) / n
    exact = mean / (base**wins * (1 - base) ** (uses - wins))
    assert exp(log_evidence(wins, uses, base)) == pytest.approx(exact, rel=1e-6)


def test_more_failures_are_more_evidence_and_successes_less() -> None:
    for wins in range(5):
        assert log_evidence(wins, 20, 0.5) > log_evidence(wins + 1, 20, 0.5)
        assert log_evidence(wins, 30, 0.5) > log_evidence(wins, 20, 0.5)
    assert log_evidence(0, 0, 0.5) == 0 == log_evidence(3, 9, 0.0)


def retired_ever(rate: float, base: float, runs: int, uses: int) -> float:
    """The share of entries of that rate that are retired at some time, looked at after every use."""
    gone = 0
    for seed in range(runs):
        rng, wins = random.Random(seed), 0
        for n in range(1, uses + 1):
            wins += rng.random() < rate
            if log_evidence(wins, n, base) >= -log(0.05):
                gone += 1
                break
    return gone / runs


def test_one_that_is_as_good_as_nothing_is_retired_by_at_most_the_risk_however_often_one_looks() -> None:
    assert retired_ever(0.4, 0.4, 400, 200) <= 0.05 + 2 * (0.05 * 0.95 / 400) ** 0.5


def test_one_that_helps_stays_and_one_that_harms_goes() -> None:
    assert retired_ever(0.55, 0.4, 200, 200) <= 0.01
    assert retired_ever(0.15, 0.4, 200, 200) >= 0.99


def together(rate: float, base: float, seed: int, shown: int) -> bool:
    """Whether a store is ever called harmful in 150 problems, some of its entries being shown for each."""
    rng, rule = random.Random(seed), Decay(base, shown=shown)
    entries = [Entry(f"e{i}", "", evidence=(Evidence("import of x"),)) for i in range(30)]
    for _ in range(150):
        won = rng.random() < rate
        for i in rng.sample(range(30), rng.randint(1, shown)):
            entries[i] = replace(entries[i], uses=entries[i].uses + 1, wins=entries[i].wins + won)
        if rule.harmful(entries):
            return True
    return False


@pytest.mark.parametrize("shown", [1, 3])
def test_a_store_as_good_as_none_is_called_harmful_by_at_most_the_risk(shown: int) -> None:
    assert (
        sum(together(0.4, 0.4, seed, shown) for seed in range(150)) / 150
        <= 0.05 + 2 * (0.05 * 0.95 / 150) ** 0.5
    )


def test_a_harmful_store_is_found_long_before_its_entries_are() -> None:
    assert all(together(0.1, 0.4, seed, 1) for seed in range(30))
    entries = [Entry(f"e{i}", "", evidence=(Evidence("import of x"),), uses=1) for i in range(30)]
    assert not Decay(0.4).unhelpful(entries)
    assert {group.origin for group in Decay(0.4, shown=1).harmful(entries)} == {"", "import of x"}


def test_of_a_harmful_group_stays_what_has_shown_that_it_helps() -> None:
    bad = [Entry(f"e{i}", "", evidence=(Evidence("import of x"),), uses=2) for i in range(30)]
    good, lucky, own = (
        Entry("good", "", evidence=bad[0].evidence, uses=2, wins=2),
        Entry("lucky", "", evidence=bad[0].evidence, uses=1, wins=1),
        Entry("own", "", uses=60, wins=60),
    )
    gone = {each.name for each in Decay(0.4, shown=1).going([*bad, good, lucky, own])}
    assert gone == {each.name for each in [*bad, lucky]}


def test_without_a_base_rate_no_group_is_judged() -> None:
    assert not Decay().harmful([Entry(f"e{i}", "", uses=50) for i in range(9)])


async def test_what_is_retired_is_kept_and_no_longer_found() -> None:
    store = InMemory()
    good, bad = Entry("good", "sort rows", uses=30, wins=20), Entry("bad", "sort columns", uses=30, wins=1)
    await store.write([good, bad, Entry("new", "sort cells")])
    assert [each.name for each in await decay(store, Decay(0.5))] == ["bad"]
    assert {m.entry.name for m in await store.search("sort", 9)} == {"good", "new"}
    assert {e.name: e.status for e in await store.everything()} == {
        "bad": "retired",
        "good": "active",
        "new": "active",
    }
    [_, change] = await store.history("bad")
    assert change.action == "retired" and "0.50" in change.reason
    version = await store.version()
    assert await decay(store, Decay(0.5)) == () and await store.version() == version


def test_without_a_base_rate_the_worst_of_all_are_found() -> None:
    entries = [*(Entry(f"e{i}", "", uses=40, wins=24) for i in range(9)), Entry("bad", "", uses=40, wins=4)]
    assert [each.name for each in Decay().unhelpful(entries)] == ["bad"]


@pytest.mark.parametrize("wrong", [{"base": 1.0}, {"base": -0.1}, {"risk": 0.0}, {"risk": 1.0}, {"shown": 0}])
def test_shares_are_shares(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="cannot be"):
        Decay(**wrong)
