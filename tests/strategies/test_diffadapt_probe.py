"""Laws of what DiffAdapt learns from: entropies, labels, the probe and its file."""

import base64
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from abduce.serving.errors import MissingExtra, UsageError
from abduce.strategies.diffadapt import DiffAdapt, entropy
from abduce.strategies.diffadapt.file import load, save
from abduce.strategies.diffadapt.fitting import Fitting, fit
from abduce.strategies.diffadapt.labels import (
    Question,
    Rollout,
    Thresholds,
    best_thresholds,
    bins,
    default_thresholds,
    oracle,
    plurality,
    u_shaped,
    utility,
)
from abduce.strategies.diffadapt.modes import MODES, NORMAL, Mode
from abduce.strategies.diffadapt.training import chosen, train

from .diffadapt_parts import NAMES, POLICY, reader, signature

# ---------------------------------------------------------------- entropy


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_entropy_of_equal_logits_is_ln_v_and_of_one_possible_token_0(n):
    assert entropy.exact([3.0] * n) == pytest.approx(math.log(n), abs=1e-5)
    assert entropy.exact([0.0] + [-1e6] * (n - 1)) == pytest.approx(0, abs=1e-5)


def test_entropy_is_its_closed_form_and_the_best_log_probs_bound_it_from_below():
    rng = np.random.default_rng(0)
    for scale in (0.1, 1, 5, 20):
        logits = rng.normal(0, scale, 300)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        exact = entropy.exact(list(logits))
        assert exact == pytest.approx(float(-(p * np.log(np.maximum(p, 1e-300))).sum()), abs=1e-5)
        bounds = [entropy.of_the_best(sorted(np.log(p), reverse=True)[:k]) for k in (1, 5, 20, 299, 300)]
        assert bounds == sorted(bounds)
        assert bounds[-1] == pytest.approx(exact, abs=1e-5)
        assert all(bound <= exact + 1e-9 for bound in bounds)


def test_the_mean_entropy_leaves_out_tokens_of_which_nothing_is_known():
    half = [math.log(0.5)] * 2
    assert entropy.mean([half, [], [0.0]]) == pytest.approx(math.log(2) / 2)
    assert entropy.mean([[], []]) is None


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("accuracy", "unsure", "label"),
    [
        (0.6, 0.5, "normal"), (0.6, 0.5001, "easy"), (0.5999, 0.5, "easy"), (0.3, 9, "easy"),
        (0.2999, 0, "hard"), (1.0, 0.0, "normal"), (1.0, 9, "easy"), (0.0, 0.0, "hard"),
    ],
)  # fmt: skip
def test_labels_at_and_beside_the_thresholds(accuracy, unsure, label):
    assert Thresholds(0.6, 0.5, 0.3).label(accuracy, unsure) == label


def test_where_alpha_is_gamma_what_is_solved_as_often_is_not_hard():
    rule = Thresholds(0.3, 0.5, 0.3)
    assert [rule.label(0.3, 0.5), rule.label(0.3, 0.6), rule.label(0.29, 0.0)] == ["normal", "easy", "hard"]
    with pytest.raises(UsageError, match="gamma"):
        Thresholds(0.3, 0.5, 0.4)


def question(accuracy, unsure, *, tokens=(10, 30, 20), right=None, level=0):
    """A question with ten solutions a mode."""
    hits = {"normal": accuracy} | dict.fromkeys(("easy", "hard"), accuracy) | (right or {})
    runs = {
        name: [Rollout(i < round(10 * hits[name]), n, unsure) for i in range(10)]
        for name, n in zip(NAMES, tokens, strict=True)
    }
    return Question((accuracy, unsure), runs, level)


def test_every_question_gets_one_label_and_the_oracle_is_the_cheapest_best():
    assert oracle(question(0.5, 1), NAMES) == "easy"
    assert oracle(question(0.5, 1, right={"hard": 0.6}), NAMES) == "hard"
    assert oracle(question(0.5, 1, tokens=(30, 10, 20)), NAMES) == "normal"
    assert {Thresholds().of(question(a / 10, e)) for a in range(11) for e in (0.1, 0.9)} == set(NAMES)


def test_utility_weighs_accuracy_against_the_share_of_the_budget():
    both = [question(1.0, 1), question(0.0, 1)]
    assert utility(both, ["easy", "hard"], 100) == pytest.approx((1 - 0.2 * 0.1 + 0 - 0.2 * 0.2) / 2)


def test_pseudo_labels_are_those_of_the_plurality():
    assert plurality(["4", "5", "5", None]) == [False, True, True, False]
    assert plurality(["4", "5"]) == [True, False]
    assert plurality([None, None]) == [False, False]


def test_a_u_is_told_from_a_slope_and_beta_lies_between_its_ends():
    rows = [question(a, e, level=i) for i, (a, e) in enumerate([(1, 2.0), (0.6, 1.0), (0.1, 3.0)], 1)]
    assert [row["entropy"] for row in bins(rows)] == [2.0, 1.0, 3.0]
    assert u_shaped(bins(rows))
    assert default_thresholds(rows).beta == 2.0
    assert not u_shaped(bins([question(a, 1 - a, level=i) for i, a in enumerate([1, 0.6, 0.1], 1)]))


def test_of_all_thresholds_those_that_are_worth_most_are_taken():
    rows = [question(a / 10, 0.1 * e, right={"easy": 1.0}) for a in range(11) for e in range(5)]
    held = rows[::3]
    found = best_thresholds(rows, held, lambda labels: labels.count("easy"))
    default = default_thresholds(rows)
    easy = [sum(rule.of(q) == "easy" for q in held) for rule in (found, default)]
    assert easy[0] >= easy[1]


# ---------------------------------------------------------------- the probe


def planted(n=600, seed=0):
    """Three classes of which two lie crosswise, as in XOR."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.3, (n, 6))
    signs = rng.choice([-1, 1], (n, 2))
    x[:, :2] += signs
    third = rng.random(n) < 0.33
    x[third, 2] += 4
    labels = ["normal" if t else "easy" if a == b else "hard" for t, (a, b) in zip(third, signs, strict=True)]
    return x.tolist(), labels


def accuracy(probe, x, labels):
    return np.mean([chosen(NAMES, probe(row), 0.0) == label for row, label in zip(x, labels, strict=True)])


def test_the_probe_finds_classes_that_a_linear_one_cannot():
    x, labels = planted()
    held = planted(seed=1)
    two = fit(x, labels, NAMES, signature(), Fitting())
    one = fit(x, labels, NAMES, signature(), Fitting(width=0))
    assert accuracy(two, *held) >= 0.95
    assert accuracy(one, *held) < 0.85


def test_the_same_seed_gives_the_same_weights_and_another_others():
    x, labels = planted(200)
    how = Fitting(epochs=5, width=16)
    first, again = (fit(x, labels, NAMES, signature(), how) for _ in range(2))
    other = fit(x, labels, NAMES, signature(), replace(how, seed=1))
    for name in ("w1", "b1", "w2", "b2", "mean", "std"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.w1, other.w1)


def test_a_saved_probe_reads_the_same(tmp_path):
    x, labels = planted(100)
    probe = fit(x, labels, NAMES, signature(), Fitting(epochs=3))
    save(probe, tmp_path / "p.json")
    again = load(tmp_path / "p.json")
    assert [again(row) for row in x[:20]] == [probe(row) for row in x[:20]]
    assert (again.signature, again.classes, again.tau) == (probe.signature, NAMES, probe.tau)


def test_a_file_that_was_changed_or_sealed_with_another_key_is_refused(tmp_path):
    file = tmp_path / "p.json"
    save(reader(), file, key="a key of mine")
    load(file, key="a key of mine")
    load(file)
    with pytest.raises(UsageError, match="not sealed with this key"):
        load(file, key="another key")
    told = json.loads(file.read_text())
    told["body"]["tau"] = 0.0
    file.write_text(json.dumps(told))
    with pytest.raises(UsageError, match="sha256"):
        load(file)
    save(reader(), file)
    with pytest.raises(UsageError, match="not sealed"):
        load(file, key="a key of mine")


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda body: body["weights"].pop("w2"), "not whole"),
        (lambda body: body["weights"]["w1"].update(shape=[9, 9]), "not whole"),
        (lambda body: body["weights"]["b2"].update(float32="!"), "not whole"),
        (
            lambda body: body["weights"]["b2"].update(
                float32=base64.b64encode(np.array([math.nan] * 3, "<f4").tobytes()).decode()
            ),
            "finite",
        ),
        (lambda body: body.update(classes=["easy"]), "shape"),
        (lambda body: body["signature"].update(kind="pickle"), "kind"),
        (lambda body: body.update(temperature=0), "temperature"),
    ],
)
def test_a_file_that_is_sealed_but_no_probe_is_refused(tmp_path, change, hint):
    from abduce.strategies.diffadapt import file

    save(reader(), tmp_path / "p.json")
    told = json.loads((tmp_path / "p.json").read_text())
    change(told["body"])
    told["sha256"] = file.hashlib.sha256(file._canonical(told["body"])).hexdigest()
    (tmp_path / "p.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match=hint):
        load(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("text", "hint"),
    [("no", "not JSON"), ("[1]", "format"), ('{"format": "other"}', "format"), (None, "No such file")],
)
def test_what_is_no_probe_is_told(tmp_path, text, hint):
    if text is not None:
        (tmp_path / "p.json").write_text(text)
    with pytest.raises(UsageError, match=hint):
        DiffAdapt(policy=POLICY, probe=str(tmp_path / "p.json"))


def test_the_key_is_that_of_the_variable(tmp_path, monkeypatch):
    save(reader(), tmp_path / "p.json", key="something secret")
    made = {"policy": POLICY, "probe": str(tmp_path / "p.json"), "key_env": "PROBE_KEY"}
    with pytest.raises(UsageError, match="PROBE_KEY is not set"):
        DiffAdapt(**made)
    monkeypatch.setenv("PROBE_KEY", "something secret")
    assert DiffAdapt(**made).loaded is not None


def test_without_numpy_the_line_that_installs_it_is_told(monkeypatch):
    probe = reader()
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingExtra, match=r"abduce\[probe\]"):
        probe((1.0, 2.0, 3.0))


def test_training_reports_what_it_chose_and_what_is_doubtful():
    x, labels = planted(160)
    ways = {"easy": (0.5, 0.9), "normal": (0.9, 0.1), "hard": (0.0, 0.9)}
    rows = [
        replace(question(*ways[label], right={"easy": 1.0 if label == "easy" else 0.0}), features=tuple(row))
        for row, label in zip(x, labels, strict=True)
    ]
    probe = train(rows[:110], rows[110:], MODES, signature(), most_tokens=30)
    report = probe.report
    assert sum(report["labels"].values()) == 110
    worths = report["utility"]
    assert worths["oracle"] >= worths["labels"] - 1e-9
    assert worths["probe"] > max(worths[name] for name in NAMES)
    assert sum(row["n"] for row in report["reliability"]) == 50
    assert all(isinstance(warning, str) for warning in report["warnings"])
    by_oracle = train(rows[:110], rows[110:], MODES, signature(), most_tokens=30, labels="oracle")
    assert by_oracle.report["source"] == "gold, oracle" and by_oracle.report["thresholds"] is None
    with pytest.raises(UsageError, match="oracle"):
        train(rows, rows, (NORMAL, Mode(name="long")), signature(), most_tokens=30)
