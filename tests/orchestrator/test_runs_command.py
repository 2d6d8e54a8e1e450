"""`abduce runs`: list, show, resume, fork, delete, as a user types them."""

import json
import sys

import pytest

from abduce.orchestrator.cli import main
from abduce.orchestrator.runs import Run, Runs

RECIPE = """\
name: short
model: {engine: synthetic, alphabet: abcdefgh, depth: 4}
reward: rate
policy: {preset: cot, answer_kind: text}
"""
GRAPH = """\
pipeline:
  - solve: {strategy: best_of_n, n: 4}
  - verify: {by: reward, at_least: 1, retries: 2}
"""
ONE = "strategy: {name: best_of_n, n: 4}\n"


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "state"))
    (tmp_path / "r.yaml").write_text(RECIPE + ONE)
    (tmp_path / "g.yaml").write_text(RECIPE + GRAPH)
    return Runs(tmp_path / "state" / "runs")


def abduce(capsys, *words):
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def solved(capsys, recipe="r.yaml", *words):
    """A new run's name."""
    _, out, _ = abduce(capsys, "solve", "Which?", "--recipe", recipe, "--json", *words)
    return json.loads(out)["run"]


# ---------------------------------------------------------------- list


@pytest.mark.parametrize("words", [["runs"], ["runs", "list"]])
def test_runs_are_listed_with_what_they_came_to(capsys, runs, words):
    first, second = solved(capsys), solved(capsys, "g.yaml")
    unfinished = runs.fork(runs.open(first), keep=1).id
    with runs.open(unfinished).held():
        _, out, _ = abduce(capsys, *words)
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [(row[0], row[3]) for row in rows] == [
        (first, "complete"),
        (second, "complete"),
        (unfinished, "running"),
    ]
    assert all(int(row[4].replace(",", "")) > 0 for row in rows)
    assert "unfinished" in abduce(capsys, *words)[1]


@pytest.mark.parametrize("words", [["runs", "--limit", "2"], ["runs", "list", "--limit", "2"]])
def test_the_newest_are_shown_and_the_others_counted(capsys, words):
    names = [solved(capsys) for _ in range(3)]
    _, out, err = abduce(capsys, *words)
    assert [line.split()[0] for line in out.splitlines()[1:]] == names[1:]
    assert "1 older" in err


# ---------------------------------------------------------------- show


def test_a_run_is_shown_with_its_settings_its_use_and_its_forks(capsys, runs):
    run = solved(capsys)
    fork = runs.fork(runs.open(run), keep=2, changes=["n=3"]).id
    _, out, _ = abduce(capsys, "runs", "show", run)
    assert f"forks     {fork}" in out
    assert "strategy: {name: best_of_n, n: 4}" in out
    assert f"{runs.open(run).result['usage']['calls']} calls" in out
    assert "complete, started" in out
    _, out, _ = abduce(capsys, "runs", "show", fork)
    assert f"{run} after 2 replies, with n=3" in out
    assert "2 (2 inherited)" in out
    assert "unfinished" in out


def test_a_workflow_is_shown_with_the_nodes_it_visited(capsys):
    run = solved(capsys, "g.yaml")
    _, out, _ = abduce(capsys, "runs", "show", run)
    assert "0 solve, 1 verify, 2 solve, 3 verify, 4 solve, 5 verify" in out


def test_replies_are_numbered_in_the_order_of_their_arrival(capsys, runs):
    run = solved(capsys)
    _, out, err = abduce(capsys, "runs", "show", run, "--replies")
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[0] for row in rows] == [str(i + 1) for i in range(len(runs.open(run).replies()))]
    assert f"abduce runs fork {run} --at STEP" in err


# ---------------------------------------------------------------- resume and fork


@pytest.mark.parametrize("words", [["resume"], ["runs", "resume"]])
@pytest.mark.parametrize("recipe", ["r.yaml", "g.yaml"])
def test_a_run_goes_on_under_either_name(capsys, runs, words, recipe):
    first = json.loads(abduce(capsys, "solve", "Which?", "--recipe", recipe, "--json")[1])
    code, out, _ = abduce(capsys, *words, "last", "--json")
    assert (code, json.loads(out)) == (0, first)


def test_a_fork_goes_on_at_once(capsys, runs):
    run = solved(capsys)
    code, out, _ = abduce(capsys, "runs", "fork", run, "--at", "1", "--set", "redraw=3", "--json")
    told = json.loads(out)
    fork = runs.open(told["run"])
    assert (code, fork.record["forked_from"], fork.record["redraw"]) == (0, run, 3)
    assert fork.result["answer"] == told["answer"]


def test_a_fork_may_wait(capsys, runs):
    run = solved(capsys)
    code, out, err = abduce(capsys, "runs", "fork", run, "--at", "1", "--no-run")
    fork = out.strip()
    assert (code, runs.open(fork).result) == (0, None)
    assert f"abduce resume {fork}" in err
    assert abduce(capsys, "resume", fork)[0] == 0
    assert runs.open(fork).result == runs.open(run).result


@pytest.mark.parametrize("visit", [0, 1, 2, 5])
def test_a_fork_may_begin_with_a_visit(capsys, runs, visit):
    run = runs.open(solved(capsys, "g.yaml"))
    abduce(capsys, "runs", "fork", run.id, "--at", f"visit:{visit}", "--no-run")
    kept = [reply.path for reply in runs.open("last").replies()]
    assert kept == [reply.path for reply in run.replies() if reply.path[0] < visit]
    assert abduce(capsys, "resume", "last")[0] == 0
    assert runs.open("last").result == run.result


@pytest.mark.parametrize(
    ("at", "told"),
    [
        ("somewhere", "write the number of a reply"),
        ("-1", "write the number of a reply"),
        ("visit:x", "visit:N"),
        ("visit:0", "none: it is one search"),
        ("1000", "keeps 0 to"),
    ],
)
def test_a_step_that_is_none_is_explained(capsys, runs, at, told):
    run = solved(capsys)
    code, _, err = abduce(capsys, "runs", "fork", run, f"--at={at}")
    assert code == 2
    assert told in err
    assert runs.names() == [run]


def test_a_visit_that_is_none_is_named_with_those_there_are(capsys):
    run = solved(capsys, "g.yaml")
    code, _, err = abduce(capsys, "runs", "fork", run, "--at", "visit:6")
    assert code == 2
    assert "Visits: 0 solve, 1 verify" in err


def test_a_change_that_does_not_fit_is_one_line(capsys):
    solved(capsys)
    code, _, err = abduce(capsys, "runs", "fork", "last", "--at", "1", "--set", "strategy=a_starr")
    assert code == 2
    assert "Did you mean 'a_star'?" in err
    assert len(err.splitlines()) == 1


# ---------------------------------------------------------------- delete


def test_runs_are_deleted_by_name(capsys, runs):
    first, second = solved(capsys), solved(capsys)
    code, _, err = abduce(capsys, "runs", "delete", first, "--yes")
    assert (code, runs.names()) == (0, [second])
    assert "deleted 1 of 1" in err


def test_finished_runs_are_deleted_beyond_limits(capsys, runs):
    names = [solved(capsys) for _ in range(4)]
    unfinished = runs.fork(runs.open(names[0]), keep=1).id
    assert abduce(capsys, "runs", "delete", "--keep", "3", "--older-than", "1h", "--yes")[0] == 0
    assert runs.names() == [*names[2:], unfinished]
    code, _, err = abduce(capsys, "runs", "delete", "--older-than", "30d", "--max-mb", "100", "--yes")
    assert (code, len(runs.names())) == (0, 3)
    assert "nothing to delete" in err


def test_without_a_yes_nothing_is_deleted(capsys, runs, monkeypatch):
    run = solved(capsys)
    code, _, err = abduce(capsys, "runs", "delete", run)
    assert code == 2
    assert "--yes" in err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer, left in (("", [run]), ("no", [run]), ("y", [])):
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert abduce(capsys, "runs", "delete", run)[0] == int(bool(left))
        assert runs.names() == left


def test_a_run_that_goes_on_is_not_deleted(capsys, runs):
    first, second = solved(capsys), solved(capsys)
    with runs.open(first).held():
        code, _, err = abduce(capsys, "runs", "delete", first, second, "--yes")
    assert (code, runs.names()) == (2, [first])
    assert "going on in another process" in err
    assert "deleted 1 of 2" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Name the runs to delete, or give limits"),
        (["last", "--keep", "3"], "Name the runs to delete, or give limits"),
        (["--older-than", "soon"], "is no limit"),
        (["--older-than", "3 runs"], "write an age such as 30d"),
        (["--keep", "-1"], "not a whole number"),
        (["nope"], "No run named 'nope'"),
    ],
)
def test_what_is_to_be_deleted_must_be_clear(capsys, runs, words, told):
    run = solved(capsys)
    code, _, err = abduce(capsys, "runs", "delete", *words, "--yes")
    assert (code, runs.names()) == (2, [run])
    assert told in err


def test_the_environment_may_say_how_much_is_kept(capsys, runs, monkeypatch):
    names = [solved(capsys) for _ in range(3)]
    monkeypatch.setenv("ABDUCE_KEEP", "2 runs")
    newest = solved(capsys)
    assert runs.names() == [names[2], newest]
    monkeypatch.setenv("ABDUCE_KEEP", "two")
    code, _, err = abduce(capsys, "solve", "Which?", "--recipe", "r.yaml")
    assert code == 2
    assert "ABDUCE_KEEP" in err


def test_runs_may_be_kept_elsewhere(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ABDUCE_STORE", str(tmp_path / "elsewhere"))
    run = solved(capsys)
    assert Runs(tmp_path / "elsewhere").names() == [run]
    assert Run(Runs(tmp_path / "elsewhere").store, run).trace.exists()
