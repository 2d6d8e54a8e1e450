"""What the benchmarks share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
try:
    from intervals import bootstrap
finally:
    sys.path.pop(0)


def test_the_interval_holds_the_mean_and_lies_within_the_values() -> None:
    mean, low, high = bootstrap([0.1, 0.2, 0.3, 0.4])
    assert mean == pytest.approx(0.25)
    assert 0.1 <= low < 0.25 < high <= 0.4
    assert bootstrap([0.5] * 4) == (0.5, 0.5, 0.5)


def test_values_that_share_a_group_tell_less_than_as_many_alone() -> None:
    values = [float(i % 8 < 4) for i in range(64)]  # eight groups of eight: four of ones, four of noughts
    groups = [i % 8 for i in range(64)]
    _, low, high = bootstrap(values)
    _, low_by, high_by = bootstrap(values, by=groups)
    assert high_by - low_by > 2 * (high - low)
