"""What is kept: the newest, within limits, and whatever may still go on."""

import pytest

from abduce.orchestrator.retention import Keep, age_s, prune
from abduce.orchestrator.runs import Run, Runs
from abduce.serving.errors import UsageError
from abduce.strategies.base import Result

NAMES = [f"2026010{day}-000000-a" for day in range(1, 7)]
NOW = 1_767_225_600 + 9 * 86_400  # 2026-01-10


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Six finished runs, one a day, of 100 KB each."""
    monkeypatch.setattr("time.time", lambda: NOW)
    runs = Runs(tmp_path)
    for name in NAMES:
        runs.store.create(name, b"{}")
        run = Run(runs.store, name)
        run.trace.write_bytes(b" " * 100_000)
        run.finish(Result("56", ""))
    return runs


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("", 6),
        ("9 runs", 6),
        ("4 runs", 4),
        ("0 runs", 0),
        ("7.5 days", 4),
        ("1 day", 0),
        ("2 weeks", 6),
        ("0.31 MB", 3),
        ("1 GB", 6),
        ("5 runs, 5.5 days, 1 GB", 2),
    ],
)
def test_the_oldest_beyond_any_limit_go(runs, words, left):
    going = prune(runs, Keep.parse(words))
    assert runs.names() == NAMES[len(NAMES) - left :]
    assert sorted([*going, *runs.names()]) == NAMES
    assert prune(runs, Keep.parse(words)) == []


def test_what_may_still_go_on_stays(runs):
    runs.store.create("20250101-000000-unfinished", b"{}")
    with Run(runs.store, NAMES[2]).held():
        assert prune(runs, Keep(runs=0)) == [*NAMES[:2], *NAMES[3:]][::-1]
    assert runs.names() == ["20250101-000000-unfinished", NAMES[2]]


def test_a_run_is_as_old_as_its_name_says(runs):
    assert age_s(Run(runs.store, NAMES[0])) == 9 * 86_400
    assert age_s(Run(runs.store, "mine")) == 0.0


@pytest.mark.parametrize("words", ["200", "runs", "1.5 runs", "3 moons", "-1 days", "2 GB 3 days"])
def test_a_limit_that_is_none_is_named(words):
    with pytest.raises(UsageError, match=r"is no limit .* '200 runs, 30 days, 2 GB'"):
        Keep.parse(words)


@pytest.mark.parametrize("limits", [{"runs": -1}, {"days": -0.5}, {"mb": -1}])
def test_limits_below_zero_are_refused(limits):
    with pytest.raises(UsageError, match="0 or more"):
        Keep(**limits)
