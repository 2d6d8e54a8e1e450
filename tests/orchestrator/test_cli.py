"""The command line as a user meets it: what is printed where, exit codes, mistakes, interrupts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import networkx
import pytest

from abduce.orchestrator import cli
from abduce.orchestrator.commands.options import parse_checks
from abduce.strategies import STRATEGIES
from abduce.strategies.base import Check

RECIPE = """\
name: scripted
model: {engine: scripted, replies: {"7 x 8": [The answer is 54, The answer is 56], "": The answer is 1}}
reward: checks
strategy: {name: best_of_n, n: 4}
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Runs are kept, and relative files looked for, in a folder of the test's own."""
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)


def abduce(capsys, *words):
    """Exit code, standard output, standard error."""
    code = cli.main(words)
    return code, *capsys.readouterr()


def solve(capsys, *words):
    return abduce(capsys, "solve", "7 x 8 =", "--recipe", "r.yaml", "--check", "numeric=56", *words)


# ---------------------------------------------------------------- solve, trace, runs, resume


def test_the_answer_goes_to_standard_output_and_all_else_to_standard_error(capsys):
    code, out, err = solve(capsys)
    assert (code, out) == (0, "56\n")
    assert "7 x 8 =" in err
    assert "abduce trace show" in err


def test_no_trace_shows_no_search(capsys):
    code, out, err = solve(capsys, "--no-trace")
    assert (code, out) == (0, "56\n")
    assert len(err.splitlines()) == 1


def test_json_is_json_and_nothing_else(capsys):
    code, out, err = solve(capsys, "--json")
    result = json.loads(out)
    assert (code, err) == (0, "")
    assert result["answer"] == "56"
    assert result["complete"] is True
    assert result["usage"]["calls"] >= 1
    assert len(result["candidates"]) == 4
    assert result["run"]


def test_options_replace_parts_of_the_recipe(capsys):
    code, out, _ = solve(capsys, "--json", "--set", "n=2", "--seed", "5", "--budget", "9k tokens, 9 calls")
    run = json.loads(out)["run"]
    record = json.loads((Path(os.environ["ABDUCE_HOME"]) / "runs" / run / "run.json").read_text())
    assert (code, record["seed"], record["recipe"]["strategy"]["n"]) == (0, 5, 2)
    assert record["recipe"]["budget"] == {"tokens": 9000, "calls": 9}


def test_a_run_is_listed_and_shown_afterwards(capsys):
    run = json.loads(solve(capsys, "--json")[1])["run"]
    code, out, _ = abduce(capsys, "runs")
    assert code == 0
    assert run in out
    assert "complete" in out
    for name in (run, run[:-2], "last"):
        code, out, _ = abduce(capsys, "trace", "show", name)
        assert code == 0
        assert out.startswith("7 x 8 =")
        assert "✓" in out
        assert "answer: 56" in out
    file = Path(os.environ["ABDUCE_HOME"]) / "runs" / run / "trace.jsonl"
    assert abduce(capsys, "trace", "show", str(file))[1] == out


def test_a_run_is_exported_as_a_graph(capsys):
    solve(capsys)
    code, out, _ = abduce(capsys, "trace", "export", "last")
    graph = networkx.node_link_graph(json.loads(out), edges="edges")
    assert code == 0
    assert sorted(score for _, score in graph.nodes(data="score")) == [0.0, 0.0, 1.0, 1.0]
    assert [text for _, facts in graph.nodes(data=True) if facts["best"] for text in [facts["text"]]] == [
        "The answer is 56"
    ]
    code, out, _ = abduce(capsys, "trace", "export", "last", "--format", "graphml")
    assert code == 0
    assert networkx.parse_graphml(out).number_of_nodes() == 4


def test_resuming_a_finished_run_repeats_no_call(capsys):
    first = json.loads(solve(capsys, "--json")[1])
    code, out, _ = abduce(capsys, "resume", "last", "--json")
    assert code == 0
    assert json.loads(out) == first


def test_no_runs_yet_is_said(capsys):
    code, out, _ = abduce(capsys, "runs")
    assert code == 0
    assert "No runs" in out


def test_a_failing_engine_is_exit_code_1_with_the_reason(capsys):
    code, out, err = solve(capsys, "--set", "model.replies=[]")
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    assert "incomplete" in err or "failed" in err


def test_an_empty_budget_is_exit_code_1_and_says_so(capsys):
    code, _, err = solve(capsys, "--budget", "0 calls")
    assert code == 1
    assert "budget of 0 calls is used up" in err


def test_the_question_may_come_from_standard_input(capsys, monkeypatch):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("7 x 8 =\n"))
    code, out, _ = abduce(capsys, "solve", "-", "--recipe", "r.yaml", "--check", "numeric=56")
    assert (code, out) == (0, "56\n")


def test_the_models_text_is_printed_as_text_with_its_lines(capsys):
    replies = r'model.replies="a\x1b[31m\u202e\n    b\x07"'
    _, out, _ = solve(capsys, "--set", "policy.answer_kind=boxed", "--set", replies)
    assert out == "a [31m \n    b \n"


@pytest.mark.parametrize("name", ["run.json", "result.json"])
@pytest.mark.parametrize("text", ['{"run": ', "[1]", "\xff"])
def test_a_damaged_run_is_listed_as_such_and_hides_no_other(capsys, name, text):
    runs = Path(os.environ["ABDUCE_HOME"]) / "runs"
    whole, torn = (json.loads(solve(capsys, "--json")[1])["run"] for _ in range(2))
    (runs / torn / name).write_text(text, "latin-1")
    code, out, _ = abduce(capsys, "runs")
    states = {line.split()[0]: line.split()[3] for line in out.splitlines()[1:]}
    assert (code, states) == (0, {whole: "complete", torn: "damaged"})


@pytest.mark.parametrize("text", ["{", "{}", '{"task": {"question": "x"}, "seed": 0}'])
def test_a_damaged_run_cannot_go_on(capsys, text):
    run = json.loads(solve(capsys, "--json")[1])["run"]
    (Path(os.environ["ABDUCE_HOME"]) / "runs" / run / "run.json").write_text(text)
    code, _, err = abduce(capsys, "resume", "last")
    assert code == 2
    assert f"Run {run} is damaged" in err


def test_a_run_with_python_objects_anywhere_goes_on_only_in_python(capsys):
    from abduce.orchestrator.commands.solve import store
    from abduce.orchestrator.solve import solve as from_python
    from abduce.serving.scripted import Scripted

    words = {"reward": {"kind": "judge"}, "models": {"reward": Scripted("VERDICT: 7")}}
    from_python("7 x 8 =", model={"engine": "scripted", "replies": "56"}, store=store(), **words)
    code, _, err = abduce(capsys, "resume", "last")
    assert code == 2
    assert "models.reward=<Scripted object>" in err


@pytest.mark.parametrize(
    "row",
    [
        '{"event":"called","path":[]}',
        '{"event":["x"],"path":[]}',
        '{"event":"run_started","path":[],"run":"r","question":5,"seed":0}',
        '{"event":"noted","path":[0,0],"note":"nodes","t":0,"data":{"nodes":[{"id":[]}]}}',
        '{"event":"noted","path":[0,0],"note":"resample","t":0,"data":{"nodes":[1],"ancestors":[3]}}',
        '{"event":"run_ended","path":[],"answer":1,"complete":1,"usage":{},"t":0,"diagnostics":{"path":[[]]}}',
        '{"event":"run_ended","path":[],"answer":1,"complete":1,"usage":{"calls":"x"},"t":0}',
    ],
)
@pytest.mark.parametrize("verb", ["show", "export"])
def test_a_malformed_event_is_named_by_file_and_line(capsys, tmp_path, verb, row):
    (tmp_path / "t.jsonl").write_text('{"event":"later","path":[]}\n' + row + "\n")
    code, out, err = abduce(capsys, "trace", verb, "t.jsonl")
    assert (code, out) == (2, "")
    assert "t.jsonl:2 is not a trace event" in err


def test_graphml_is_well_formed_whatever_the_model_says(capsys):
    solve(capsys, "--set", r'model.replies="\x1b[31m \ufffe The answer is 56"')
    code, out, _ = abduce(capsys, "trace", "export", "last", "--format", "graphml")
    assert code == 0
    assert "The answer is 56" in networkx.parse_graphml(out).nodes["0"]["text"]


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "COMMAND"),
        (["slove", "x"], "Did you mean 'solve'?"),
        (["solve"], "QUESTION. See: abduce solve --help"),
        (["solve", "  "], "The question is empty"),
        (["solve", "x", "--stratgy", "beam"], "--stratgy"),
        (
            ["solve", "x", "--strategy", "beem"],
            "--strategy beem: No strategy named 'beem'. Did you",
        ),
        (["solve", "x", "--model", "embeded"], "--model embeded: No engine named 'embeded'"),
        (["solve", "x", "--model", "embedded:/no/such.gguf"], "/no/such.gguf"),
        (["solve", "x", "--reward", "self_evil"], "--reward self_evil: No reward named"),
        (["solve", "x", "--policy", "cott"], "--policy cott: No policy named"),
        (["solve", "x", "--budget", "8k bananas"], "--budget 8k bananas: Cannot read the budget"),
        (["solve", "x", "--seed", "many"], "--seed many: must be an integer"),
        (["solve", "x", "--recipe", "nothing"], "No recipe named 'nothing'"),
        (["solve", "x", "--recipe", "no/thing.yaml"], "No recipe file 'no/thing.yaml'"),
        (
            ["solve", "x", "--recipe", "r.yaml", "--set", "m=3"],
            "--set m=3: 'm' is not a parameter of best_of_n",
        ),
        (
            ["solve", "x", "--recipe", "best-of-n-products", "--set", "pipeline.0.solve.m=3"],
            "--set pipeline.0.solve.m=3: 'm' is not a parameter of best_of_n. Allowed: attempts, n, select.",
        ),
        (
            ["solve", "x", "--recipe", "r.yaml", "--check", "numeric"],
            "--check numeric: The check 'numeric' lacks 'value'",
        ),
        (["solve", "x", "--recipe", "r.yaml", "--check", "numerik=3"], "'numeric'"),
        (["solve", "x", "--recipe", "r.yaml"], "check"),
        (["solve", "x", "--check", "numeric={value: 3"], "--check numeric={value: 3: "),
        (["eval", "none.jsonl"], "Cannot read none.jsonl"),
        (["eval", "r.yaml"], "r.yaml:1: not JSON"),
        (["eval", "x", "--limit", "0"], "'0' is not a whole number above 0"),
        (["eval", "x", "--resume"], "--resume needs"),
        (["resume", "nope"], "No run named 'nope'"),
        (["trace", "show", "nope"], "No run named 'nope'"),
        (["trace", "show", "r.yaml"], "r.yaml:1 is not a trace event"),
        (["trace"], "VERB"),
        (["recipe", "check", "none.yaml"], "No recipe file 'none.yaml'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(capsys, words, told):
    code, out, err = abduce(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("abduce: ")
    assert told in err
    assert "Traceback" not in err


def test_state_that_cannot_be_written_is_named(capsys, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "file"))
    code, _, err = solve(capsys)
    assert code == 2
    assert "ABDUCE_HOME" in err


def test_a_recipe_is_checked(capsys, tmp_path):
    assert abduce(capsys, "recipe", "check", "r.yaml")[0] == 0
    (tmp_path / "bad.yaml").write_text(RECIPE + "seeds: 3\n")
    code, _, err = abduce(capsys, "recipe", "check", "bad.yaml")
    assert code == 2
    assert "bad.yaml:5: seeds" in err
    needy = RECIPE.replace("reward: checks", "reward: self_eval")
    (tmp_path / "needy.yaml").write_text(needy)
    code, _, err = abduce(capsys, "recipe", "check", "needy.yaml")
    assert code == 2
    assert "embedded" in err  # an engine that could


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("numeric=56", Check("numeric", {"value": "56"})),
        ("numeric = 5e-1", Check("numeric", {"value": "5e-1"})),
        ("numeric=010", Check("numeric", {"value": "010"})),
        ("equals=yes", Check("equals", {"value": "yes"})),
        ("equals=12:30", Check("equals", {"value": "12:30"})),
        ("choice=no", Check("choice", {"value": "no"})),
        ("numeric={value: 3, tolerance: 1}", Check("numeric", {"value": 3, "tolerance": 1})),
        ("equals=a=b", Check("equals", {"value": "a=b"})),
        ("regex=^[0-9]: [a-z]$", Check("regex", {"pattern": "^[0-9]: [a-z]$"})),
        ("punctuation:no_comma", Check("punctuation:no_comma", {})),
    ],
)
def test_checks_are_read(text, check):
    assert parse_checks([text]) == (check,)


# ---------------------------------------------------------------- tables


def test_every_strategy_is_listed_with_its_idea(capsys):
    code, out, _ = abduce(capsys, "strategies")
    rows = {line.split()[0]: line.split(None, 1)[1] for line in out.splitlines()[1:]}
    assert code == 0
    assert set(rows) == set(STRATEGIES)


def test_the_packaged_recipes_are_listed(capsys):
    code, out, _ = abduce(capsys, "recipe", "list")
    assert code == 0
    assert "best-of-n-products" in out


def test_the_doctor_gives_the_line_that_helps(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ABDUCE_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("ABDUCE_MODEL", raising=False)
    code, out, _ = abduce(capsys, "doctor")
    assert code == 1
    assert "abduce model fetch" in out
    assert str(tmp_path / "state") in out


def test_parts_of_other_packages_are_listed_and_looked_at(capsys, tmp_path, monkeypatch):
    (tmp_path / "guest.py").write_text("class Mine:\n    pass\n")
    about = tmp_path / "guest-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[abduce.strategies]\nmine = guest:Mine\n[abduce.rewards]\nlost = guest:Yours\n"
        "[abduce.policies]\nx = guest:X\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    _, out, _ = abduce(capsys, "strategies")
    assert out.splitlines()[-1].split() == ["mine", "Of", "another", "package", "guest:Mine"]
    _, out, _ = abduce(capsys, "doctor")
    assert "of another package: guest:Mine" in out
    assert "guest:Yours cannot be imported: AttributeError" in out
    assert "use abduce.strategies, abduce.rewards" in out


# ---------------------------------------------------------------- eval


def rows(tmp_path, *pairs):
    lines = []
    for question, value in pairs:
        check = {"id": "numeric", "kwargs": {"value": value}}
        lines.append(json.dumps({"question": question, "checks": [check], "answer": str(value)}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))


def test_eval_prints_figures_and_goes_on_where_it_was_stopped(capsys, tmp_path):
    rows(tmp_path, ("7 x 8 =", 56), ("1 x 1 =", 1), ("2 x 2 =", 4))
    words = ["eval", "data.jsonl", "--recipe", "r.yaml", "--out", "out.jsonl"]
    code, out, _ = abduce(capsys, *words)
    assert code == 0
    assert "0.667  [0.208, 0.939]  (2 of 3)" in out
    assert "calls" in out
    written = (tmp_path / "out.jsonl").read_bytes()
    code, _, err = abduce(capsys, *words)
    assert code == 2
    assert "--resume" in err
    (tmp_path / "out.jsonl").write_bytes(written[:-30])
    code, out, _ = abduce(capsys, *words, "--resume", "--json")
    assert code == 0
    assert json.loads(out)["correct"] == 2
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 4


def test_eval_compares_keeps_runs_and_stops_at_a_total(capsys, tmp_path):
    rows(tmp_path, ("7 x 8 =", 56), ("1 x 1 =", 1), ("2 x 2 =", 4))
    words = ["eval", "data.jsonl", "--recipe", "r.yaml"]
    assert abduce(capsys, *words, "--out", "one.jsonl", "--keep")[0] == 0
    run = json.loads((tmp_path / "one.jsonl").read_text().splitlines()[1])["run"]
    assert "answer:" in abduce(capsys, "trace", "show", run)[1]
    code, out, err = abduce(
        capsys,
        *words,
        "--out",
        "two.jsonl",
        "--against",
        "one.jsonl",
        "--total",
        "1 calls",
        "--parallel",
        "1",
    )
    assert code == 0 and "no difference is shown: 0 gained, 0 lost of 1" in out
    assert "2 of 3 problems were not begun" in err
    code, _, err = abduce(capsys, *words, "--out", "no.jsonl", "--total", "0 calls")
    assert code == 1 and "3 of 3 problems were not begun" in err
    code, _, err = abduce(capsys, *words, "--out", "three.jsonl", "--against", "none.jsonl")
    assert code == 2 and not (tmp_path / "three.jsonl").exists()


# ---------------------------------------------------------------- signals


SLOW = RECIPE.replace("engine: scripted,", "engine: scripted, latency_s: 30,")


def test_ctrl_c_names_the_line_that_goes_on(tmp_path):
    (tmp_path / "slow.yaml").write_text(SLOW)
    words = ["solve", "7 x 8 =", "--recipe", "slow.yaml", "--check", "numeric=56"]
    started = subprocess.Popen(
        [sys.executable, "-m", "abduce", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    runs = tmp_path / "state" / "runs"
    until = time.monotonic() + 20
    while not list(runs.glob("*/trace.jsonl")) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=20)
    [run] = [folder.name for folder in runs.iterdir()]
    assert started.returncode == 130
    assert out == ""
    assert f"abduce resume {run}" in err
    assert "Traceback" not in err


def test_a_reader_that_has_enough_is_no_error():
    shell = f"{sys.executable} -m abduce strategies | head -n 1"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_terminal_without_unicode_is_served():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    words = ["solve", "7 x 8 =", "--recipe", "r.yaml", "--check", "numeric=56"]
    done = subprocess.run(
        [sys.executable, "-m", "abduce", *words], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, "56\n")
    assert "Traceback" not in done.stderr
