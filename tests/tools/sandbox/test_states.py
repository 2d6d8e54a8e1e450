import threading
import time

import pytest

from abduce.tools.sandbox import ENDED, Limits, Sandbox, Session, states
from abduce.tools.sandbox.states import States, Stop

STAMP = "import time\nstamp = time.monotonic()\nx = 6"  # tells a state that was forked from one built again


@pytest.fixture
def kept(sandbox):
    made = States(Sandbox(Limits(wall_s=2.0)))
    yield made
    made.close()


def test_a_branch_goes_on_from_its_programs(kept):
    assert kept.run(STAMP).ok
    assert kept.run("print(x * 7)", [STAMP]).text == "42\n"
    assert kept.run("print(y)", [STAMP, "y = x + 1"]).text == "7\n"
    assert kept.run("print('y' in globals(), x)", [STAMP]).text == "False 6\n"


def test_nothing_is_run_again_while_it_is_at_hand(kept):
    kept.run(STAMP)
    first = kept.run("print(stamp)", [STAMP]).text
    assert kept.run("print(stamp)", [STAMP]).text == first
    kept.run("x = 100", [STAMP])
    assert kept.run("print(stamp)", [STAMP, "x = 100"]).text == first


def test_what_is_lost_is_built_again(kept, sandbox):
    """As after a crash of the host: another process has nothing but the calls."""
    kept.run(STAMP)
    kept.run("x += 1", [STAMP])
    history = [STAMP, "x += 1"]
    stamp = kept.run("print(stamp)", history).text
    kept.close()
    assert kept.run("print(x)", history).text == "7\n"
    assert kept.run("print(stamp)", history).text != stamp
    again = States(sandbox)
    assert again.run("print(x)", history).text == "7\n"
    again.close()


@pytest.mark.parametrize("fatal", ["while True: pass", "import os; os._exit(3)"])
def test_a_program_that_had_to_be_killed_leaves_no_trace(kept, fatal):
    kept = States(Sandbox(Limits(wall_s=1.5)))
    fatal = f"x = 0\n{fatal}"
    assert kept.run("x = 6").ok
    assert kept.run(fatal, ["x = 6"]).text.startswith(ENDED)
    began = time.monotonic()
    assert kept.run("print(x)", ["x = 6", fatal]).text == "6\n"
    assert time.monotonic() - began < 1.5  # it is known, and not tried again
    kept.close()
    fresh = States(Sandbox(Limits(wall_s=0.5)))
    assert fresh.run("print(x)", ["x = 6", fatal]).text == "6\n"
    fresh.close()


def test_a_fault_is_part_of_the_state(kept):
    fault = "x = 1\n1 / 0"
    assert kept.run("print(x)", [fault]).text == "1\n"


def test_a_call_that_was_stopped_is_not_held_against_its_program(kept):
    program = "import time; time.sleep(0.6); x = 1"
    stop = Stop()
    threading.Timer(0.2, stop.now).start()
    assert not kept.run(program, (), stop).ok
    assert kept.run("print(x)", [program]).text == "1\n"


def test_a_call_that_was_stopped_before_it_began_does_not_begin(kept):
    stop = Stop()
    stop.now()
    assert not kept.run("print(1)", (), stop).ok


def test_no_more_are_kept_than_there_is_room_for(kept, monkeypatch):
    monkeypatch.setattr(states, "_KEPT", 3)
    for n in range(6):
        kept.run(f"x = {n}")
    assert len(kept._live) == 3
    assert [kept.run("print(x)", [f"x = {n}"]).text for n in range(6)] == [f"{n}\n" for n in range(6)]
    monkeypatch.setattr(states, "_KEPT_BYTES", 1)
    kept.run("x = 6")
    assert not kept._live
    assert kept.run("print(x)", ["x = 6"]).text == "6\n"


def test_states_that_nobody_holds_end(sandbox):
    kept = States(sandbox)
    kept.run("x = 1")
    [session] = kept._live.values()
    del kept
    assert session.lost


def test_many_threads_on_one_state(kept):
    kept.run("x = 6")
    said = {}

    def ask(n):
        said[n] = kept.run(f"print(x * {n})", ["x = 6"]).text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {n: f"{6 * n}\n" for n in range(8)}


def test_one_that_dies_of_its_family_is_built_again(kept):
    kept.run("x = 6")
    [session] = kept._live.values()
    session._family.end("as if a sibling had forked unasked")
    assert kept.run("print(x)", ["x = 6"]).text == "6\n"


def test_a_history_without_end_is_refused(kept):
    result = kept.run("print(1)", ["pass"] * 1000)
    assert not result.ok
    assert "200 programs" in result.text


def test_a_session_that_was_dropped_meanwhile_is_no_trouble(kept, monkeypatch):
    kept.run("x = 6")
    real, calls = Session.fork, []

    def fork(session):
        calls.append(session)
        if len(calls) == 1:
            session.close()  # by another thread
        return real(session)

    monkeypatch.setattr(Session, "fork", fork)
    assert kept.run("print(x)", ["x = 6"]).text == "6\n"
