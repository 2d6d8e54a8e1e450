"""DiffAdapt on the small model: trained from its own rollouts, used, and refused where it does not fit."""

import json

import pytest

from abduce.orchestrator import cli, recipe, solve
from abduce.serving.errors import UsageError
from abduce.serving.flow import Hidden, Prompt
from abduce.strategies.diffadapt.file import load
from abduce.strategies.diffadapt.probe import SAME, cosine

RECIPE = """\
name: products
model: embedded
policy: {preset: product, examples: []}  # short prompts: what is learnt does not matter here
pipeline:
  - solve:
      strategy: diffadapt
      modes:
        - {name: easy, temperature: 0.5, ratio: 0.75}
        - {name: normal, temperature: 0.8}
        - {name: hard, temperature: 0.4, ratio: 0.5}
"""


@pytest.fixture
def _here(tmp_path, monkeypatch, embedded):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(solve, "_engine", lambda spec: embedded)
    (tmp_path / "r.yaml").write_text(RECIPE)
    pairs = [(a, b) for a in range(2, 10) for b in (3, 7)] + [(a, 89) for a in range(211, 223)]
    rows = [{"question": f"{a} x {b} =", "answer": str(a * b)} for a, b in pairs]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.usefixtures("_here")
def test_a_probe_from_rollouts_of_the_model_chooses_and_is_refused_elsewhere(capsys, tmp_path):
    words = ["data.jsonl", "--recipe", "r.yaml", "--samples", "1", "--parallel", "8"]
    assert cli.main(["diffadapt", "fit", *words]) == 0, capsys.readouterr().err
    probe = load("probe.json")
    assert probe.n_features == len(probe.signature.reference) == 576
    made = recipe.load("r.yaml", ["strategy.probe=probe.json", "strategy.tau=0"])
    facts = made.solve("6 x 8 =").diagnostics
    assert facts["why"] == "probe" and facts["warnings"] == []
    assert made.solve("6 x 8 =").diagnostics["probabilities"] == pytest.approx(
        facts["probabilities"], abs=0.02
    )
    with pytest.raises(UsageError, match="prompt around the question"):
        recipe.load("r.yaml", ["strategy.probe=probe.json", "policy=plain"])


async def test_states_of_one_question_agree_and_those_of_others_do_not(embedded):
    asked = ["7 x 8 =", "7 x 8 =", "4123 x 9721 =", "Who was Isaac Newton?"]
    first, again, *others = [(await embedded.hidden(Hidden(Prompt.user(q)))).value for q in asked]
    assert cosine(first, again) > SAME
    assert all(cosine(first, other) < SAME for other in others)


async def test_the_embedded_and_the_white_box_engine_give_one_state(embedded, white_box):
    """Of the same weights, quantised kernels against float32."""
    pytest.importorskip("torch")
    for question in ("7 x 8 =", "Who was Isaac Newton?"):
        ours, theirs = [
            (await engine.hidden(Hidden(Prompt.user(question)))).value for engine in (embedded, white_box)
        ]
        assert cosine(ours, theirs) > SAME
