"""Runs in any store: found by name, by a beginning of it, or as the last; whole or not there at all; forked,
held and deleted."""

import json
import os
from collections import Counter

import pytest

from abduce.orchestrator.again import again, task_of
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.solve import build
from abduce.orchestrator.trace import Called, read
from abduce.serving.errors import UnknownName, UsageError
from abduce.strategies.base import Candidate, Result, Task


@pytest.fixture
def folder(tmp_path):
    return Runs(tmp_path / "state" / "runs")


@pytest.fixture(params=["folder", "postgres"])
def runs(request, tmp_path, monkeypatch):
    """A store of each kind: what holds for one holds for the other."""
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "state"))
    if request.param == "folder":
        return request.getfixturevalue("folder")
    return Runs(request.getfixturevalue("database"))


def named(runs, *names):
    for name in names:
        runs.store.create(name, b'{"seed": 0}')


# ---------------------------------------------------------------- made and found


def test_a_new_run_says_what_was_asked(runs):
    run = runs.create({"strategy": "beam", "task": Task("7 x 8 ="), "seed": 3})
    assert run.record["run"] == run.id
    assert run.record["task"]["question"] == "7 x 8 ="
    assert (run.record["strategy"], run.record["seed"]) == ("beam", 3)
    assert run.result is None
    assert run.replies() == []
    assert runs.open(run.id) == run


@pytest.mark.parametrize("text", ["\x00", "\ud800", "’ü 字", '"\\u0000"', "\x7f\n"])
def test_a_question_comes_back_as_it_was(runs, text):
    run = runs.create({"task": Task(text)})
    asked = text.encode(errors="replace").decode()
    assert run.record["task"]["question"] == asked
    run.finish(Result(text, text))
    assert run.result["text"] == asked


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


@pytest.mark.parametrize("name", ["20260101-a2", "", "..", "../runs/20260101-a1", "20260101-a1/", "%"])
def test_an_unknown_run_is_named_with_those_there_are(runs, name):
    named(runs, "20260101-a1")
    with pytest.raises(UnknownName, match="Known: 20260101-a1"):
        runs.open(name)


@pytest.mark.parametrize("name", ["last", "20260101-a1"])
def test_without_runs_there_is_none_to_open(runs, name):
    assert runs.names() == []
    with pytest.raises(UnknownName, match="none yet"):
        runs.open(name)


def test_names_are_in_universal_time(folder, monkeypatch):
    monkeypatch.setattr("time.time_ns", lambda: 1_767_225_600 * 10**9)
    monkeypatch.setattr("time.localtime", lambda *_: 1 / 0)
    assert folder.create({}).id.startswith("20260101-000000-")


def test_a_result_is_kept_whole(runs):
    run = runs.create({})
    result = Result("56", "It is 56.", (Candidate("56", "It is 56.", 1.0),), diagnostics={"ess": [1.5]})
    run.finish(result)
    assert run.result["answer"] == "56"
    assert run.result["candidates"] == [{"answer": "56", "text": "It is 56.", "score": 1.0, "weight": None}]
    run.finish(Result("57", ""))
    assert run.result["answer"] == "57"


# ---------------------------------------------------------------- a folder


def test_a_half_written_run_is_passed_over(folder):
    whole = folder.create({})
    (folder.folder / "99991231-killed").mkdir()
    (folder.folder / "99991231-killed" / "run.77.tmp").write_text('{"run": ')
    (folder.folder / "99991231-file").touch()
    assert folder.names() == [whole.id]
    assert folder.open("last") == whole


def test_what_a_killed_deletion_left_is_passed_over_and_goes_with_the_next(folder):
    first, second = folder.create({}), folder.create({})
    left = folder.folder / f".{first.id}.deleted"
    first.folder.rename(left)
    assert folder.names() == [second.id]
    folder.delete(second)
    assert list(folder.folder.iterdir()) == []


def test_a_result_is_written_whole_or_not_at_all(folder, monkeypatch):
    run = folder.create({})
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


def test_a_folder_may_be_written_as_text(tmp_path):
    assert Runs(str(tmp_path)) == Runs(tmp_path)
    assert str(Runs(tmp_path)) == str(tmp_path)
    assert Runs(str(tmp_path)).create({}).folder.parent == tmp_path


def test_nobody_else_can_read_a_run(folder):
    assert folder.create({}).folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("url", ["redis://ann:hunter22@host/0", "http://host", "sqlite:///runs.db"])
def test_another_kind_of_store_is_refused(url):
    with pytest.raises(UsageError, match="a folder, or postgresql://") as told:
        Runs(url)
    assert "hunter22" not in str(told.value)


# ---------------------------------------------------------------- held and deleted


def test_a_run_is_worked_on_by_one_at_a_time(runs):
    run = runs.create({"task": "x"})
    assert not run.is_held
    with run.held():
        assert run.is_held
        with pytest.raises(UsageError, match="going on in another process"), run.held():
            pass
    assert not run.is_held
    with run.held():
        pass


def test_asking_whether_a_run_is_held_never_keeps_others_from_it(runs):
    run = runs.create({})
    for _ in range(5):
        with run.held():
            pass
        assert not run.is_held


def test_a_run_that_is_worked_on_is_not_deleted(runs):
    run = runs.create({})
    with run.held(), pytest.raises(UsageError, match="going on in another process"):
        runs.delete(run)
    assert runs.names() == [run.id]


def test_a_deleted_run_is_gone(runs):
    kept, run = runs.create({"seed": 1}), runs.create({"seed": 2})
    run.finish(Result("56", ""))
    with run.held():
        run.trace.write_text("")
    runs.delete(run)
    assert runs.names() == [kept.id]
    assert not run.folder.exists()
    assert not run.is_held
    uses = (lambda: run.record, lambda: run.result, run.replies, run.held().__enter__)
    for use in (*uses, lambda: runs.store.replies(run.id), lambda: runs.delete(run)):
        with pytest.raises(UsageError, match="deleted"):
            use()
    assert kept.record["seed"] == 1


def test_a_result_is_kept_once_the_trace_is_whole_and_while_the_run_is_held(runs, monkeypatch):
    """Else another process might delete the run, or go on with it, in between."""
    finish, seen = type(runs.store).finish, []

    def looked(store, name, result):
        seen.append((store.is_held(name), [event["event"] for event in read(runs.open(name).trace)][-1]))
        finish(store, name, result)

    monkeypatch.setattr(type(runs.store), "finish", looked)
    build(**WORDS).solve("Which?", store=runs)
    assert seen == [(True, "run_ended")]


# ---------------------------------------------------------------- forked

WORDS = {
    "strategy": "particle_filter",
    "particles": 4,
    "model": {"engine": "synthetic", "alphabet": "abcdefgh", "depth": 5},
    "policy": {"preset": "cot", "answer_kind": "text"},
    "reward": "rate",
}


def carried_out(run):
    """Go on with a run as the command line would; its result, and the calls that were made anew."""
    task, seed = task_of(run.record)
    made: list[Called] = []

    def watch(event):
        if isinstance(event, Called) and not event.replayed:
            made.append(event)

    return again(run.record).solve(task, seed=seed, run=run, observers=[watch]), made


@pytest.fixture
def whole(runs):
    """A finished run, and what came of it."""
    result = build(**WORDS).solve("Which?", seed=7, store=runs)
    return runs.open("last"), result


def test_replies_are_told_in_the_order_of_their_arrival(whole):
    run, result = whole
    replies = run.replies()
    assert len(replies) == result.usage.calls
    assert [reply.arrived for reply in replies] == sorted(reply.arrived for reply in replies)
    assert sum(reply.usage.output_tokens for reply in replies) == result.usage.output_tokens
    assert {type(reply.reply) for reply in replies} == {list, float}
    assert not any(reply.inherited for reply in replies)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_fork_without_changes_asks_only_for_what_it_did_not_inherit(runs, whole, share):
    run, result = whole
    replies = run.replies()
    keep = round(share * len(replies))
    fork = runs.fork(run, keep=keep)
    assert (fork.record["forked_from"], fork.record["keep"]) == (run.id, keep)
    assert fork.result is None
    assert [reply._replace(inherited=False) for reply in fork.replies()] == replies[:keep]
    again, made = carried_out(fork)
    assert again == result
    assert Counter(event.path for event in made) == Counter(reply.path for reply in replies[keep:])
    assert run.replies() == replies  # the one it came from is what it was


def test_a_fork_that_draws_anew_begins_the_same_and_goes_on_differently(runs, whole):
    run, result = whole
    ends = set()
    for redraw in (1, 2, 3):
        fork = runs.fork(run, keep=10, changes=[f"redraw={redraw}"])
        again, made = carried_out(fork)
        assert fork.replies()[:10] == [reply._replace(inherited=True) for reply in run.replies()[:10]]
        assert made
        ends.add(str(again))
        assert carried_out(runs.fork(fork, keep=12))[0] == again  # as repeatable as any run
    assert len(ends | {str(result)}) == 4


def test_a_fork_with_another_seed_is_another_search(runs, whole):
    run, _ = whole
    fork = runs.fork(run, keep=10, changes=["seed=8"])
    assert fork.record["seed"] == 8
    assert carried_out(fork)[0] == build(**WORDS).solve("Which?", seed=8)


def test_a_reply_to_another_request_is_not_used(runs, whole):
    """With more particles the first batch of the fork is a larger one; nothing of the old one fits."""
    run, _ = whole
    fork = runs.fork(run, keep=len(run.replies()), changes={"strategy.particles": 6})
    again, made = carried_out(fork)
    alone = build(**WORDS | {"particles": 6}).solve("Which?", seed=7)
    assert again == alone
    assert made
    assert fork.record["changes"] == ["strategy.particles=6"]
    resumed, made = carried_out(fork)
    assert (resumed, made) == (again, [])


@pytest.mark.parametrize(
    "changes", [["strategy=best_of_n", "n=3"], ["strategy=self_consistency"], {"strategy": "beam"}]
)
def test_a_fork_may_have_another_strategy(runs, whole, changes):
    run, _ = whole
    fork = runs.fork(run, keep=5, changes=changes)
    again, _ = carried_out(fork)
    assert again.complete
    assert again.answer is not None


def test_a_fork_is_forked_in_its_turn(runs, whole):
    run, result = whole
    fork = runs.fork(run, keep=9)
    carried_out(fork)
    second = runs.fork(fork, keep=20)
    assert second.replies() == [r._replace(inherited=True) for r in fork.replies()[:20]]
    assert carried_out(second)[0] == result


def test_a_run_that_goes_on_can_be_forked(runs, whole):
    run, result = whole
    with run.held():
        fork = runs.fork(run, keep=3)
    assert carried_out(fork)[0] == result


def test_the_clock_of_a_fork_goes_on_where_it_begins(runs, whole):
    run, _ = whole
    fork = runs.fork(run, keep=6)
    _, made = carried_out(fork)
    assert min(event.t for event in made) >= run.replies()[5].arrived


@pytest.mark.parametrize("keep", [-1, 10_000])
def test_a_fork_keeps_what_there_is(runs, whole, keep):
    run, _ = whole
    with pytest.raises(UsageError, match=rf"0 to {len(run.replies())} of them, got {keep}"):
        runs.fork(run, keep=keep)
    assert runs.names() == [run.id]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("particels=4", "particels"),
        ("strategy.particles=none", "none"),
        ("strategy=a_starr", "Did you mean 'a_star'"),
        ("budget.tokens=-1", "tokens"),
        ("nonsense", "key=value"),
        ("redraw=again", "redraw=1"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_before_anything_is_made(runs, whole, change, told):
    run, _ = whole
    with pytest.raises(UsageError, match=told):
        runs.fork(run, keep=3, changes=[change])
    assert runs.names() == [run.id]
