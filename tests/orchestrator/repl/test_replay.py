"""Saved sittings: shown again without an engine, and saved again byte for byte."""

import orjson
import pytest
from talking import Talk, shown

from abduce.orchestrator.repl import player, sitting
from abduce.orchestrator.runs import Runs
from abduce.serving import redact
from abduce.serving.errors import UsageError

SITTING = (
    *("break on depth >= 2", "write abc", "show 2", "break off", "step 2", "run", "tree", "back 3"),
    *("fork strategy=a_star k=2", "step", "run", "runs", "compare A C", "goto A", "goto 2", "help fork"),
)


@pytest.fixture
def saved(talk, tmp_path):
    """A sitting that has been saved, what it showed and told, and the file."""
    here = talk()
    parts = [here.say(line) for line in SITTING]
    here.say(f"save {tmp_path / 'sitting'}")
    return here, parts, tmp_path / "sitting"


@pytest.fixture
def replay(saved, tmp_path, monkeypatch):
    """A replay of it, by somebody who has no engine, nor any of its runs."""
    recipe = {"name": "run", "model": "scripted:nothing", "strategy": "chain_of_thought"}
    here = Talk(Runs(tmp_path / "elsewhere"), recipe)

    def refused(*_, **__):
        raise AssertionError("a replay needs no engine")

    monkeypatch.setattr(player.Player, "__init__", refused)
    monkeypatch.setattr(sitting, "again", refused)
    here.say(f"replay {saved[2]}")
    return here


def test_a_replay_saved_again_is_the_same_byte_for_byte(saved, replay, tmp_path):
    replay.say("run", f"save {tmp_path / 'again'}")
    assert (tmp_path / "again").read_bytes() == saved[2].read_bytes()
    replay.say("close", f"replay {tmp_path / 'again'}", "step 5", f"save {tmp_path / 'once-more'}")
    assert (tmp_path / "once-more").read_bytes() == saved[2].read_bytes()


def test_a_replay_shows_what_was_shown(saved, replay):
    here, parts, _ = saved
    replay.say("run")
    told = replay.told()
    for line, part in zip(SITTING, parts, strict=True):
        assert f"▸ {line}\n" in told
        if line.split()[0] in ("show", "tree", "runs", "compare", "help"):
            assert part in told
    assert here.told() != ""
    for name in here.sitting.branches:
        again = replay.sitting.front.branches[name]
        branch = here.sitting.branches[name]
        assert again.rows() == branch.rows()
        assert (again.state, again.marks, again.parent) == (branch.state, branch.marks, branch.parent)
        assert replay.say(f"tree {name}") == here.say(f"tree {name}")
    assert replay.say("compare A C") == here.say("compare A C")
    assert replay.say("runs") == here.say("runs")


def test_a_replay_goes_step_by_step_and_back(replay):
    moves = replay.sitting.replay.moves
    pictures = []
    for _ in moves:
        replay.say("step")
        pictures.append(replay.say("runs"))
    with pytest.raises(UsageError, match="at its end"):
        replay.say("step")
    for i in range(len(moves) - 2, -1, -1):
        replay.say("back")
        assert replay.say("runs") == pictures[i]
    replay.say("back 99")
    assert "No run yet" in replay.say("runs")
    replay.told()
    replay.say("step 3")
    assert replay.told().startswith("abduce▸ break on")


def test_a_replay_goes_to_a_node(replay):
    replay.say("run")
    n_nodes = len(replay.sitting.front.branches["A"].view.nodes)
    for number in (1, n_nodes, 3):
        replay.say(f"goto A:{number}")
        assert len(replay.sitting.front.branches["A"].view.nodes) >= number
        replay.say("back")
        assert len(replay.sitting.front.branches["A"].view.nodes) < number
        replay.say("step")
    with pytest.raises(UsageError, match=f"In the end it has {n_nodes}"):
        replay.say("goto A:999")


def test_an_empty_sitting_can_be_kept(talk, tmp_path):
    here = talk()
    here.say(f"save {tmp_path / 'one'}", f"replay {tmp_path / 'one'}", f"save {tmp_path / 'two'}")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("line", ["24 x 3", "fork k=2", "set k=2", "strategy beam", "break on failure"])
def test_a_replay_changes_nothing(replay, line):
    replay.say("run")
    with pytest.raises(UsageError, match=r"this is a replay\. Write close"):
        replay.say(line)


def test_looking_around_and_leaving(saved, replay, tmp_path):
    replay.say("step 9", "goto A", "show", "calls", "budget", f"export {tmp_path / 'x.json'}")
    assert "Nothing is going on" in shown(replay.sitting.interrupt())
    assert "is closed" in replay.say("close")
    assert replay.sitting.front is replay.sitting


def test_the_file_holds_commands_records_journals_and_events(saved):
    here, _, file = saved
    rows = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    assert [row["typed"] for row in rows if "typed" in row] == list(SITTING)
    for name, branch in here.sitting.branches.items():
        [head] = [row for row in rows if row.get("run") == name]
        assert head["record"]["task"]["question"] == "write abc"
        events = [row["event"] for row in rows if row.get("of") == name and "event" in row]
        assert events == branch.rows()
        replies = [row for row in rows if row.get("of") == name and "reply" in row]
        assert len(replies) >= sum(row["event"] == "called" for row in events)


def test_secrets_are_left_out(talk, tmp_path):
    here = talk()
    redact.register("hush-hush-4711")
    here.say("write hush-hush-4711", f"save {tmp_path / 'sitting'}", f"export {tmp_path / 'x.jsonl'}")
    assert "hush-hush" not in (tmp_path / "x.jsonl").read_text() + here.say("show A", "show 1", "tree")
    text = (tmp_path / "sitting").read_text()
    assert "hush-hush" not in text
    assert redact.MARK in text
    again = Talk(Runs(tmp_path / "elsewhere"), {"name": "x", "strategy": "chain_of_thought"})
    again.say(f"replay {tmp_path / 'sitting'}", "run", f"save {tmp_path / 'again'}")
    assert (tmp_path / "again").read_text() == text


def damaged(text):
    yield "", "sitting:1 is not part"
    yield "hello", "sitting:1 is not part"
    yield "[]", "sitting:1 is not part"
    yield text.replace('"sitting":1', '"sitting":2', 1), "cannot read"
    yield text[: len(text) // 2], r"sitting:\d+ is not part"
    yield text.replace('"of":"A"', '"of":"Q"', 1), r"sitting:\d+ is not part"
    yield text.replace('"typed":"tree"', '"tipped":"tree"', 1), r"sitting:\d+ is not part"
    yield text.replace('"current":"A"', '"current":"Q"'), "damaged"
    yield text.replace('"event":"noted"', '"event":"called"'), "damaged"
    yield text.replace('"at":{"A":', '"at":{"Q":'), "damaged"


def test_a_damaged_file_is_told_in_one_line(saved):
    here, _, file = saved
    for text, told in damaged(file.read_text()):
        file.write_text(text)
        with pytest.raises(UsageError, match=told) as error:
            here.say(f"replay {file}", "run")
        assert "\n" not in str(error.value)
        here.sitting.replay = None
