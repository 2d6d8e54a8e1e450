"""`abduce diffadapt fit`: from a file of problems to a probe that the recipe then uses."""

import json

import pytest

from abduce.orchestrator import cli, recipe, solve
from abduce.orchestrator.commands import diffadapt
from abduce.serving.errors import EngineError
from abduce.serving.scripted import Scripted
from abduce.strategies.diffadapt.file import load

RECIPE = """\
name: sums
model: embedded
policy: {preset: plain, answer_kind: number, sampling: {max_tokens: 40}}
pipeline:
  - solve: {strategy: diffadapt}
"""
KINDS = ("easy", "normal", "hard")


def kind_of(request):
    return next((kind for kind in KINDS if f"{kind} question" in str(request.prompt)), "normal")


def solved(request, seed):
    """Hard questions are never solved, others always; in the normal way at some length."""
    thoughts = "One thing, then another, and so on. " if "systematically" in str(request.prompt) else ""
    return thoughts + ("The answer is 5" if kind_of(request) == "hard" else "The answer is 4")


def unsure(request):
    return {"easy": (-0.7, -0.7), "normal": (-0.001, -9.0), "hard": (-0.7, -0.8)}[kind_of(request)]


def state(request):
    wobble = len(str(request.prompt)) % 7 / 50
    return tuple(float(kind_of(request) == kind) + wobble for kind in KINDS)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    engine = Scripted(solved, hidden=state, top_logprobs=unsure)
    monkeypatch.setattr(solve, "_engine", lambda spec: engine)
    (tmp_path / "r.yaml").write_text(RECIPE)
    rows = [{"question": f"{KINDS[i % 3]} question {'x' * (i % 11)}{i}", "answer": "4"} for i in range(60)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def fit(capsys, *words):
    code = cli.main(["diffadapt", "fit", "data.jsonl", "--recipe", "r.yaml", "--samples", "3", *words])
    return code, *capsys.readouterr()


def test_a_probe_is_fitted_and_used(capsys):
    code, out, err = fit(capsys)
    assert code == 0, err
    assert "labels (gold, proxy): " in out and "tau: " in out
    assert "--set strategy.probe=probe.json" in err
    probe = load("probe.json")
    assert probe.n_features == 3 and probe.report["confusion"]
    worths = probe.report["utility"]
    assert worths["oracle"] >= worths["probe"] > worths["normal"]
    pipeline = recipe.load("r.yaml", ["strategy.probe=probe.json"])
    told = {kind: pipeline.solve(f"a {kind} question").diagnostics for kind in KINDS}
    assert {facts["why"] for facts in told.values()} == {"probe"}
    assert told["hard"]["mode"] == "hard"


def test_labels_may_be_the_oracles_features_those_of_the_text_and_right_the_most_frequent(capsys):
    code, out, err = fit(capsys, "--labels", "oracle", "--features", "text", "--pseudo", "--out", "t.json")
    assert code == 0, err
    assert "labels (pseudo, oracle)" in out
    assert load("t.json").signature.kind == "text"


def test_the_file_is_sealed_with_the_key_that_is_named(capsys, monkeypatch):
    code, _, err = fit(capsys, "--key-env", "PROBE_KEY")
    assert code == 2 and "PROBE_KEY is not set" in err
    monkeypatch.setenv("PROBE_KEY", "a long secret key")
    assert fit(capsys, "--key-env", "PROBE_KEY")[0] == 0
    load("probe.json", key="a long secret key")


def test_what_was_solved_is_not_solved_again_and_the_probe_is_the_same(capsys, tmp_path, monkeypatch):
    assert fit(capsys, "--rows", "whole.jsonl", "--out", "whole.json")[0] == 0
    asked = 0

    def fails_half_way(request, seed):
        nonlocal asked
        asked += 1
        if asked == 50:
            raise EngineError("the server is gone")
        return solved(request, seed)

    engine = Scripted(fails_half_way, hidden=state, top_logprobs=unsure)
    monkeypatch.setattr(solve, "_engine", lambda spec: engine)
    code, _, err = fit(capsys, "--rows", "rows.jsonl")
    assert code == 1 and "the server is gone" in err
    assert "Go on with the same command and: --rows rows.jsonl --resume" in err
    kept = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(kept + '{"id": "torn')
    n_kept, before = kept.count("\n") - 1, asked
    assert 0 < n_kept < 60
    assert f"{n_kept} problems are in rows.jsonl" in err

    code, _, err = fit(capsys, "--rows", "rows.jsonl", "--resume")
    assert code == 0, err
    assert (tmp_path / "probe.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    rows = [json.loads(row) for row in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows[1:]}) == len(rows) - 1 == 60
    done = asked
    assert fit(capsys, "--rows", "rows.jsonl", "--resume")[0] == 0
    assert before < done == asked


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(work):
        work.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(diffadapt, "wait_for", interrupted)
    code, _, err = fit(capsys)
    assert code == 130
    assert "0 problems are in " in err and "data-diffadapt-1.jsonl --resume" in err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--resume"], "--rows FILE"),
        (["--rows", "data.jsonl"], "Add --resume"),
        (["--rows", "data.jsonl", "--resume"], "no file of `abduce diffadapt fit`"),
        (["--strategy", "chain_of_thought"], "--strategy diffadapt"),
        (["--limit", "10"], "at least 20"),
        (["--out", "no/such/folder/p.json"], "Cannot write"),
    ],
)
def test_mistakes_are_told_with_what_to_write(capsys, words, hint):
    code, _, err = fit(capsys, *words)
    assert code == 2 and hint in err


def test_an_engine_that_tells_no_states_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(solve, "_engine", lambda spec: Scripted("4", top_logprobs=unsure))
    code, _, err = fit(capsys)
    assert code == 2 and "hidden" in err
