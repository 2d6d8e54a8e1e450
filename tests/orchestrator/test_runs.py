"""Run folders: found by name, by a beginning of it, or as the last; whole or not there at all."""

import json
import os

import pytest

from abduce.orchestrator.runs import Runs
from abduce.serving.errors import UnknownName, UsageError
from abduce.strategies.base import Candidate, Result, Task


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path / "state" / "runs")


def named(runs, *names):
    for name in names:
        (runs.folder / name).mkdir(parents=True)
        (runs.folder / name / "run.json").write_text("{}")


def test_a_new_run_says_what_was_asked(runs):
    run = runs.create({"strategy": "beam", "task": Task("7 x 8 ="), "seed": 3})
    assert run.record["run"] == run.id
    assert run.record["task"]["question"] == "7 x 8 ="
    assert (run.record["strategy"], run.record["seed"]) == ("beam", 3)
    assert run.result is None
    assert runs.open(run.id) == run


def test_runs_are_listed_oldest_first_however_quickly_they_follow(runs):
    made = [runs.create({}).id for _ in range(30)]
    assert runs.names() == made
    assert runs.open("last").id == made[-1]


def test_a_run_is_found_by_any_beginning_that_only_it_has(runs):
    named(runs, "20260101-a1", "20260101-b2", "20260102-c3", "20260102-c3-again")
    assert runs.open("20260101-a").id == "20260101-a1"
    assert runs.open("20260102-c3").id == "20260102-c3"  # the whole name wins over longer ones
    with pytest.raises(UsageError, match=r"'20260101' fits 2 runs: 20260101-a1, 20260101-b2 .* Write more"):
        runs.open("20260101")


@pytest.mark.parametrize("name", ["20260101-a2", "", "..", "../runs/20260101-a1", "20260101-a1/"])
def test_an_unknown_run_is_named_with_those_there_are(runs, name):
    named(runs, "20260101-a1")
    with pytest.raises(UnknownName, match="Known: 20260101-a1"):
        runs.open(name)


@pytest.mark.parametrize("name", ["last", "20260101-a1"])
def test_without_runs_there_is_none_to_open(runs, name):
    assert runs.names() == []
    with pytest.raises(UnknownName, match="none yet"):
        runs.open(name)


def test_a_half_written_run_is_passed_over(runs):
    whole = runs.create({})
    (runs.folder / "99991231-killed").mkdir()
    (runs.folder / "99991231-killed" / "run.77.tmp").write_text('{"run": ')
    (runs.folder / "99991231-file").touch()
    assert runs.names() == [whole.id]
    assert runs.open("last") == whole


def test_a_result_is_kept_whole(runs):
    run = runs.create({})
    result = Result("56", "It is 56.", (Candidate("56", "It is 56.", 1.0),), diagnostics={"ess": [1.5]})
    run.finish(result)
    assert run.result["answer"] == "56"
    assert run.result["candidates"] == [{"answer": "56", "text": "It is 56.", "score": 1.0, "weight": None}]
    assert sorted(file.name for file in run.folder.iterdir()) == ["result.json", "run.json"]


def test_a_result_is_written_whole_or_not_at_all(runs, monkeypatch):
    run = runs.create({})
    run.finish(Result("first", ""))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)  # the last moment at which anything can go wrong
    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        run.finish(Result("second", "x" * 100_000))
    assert run.result["answer"] == "first"
    assert json.loads((run.folder / "result.json").read_text())["answer"] == "first"


@pytest.mark.parametrize("below", ["", "runs"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"Cannot write runs to .*file.*ABDUCE_HOME"):
        Runs(tmp_path / "file" / below).create({})


def test_a_folder_that_is_read_only_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write anywhere")
        with pytest.raises(UsageError, match=r"Cannot write runs to .*ABDUCE_HOME"):
            Runs(tmp_path / "runs").create({})
    finally:
        tmp_path.chmod(0o700)


def test_a_run_is_worked_on_by_one_at_a_time(tmp_path):
    run = Runs(tmp_path).create({"task": "x"})
    with run.held(), pytest.raises(UsageError, match="going on in another process"), run.held():
        pass
    with run.held():
        pass


def test_a_folder_may_be_written_as_text(tmp_path):
    assert Runs(str(tmp_path)) == Runs(tmp_path)
    assert Runs(str(tmp_path)).create({}).folder.parent == tmp_path


def test_names_are_in_universal_time(runs, monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 1_767_225_600 * 10**9)
    monkeypatch.setattr("time.localtime", lambda *_: 1 / 0)
    assert runs.create({}).id.startswith("20260101-000000-")
