"""`abduce vote calibrate`: what it prints goes into a recipe, and says whether re-weighting gains."""

import json
from random import Random

import pytest
import yaml

from abduce.orchestrator import cli, solve
from abduce.orchestrator.recipe import read
from abduce.serving.flow import Completion
from abduce.serving.scripted import Scripted

RECIPE = """\
name: votes
model: embedded
policy: {preset: plain, answer_kind: number}
pipeline:
  - solve: {strategy: reweighted_vote, n: 8}
"""


def model(signal):
    """Solutions whose wrong ones are `signal` times longer."""

    def reply(request, seed):
        rng = Random(seed)
        said = []
        for _ in range(request.n):
            right = rng.random() < 0.45
            answer = "7" if right else rng.choices(["3", "4", "5"], [6, 3, 1])[0]
            length = int(200 * rng.lognormvariate(0, 0.3) * (1 if right else signal))
            said.append(Completion(f"It is {answer}", n_tokens=length))
        return said

    return Scripted(reply)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    rows = [json.dumps({"question": f"question {i}", "answer": "7"}) for i in range(60)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows) + "\n")


def calibrate(capsys, monkeypatch, signal, *words):
    monkeypatch.setattr(solve, "_engine", lambda spec: model(signal))
    code = cli.main(["vote", "calibrate", "data.jsonl", *words])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("use", ["weights", "filter", "calibrated"])
def test_what_is_printed_is_what_a_recipe_takes_and_re_weights_where_that_gains(capsys, monkeypatch, use):
    code, out, err = calibrate(capsys, monkeypatch, 2.0, "--recipe", "r.yaml", "--use", use)
    assert code == 0
    assert "will be re-weighted" in err
    settings = [f"strategy.{key}={json.dumps(value)}" for key, value in yaml.safe_load(out).items()]
    strategy = read("r.yaml", settings).pipeline().strategy
    assert strategy.guarded() == (use, "")
    assert strategy.calibration.reweighted > strategy.calibration.majority


def test_where_there_is_no_signal_the_vote_stays_a_majority(capsys, monkeypatch):
    code, out, err = calibrate(capsys, monkeypatch, 0.5, "--recipe", "r.yaml")
    assert code == 0
    assert "will stay a majority" in err
    strategy = read("r.yaml", [f"strategy.{k}={json.dumps(v)}" for k, v in yaml.safe_load(out).items()])
    assert strategy.pipeline().strategy.guarded()[0] == "ties"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--recipe", "r.yaml", "--strategy", "chain_of_thought"], "--strategy reweighted_vote"),
        (["--recipe", "r.yaml", "--limit", "10"], "fewer than 200"),
    ],
)
def test_what_is_missing_is_said(capsys, monkeypatch, words, hint):
    _, _, err = calibrate(capsys, monkeypatch, 2.0, *words)
    assert hint in err


def test_a_row_without_an_answer_is_refused(capsys, monkeypatch, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"question": "why?"}\n')
    code, _, err = calibrate(capsys, monkeypatch, 2.0, "--recipe", "r.yaml")
    assert code == 2 and "answer" in err
