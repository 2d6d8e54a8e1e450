"""The router's file: nothing is lost, nothing is counted twice."""

import json
from random import Random

import pytest

from abduce.serving.errors import UsageError
from abduce.strategies.smart.bandit import Chooser
from abduce.strategies.smart.log import Log
from abduce.strategies.smart.router import Learning

from .test_learning import row


def rows(n, seed=0):
    rng = Random(seed)
    return [
        row(arm=rng.choice("ab"), y=rng.randrange(2), phi=(1.0, rng.random()), tokens=rng.randint(20, 90))
        for _ in range(n)
    ]


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "router.jsonl")


def same(a, b):
    return (a.sums, a.pulls, a.tokens, a.version) == (b.sums, b.pulls, b.tokens, b.version)


def decisions(router):
    return [router.decide((1.0, 0.3), "ab", Chooser(), Random(seed)) for seed in range(50)]


def test_saved_and_loaded_it_decides_the_same(log):
    made = log.append(rows(40))
    made = log.append(rows(5, 1))
    assert same(log.router(), made)
    assert decisions(log.router()) == decisions(made)
    log.snapshot.unlink()
    assert same(Log(log.path).router(45), made)


def test_a_crash_between_log_and_snapshot_loses_nothing(log):
    log.append(rows(10))
    kept = log.snapshot.read_bytes()
    made = log.append(rows(10, 1))
    log.snapshot.write_bytes(kept)  # as if it had not been written
    assert same(log._state()[0], made)
    log.snapshot.write_bytes(kept[:50])  # torn
    assert same(log._state()[0], made)


def test_a_torn_last_line_is_cut_off_by_the_next_writer(log):
    made = log.append(rows(10))
    with log.path.open("a") as file:
        file.write('{"arm": "a", "ph')
    assert same(log._state()[0], made)
    log.append(rows(3, 1))
    assert len(log.rows()) == 13


def test_an_earlier_version_can_be_had(log):
    before = log.append(rows(10))
    log.append(rows(10, 1))
    assert decisions(log.router(10)) == decisions(before)
    with pytest.raises(UsageError, match="20 rows, not 21"):
        log.router(21)


def test_two_writers_do_not_lose_each_others_rows(log):
    from threading import Thread

    log.append(rows(1))
    threads = [Thread(target=lambda seed=seed: Log(log.path).append(rows(5, seed))) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.router().version == 31 == len(log.rows())
    assert sum(log.router().pulls.values()) == 31


def test_learning_is_of_the_file(log):
    log.append(rows(3), learning=Learning(learn="all", gamma=0.9))
    assert log.router().learning == Learning(learn="all", gamma=0.9)


def test_files_that_are_none_are_refused(log):
    with pytest.raises(UsageError, match="no router"):
        log.rows()
    log.path.write_text(json.dumps({"question": "7 x 8"}) + "\n")
    with pytest.raises(UsageError, match="no router's file"):
        log.rows()
    log.path.unlink()
    log.append(rows(2))
    log.path.write_text(log.path.read_text() + "{}\n")
    with pytest.raises(UsageError, match="row 3"):
        log.rows()


def test_a_reset_keeps_the_old_file_under_another_name(log):
    log.append(rows(2))
    log.reset()
    assert not log.exists() and log.path.with_name("router.jsonl.old").exists()
