"""Processes that share a store: whatever they do, every run stays whole, and no call is made twice."""

import multiprocessing
from collections import Counter

import pytest
from sharing import work

from abduce.orchestrator.runs import Run, Runs
from abduce.orchestrator.trace import read

PROCESSES = 4


@pytest.mark.parametrize(("kind", "deeds"), [("folder", 40), ("postgres", 20)])
def test_processes_at_work_in_one_store_harm_no_run(kind, deeds, request, tmp_path, monkeypatch):
    home = tmp_path / "state"
    monkeypatch.setenv("ABDUCE_HOME", str(home))
    where = str(home / "runs") if kind == "folder" else request.getfixturevalue("database")
    start = multiprocessing.get_context("forkserver")
    reports = [tmp_path / f"report{i}" for i in range(PROCESSES)]
    at_work = [
        start.Process(target=work, args=(where, str(home), i, deeds, str(report)))
        for i, report in enumerate(reports)
    ]
    for process in at_work:
        process.start()
    for process in at_work:
        process.join(120)
    assert [process.exitcode for process in at_work] == [0] * PROCESSES
    rows = [line.split(maxsplit=2) for report in reports for line in report.read_text().splitlines()]
    called = Counter((run, path) for word, run, path in rows if word == "called")
    assert max(called.values()) == 1
    told = Counter[str]()
    for word, count, what in rows:
        if word == "told":
            told[what.partition(":")[0] + (":" if ":" in what else "")] += int(count)
            assert what.partition(": ")[2] in ("", "held", "gone", "none"), what
    assert all(told[deed] >= deeds / 6 for deed in ("solve", "resume", "fork", "look")), told
    runs = Runs(where)
    assert runs.names()
    for name in runs.names():
        run = Run(runs.store, name)
        assert not run.is_held
        if run.result is not None:
            kinds = [event["event"] for event in read(run.trace)]
            assert (kinds[0], kinds[-1]) == ("run_started", "run_ended")
            assert sum(reply.usage.calls for reply in run.replies()) >= run.result["usage"]["calls"]
        runs.delete(run)
    assert runs.names() == []
    assert [entry for entry in runs.folder.iterdir() if entry.name.startswith(".")] == []
