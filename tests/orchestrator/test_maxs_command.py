"""`abduce maxs calibrate`: the printed delta stops about the wanted share of decisions."""

import pytest

from abduce.orchestrator import cli
from abduce.orchestrator.recipe import read

RECIPE = """\
name: tree
model: {engine: synthetic, seed: 4, alphabet: abcd, depth: 6}
policy: {preset: plain, delimiter: "\\n\\n"}
pipeline:
  - solve: {strategy: maxs}
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "data.jsonl").write_text(
        "".join(f'{{"question": "q{i}", "answer": "a"}}\n' for i in range(12))
    )


def calibrate(capsys, *words):
    code = cli.main(["maxs", "calibrate", "data.jsonl", *words])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("quantile", [0.0, 0.3, 1.0])
def test_what_is_printed_is_a_parameter_that_stops_that_share(capsys, quantile):
    code, out, err = calibrate(capsys, "--recipe", "r.yaml", "--quantile", str(quantile))
    assert code == 0 and out.startswith("delta: ")
    delta = float(out.removeprefix("delta: "))
    assert f"stopped at {quantile:.0%}" in err
    strategy = read("r.yaml", [f"strategy.delta={delta}"]).pipeline().strategy
    assert strategy.delta == delta
    # Asked again with what was found, it says that this share is reached already (three digits are printed).
    _, _, again = calibrate(
        capsys, "--recipe", "r.yaml", "--quantile", str(quantile), "--set", f"strategy.delta={delta * 1.01}"
    )
    reached = int(again.rstrip().rpartition(" at ")[2].rstrip("%"))
    assert reached >= 100 * quantile - 10


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--recipe", "r.yaml", "--quantile", "30"], "0.3"),
        (["--recipe", "r.yaml", "--strategy", "chain_of_thought"], "--strategy maxs"),
        (["--recipe", "r.yaml", "--set", "strategy.candidates=1"], "more candidates"),
    ],
)
def test_mistakes_are_told_with_what_to_write(capsys, words, hint):
    code, _, err = calibrate(capsys, *words)
    assert code == 2 and hint in err
