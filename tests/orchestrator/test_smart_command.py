"""`abduce smart`: train, learn from kept runs, look, carry elsewhere."""

import json

import pytest

from abduce.orchestrator import solve
from abduce.orchestrator.cli import main
from abduce.serving.scripted import Scripted
from abduce.strategies.smart.log import Log

CODE = "def solution():\n    return 7 * 8"


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A place of its own, and a model that can only write programs."""
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "home"))

    def reply(request, seed):
        prompt = request.prompt.prefix
        return CODE if "def solution" in prompt else "The answer is 1."

    monkeypatch.setattr(solve, "_engine", lambda spec: Scripted(reply))
    rows = [{"question": f"What is 7 x 8? ({i})", "answer": "56"} for i in range(6)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def smart(*words):
    return main(["smart", *map(str, words)])


def test_training_learns_from_every_problem_and_tells_what(home, capsys):
    router = home / "router.jsonl"
    assert smart("train", router, home / "data.jsonl", "--recipe", "smart-math", "--parallel", "2") == 0
    shown = capsys.readouterr()
    rows = Log(router).rows()
    assert {row.model for row in rows} == {"embedded"} and {row.trace for row in rows} == set("123456")
    assert all(row.y == (row.arm == "pot") for row in rows) and "6 problems" in shown.out
    assert all("answer" not in row.text for row in rows if row.arm == "pot")
    assert smart("export", router, home / "out", "--select", "all") == 0
    first = json.loads((home / "out" / "sft.jsonl").read_text().splitlines()[0])
    assert first["messages"][2]["content"] == f"<strategy>pot</strategy>\n{CODE}"
    assert smart("rebuild", router, home / "new.jsonl") == 0
    assert Log(home / "new.jsonl").router().pulls == Log(router).router().pulls
    assert smart("reset", router) == 0 and not router.exists()


def test_a_kept_run_is_learnt_from_once_with_the_users_word(home, capsys):
    router = home / "router.jsonl"
    assert main(["solve", "What is 7 x 8?", "--recipe", "smart-math", "--no-trace"]) == 0
    assert smart("learn", router, "last") == 2  # nobody has said whether it was right
    assert smart("learn", router, "last", "--outcome", "right") == 0
    [row] = Log(router).rows()
    assert (row.y, row.kind, row.c) == (1, "user", 1.0)
    assert smart("learn", router, "last", "--outcome", "wrong") == 2
    assert "already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stats", "nowhere.jsonl"), "no router"),
        (("learn", "r.jsonl", "last", "--outcome", "maybe"), "right or wrong"),
        (("train", "r.jsonl", "data.jsonl", "--recipe", "one-sample-math"), "smart"),
        (("train", "r.jsonl", "data.jsonl", "--recipe", "smart-math", "--gamma", "much"), "number"),
        (("train", "r.jsonl", "data.jsonl", "--recipe", "smart-math", "--learn", "some"), "first_only"),
    ],
)
def test_mistakes_are_told(home, monkeypatch, capsys, words, said):
    monkeypatch.chdir(home)
    assert smart(*words) == 2
    assert said in capsys.readouterr().err
