"""What the benchmarks share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
try:
    from glimp_tasks import N_SHOTS, problems
    from intervals import bootstrap
    from rows import Rows
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


def test_kept_rows_are_not_measured_again_and_the_file_only_grows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"of": "another benchmark"}\n')
    first = Rows(file)(["a", 1], lambda: {"loss": 0.5})
    before = file.read_text()
    rows = Rows(file)
    assert rows(["a", 1], lambda: {"loss": 0.7}) == first
    assert file.read_text() == before
    assert rows(["a", 2], lambda: {"loss": 0.7})["loss"] == 0.7
    assert file.read_text().startswith(before) and before.startswith('{"of": "another benchmark"}')


def test_a_task_that_runs_out_gives_all_its_problems_once() -> None:
    _, asked = problems("products", 10_000, seed=0)
    assert len({each.task.question for each in asked}) == len(asked) == 38 * 7 - N_SHOTS
