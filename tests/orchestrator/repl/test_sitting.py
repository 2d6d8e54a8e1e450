"""A sitting without a terminal: what commands do, and the laws of stepping, going back and forking."""

import asyncio
import threading

import pytest
from talking import Talk, shown

from abduce.orchestrator.trace import comparable, read
from abduce.serving.errors import UsageError
from abduce.serving.synthetic import Synthetic

STRATEGIES = ["particle_filter", "a_star", "dvts", "mcts", "self_consistency", "best_of_n"]
SAME = "The same in all"


@pytest.fixture
def counted(monkeypatch):
    """Counts the calls that reach the engine."""
    calls = []
    wait = Synthetic._wait

    async def counting(self):
        calls.append(1)
        await wait(self)

    monkeypatch.setattr(Synthetic, "_wait", counting)
    return calls


class Held:
    """An engine that answers only once it is let go, after so many calls."""

    def __init__(self, monkeypatch, after):
        self.free = threading.Event()
        self.reached = threading.Event()
        self.calls = 0
        held = self

        async def wait(engine):
            held.calls += 1
            if held.calls > after:
                held.reached.set()
                await asyncio.to_thread(held.free.wait, 20)

        monkeypatch.setattr(Synthetic, "_wait", wait)


# ------------------------------------------------------------ stepping


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_stepping_through_a_search_gives_what_running_gives(talk, strategy):
    here = talk(strategy)
    here.say("write abc", "break on steps >= 1", "write abc")
    assert here.sitting.current.state == "paused"
    for _ in range(200):
        if here.sitting.current.state == "ended":
            break
        before = here.sitting.current.steps
        here.say("step")
        assert here.sitting.current.steps == before + 1
    assert SAME in here.say("compare A B")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_going_back_and_on_gives_the_same_and_repeats_no_call(talk, counted, strategy):
    here = talk(strategy)
    here.say("write abc")
    n_calls, steps = len(counted), here.sitting.current.steps
    here.say("back 2")
    assert here.sitting.current.steps == steps - 2
    assert here.sitting.current.state == "paused"
    assert len(counted) == n_calls  # what was known has been replayed
    here.say("run")
    assert SAME in here.say("compare A B")
    assert n_calls < len(counted) < 2 * n_calls


def test_a_step_is_one_batch(talk):
    here = talk({"name": "particle_filter", "particles": 4})
    here.say("break on steps >= 1", "write abc")
    branch = here.sitting.current
    assert branch.view.usage.calls == 1  # four samples of one prompt
    here.say("step")
    assert 1 < branch.view.usage.calls <= 5  # their scores
    here.say("step 2")
    assert branch.steps == 4


def test_the_stored_trace_is_the_one_that_was_shown(talk):
    here = talk()
    here.say("write abc", "back 3", "step 2", "run")
    for branch in here.sitting.branches.values():
        file = here.sitting.store.open(branch.run).trace
        if branch.state == "ended":
            assert comparable(read(file)) == comparable(branch.rows())


def test_a_run_that_has_ended_goes_no_further(talk):
    here = talk()
    here.say("write abc")
    with pytest.raises(UsageError, match=r"Run A has ended\. Go back"):
        here.say("step")
    with pytest.raises(UsageError, match="not going on: it ended"):
        here.say("pause")


# ------------------------------------------------------------ Ctrl-C


def test_ctrl_c_pauses_before_the_next_step_and_loses_nothing(talk, monkeypatch):
    held = Held(monkeypatch, after=6)
    here = talk()
    here.sitting.do("write abc")
    assert held.reached.wait(20)
    assert here.sitting.interrupt() is None
    assert here.sitting.current.state == "pausing"
    held.free.set()
    assert here.sitting.wait(20)
    branch = here.sitting.current
    assert branch.state == "paused"
    assert len(branch.rows()) >= branch.marks[-1]
    here.say("run", "write abc")
    assert SAME in here.say("compare A B")


def test_a_second_ctrl_c_cuts_calls_off_and_run_goes_on(talk, monkeypatch):
    held = Held(monkeypatch, after=10)
    here = talk()
    here.sitting.do("write abc")
    assert held.reached.wait(20)
    here.sitting.interrupt()
    here.sitting.interrupt()
    assert here.sitting.current.state == "stopped"
    answered = here.sitting.current.view.usage.calls
    held.free.set()
    before = held.calls
    here.say("run")
    assert here.sitting.current.state == "ended"
    assert held.calls - before == here.sitting.current.view.usage.calls - answered  # none twice
    assert here.say("runs").count("ended") == 1


def test_ctrl_c_with_nothing_going_on_only_says_so(talk):
    here = talk()
    assert "Nothing is going on" in shown(here.sitting.interrupt())


def test_a_new_problem_pauses_the_run_before(talk, monkeypatch):
    held = Held(monkeypatch, after=6)
    here = talk()
    here.sitting.do("write abc")
    assert held.reached.wait(20)
    threading.Timer(0.05, held.free.set).start()
    here.say("write cba")
    a, b = here.sitting.branches.values()
    assert (a.state, b.state) == ("paused", "ended")
    assert here.sitting.unfinished() == [a]
    here.say("goto A", "run")
    assert a.state == "ended"


# ------------------------------------------------------------ back, fork, goto


def test_fork_goes_on_with_other_values_and_keeps_what_fits(talk, counted):
    here = talk({"name": "particle_filter", "particles": 4})
    here.say("write abc", "back 3", "fork particles=4 seed=0")
    assert here.sitting.current.steps == here.sitting.branches["B"].steps  # nothing has changed
    n_calls = len(counted)
    here.say("goto B", "fork strategy=a_star k=4")
    branch = here.sitting.current
    assert branch.parent == "B"
    assert branch.record["recipe"]["strategy"] == {"name": "a_star", "k": 4}
    assert branch.steps <= here.sitting.branches["B"].steps
    assert len(counted) == n_calls
    here.say("run")
    assert branch.state == "ended"
    told = here.say("compare A D")
    assert "hey part at" in told
    assert "particle_filter   a_star" in told


def test_set_holds_for_forks_and_for_what_is_asked_next(talk):
    here = talk("a_star")
    here.say("write abc", "back", "set k=2", "fork")
    assert here.sitting.current.record["recipe"]["strategy"] == {"name": "a_star", "k": 2}
    here.say("goto A", "back", "fork")  # what was set holds for a fork of what was gone back to, too
    assert here.sitting.current.record["recipe"]["strategy"] == {"name": "a_star", "k": 2}
    here.say("fork strategy=beam")
    assert here.sitting.current.record["recipe"]["strategy"] == "beam"
    here.say("strategy beam", "budget 500 tokens", "write abc")
    recipe = here.sitting.current.record["recipe"]
    assert recipe["strategy"] == "beam"
    assert recipe["budget"] == {"tokens": 500}
    assert "no limit" in here.say("budget off")


def test_goto_a_node_is_the_moment_at_which_it_was_found(talk):
    here = talk()
    here.say("write abc")
    n_nodes = len(here.sitting.current.view.nodes)
    for number in (1, n_nodes // 2, n_nodes):
        here.say("goto A", f"goto {number}")
        nodes = here.sitting.current.view.nodes
        assert len(nodes) >= number
        here.say("back")
        assert len(here.sitting.current.view.nodes) < number
    here.say("goto A", "goto 3")
    there = here.sitting.current
    here.say("goto A", f"goto {there.name}:{len(there.view.nodes)}")
    assert here.sitting.current is there
    with pytest.raises(UsageError, match="stands there already"):
        here.say(f"goto {len(there.view.nodes)}")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("back 99", "back takes 1 to"),
        ("goto 999", r"No node '999' in run A\. It has nodes 1 to"),
        ("goto Z", r"No node 'Z'"),
        ("show B:1", "No run named 'B'"),
        ("compare A", "compare takes RUN RUN"),
        ("compare A B", "No run named 'B'"),
        ("fork nonsense", r"write key=value, e\.g\. fork"),
        ("fork particels=4", "Did you mean 'particles'"),
        ("fork k='4", "No closing quotation"),
        ("set strategy=beem", "Did you mean 'beam'"),
        ("model embeded", "Did you mean 'embedded'"),
        ("tools calculater", "Did you mean 'calculator'"),
        ("check numerik=4", "numeric"),
        ("break score > 1", "write break on score > 1"),
        ("break off 3", "There is no breakpoint 3"),
        ("answer yes", "Nothing was asked"),
        ("memory x", "The recipe has no memory"),
        ("export tree.txt", r"must end with .json, .graphml, .jsonl"),
        ("export nowhere/tree.json", "Cannot write"),
        ("save nowhere/x", "Cannot write"),
        ("replay nowhere/x", "No sitting to read"),
        ("close", "no replay to close"),
        ("help frok", "Did you mean 'fork'"),
        ("budget many", "budget"),
        ("solve", "What is to be solved"),
    ],
)
def test_mistakes_are_told_and_change_nothing(talk, tmp_path, monkeypatch, line, told):
    monkeypatch.chdir(tmp_path)
    here = talk()
    here.say("write abc")
    log = list(here.sitting.log)
    with pytest.raises(UsageError, match=told):
        here.say(line)
    assert here.sitting.log == log
    assert list(here.sitting.branches) == ["A"]


@pytest.mark.parametrize("line", ["step", "run", "back", "fork", "goto 1", "show 1", "tree", "export x.json"])
def test_commands_that_need_a_run_ask_for_one(talk, line):
    with pytest.raises(UsageError, match="There is no run yet"):
        talk().say(line)


# ------------------------------------------------------------ breakpoints, questions, failures


def test_breakpoints_stop_where_their_condition_becomes_true(talk):
    here = talk("a_star")
    here.say("break on depth >= 2", "write abc")
    branch = here.sitting.current
    assert "break on depth >= 2" in here.told()
    assert max(node.depth for node in branch.view.nodes) == 2
    here.say("break off", "break on calls >= 8", "run")
    calls = branch.view.usage.calls
    assert calls >= 8
    here.say("run")
    assert branch.state == "ended"  # it holds ever since, and stops no more
    assert "1 stops on calls >= 8" in here.say("break")
    assert "no breakpoints" in here.say("break off 1")


GRAPH = {
    "name": "asks",
    "model": {"engine": "synthetic", "depth": 2},
    "nodes": {
        "solve": {"solve": {"strategy": "chain_of_thought"}},
        "ask": {"ask": {"question": "Right?", "choices": ["yes", "no"], "use": "verdict"}},
    },
    "edges": ["solve -> ask"],
}


def test_a_recipe_of_several_nodes_is_stepped_through_and_asks(talk):
    here = Talk(talk().sitting.store, GRAPH)
    here.say("break on ask", "write abc")
    branch = here.sitting.current
    assert branch.state == "paused"
    assert [name for name, _ in branch.visits] == ["solve", "ask"]
    here.say("run")
    assert branch.state == "asking"
    assert "? A asks: Right? (yes or no)" in here.told()
    with pytest.raises(UsageError, match=r"waits for an answer"):
        here.say("run")
    with pytest.raises(UsageError, match=r"Answer one of: yes, no\."):
        here.say("maybe")
    assert branch.state == "asking"
    here.say("No")
    assert branch.state == "ended"
    assert branch.view.ended.diagnostics["verified"] is False
    here.say("back", "run", "answer yes")
    assert here.sitting.current.view.ended.diagnostics["verified"] is True
    here.sitting.close()


def test_a_run_that_fails_says_why_and_can_be_tried_again(talk, monkeypatch):
    here = talk()

    async def broken(self):
        raise UsageError("Start the server first.")

    with monkeypatch.context() as patch:
        patch.setattr(Synthetic, "_wait", broken)
        here.say("write abc")
    assert here.sitting.current.state == "failed"
    assert "Start the server first." in here.told()
    here.say("run")
    assert here.sitting.current.state == "ended"


def test_a_reward_with_nothing_to_check_is_told_before_the_run(talk):
    here = talk()
    here.say("set reward=checks")
    with pytest.raises(UsageError, match="check numeric=72"):
        here.say("24 x 3")
    here.say("check numeric=72", "24 x 3")
    assert here.sitting.current.state == "ended"
