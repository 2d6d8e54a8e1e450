"""`abduce rag`: readings are logged once, the model fits them, demonstrations are what was answered right."""

import json
import re
from itertools import product
from pathlib import Path
from random import Random

import pytest

from abduce.orchestrator import cli
from abduce.orchestrator.commands import rag
from abduce.orchestrator.recipe import read
from abduce.serving.errors import EngineError
from abduce.serving.scripted import Scripted
from abduce.strategies.rag.allocation import from_json
from abduce.strategies.rag.forecast import Theta

TOWNS = {f"Town{c}": f"Land{c}" for c in "ABCDEFGH"}
DEMOS = [{"question": "In which land is TownX?", "answer": "LandX", "steps": [["Where is TownX?", "LandX"]]}]
RECIPE = """\
name: reading
model: {engine: scripted, replies: unknown}
policy: plain
tools:
  - {name: search, file: towns.jsonl, words: all}
pipeline:
  - solve: {strategy: rag, k: 4, demos: demos.jsonl}
"""


def says(request, seed):
    """A reader that needs the document, and that fares better with a demonstration and with a second look."""
    text = "\n".join([*(m.content for m in request.prompt.messages), request.prompt.prefix])
    question, _, rest = text.rpartition("Question: ")[2].partition("\n")
    town = re.search(r"Town\w", question)[0]
    there = f"{town} lies in" in text
    able = there and ("TownX" in text or "Follow up:" in text or town < "TownE") and town != "TownH"
    answer = TOWNS[town] if able else "unknown"
    if "Follow up:" not in text:
        return answer
    if text.endswith(("Intermediate answer:", "So the final answer is:")):
        return f" {answer}"
    return (
        f"So the final answer is: {answer}"
        if "Intermediate" in rest
        else f"Follow up: Where does {town} lie?"
    )


@pytest.fixture(autouse=True)
def asked(tmp_path, monkeypatch):
    """A folder with everything, the reader in the engine's place; the list of what it was asked."""
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    rows = [{"id": t, "title": t, "text": f"{t} lies in {land}."} for t, land in TOWNS.items()]
    rows += [{"title": f"noise {i}", "text": f"In which land is nothing, number {i}?"} for i in range(6)]
    write("towns.jsonl", rows)
    write("demos.jsonl", DEMOS)
    write("task.jsonl", [{"question": f"In which land is {t}?", "answer": land} for t, land in TOWNS.items()])
    (tmp_path / "r.yaml").write_text(RECIPE)
    requests = []

    def reply(request, seed):
        requests.append(request)
        return says(request, seed)

    monkeypatch.setattr(Scripted, "__init__", _scripted(Scripted.__init__, reply))
    return requests


def _scripted(init, reply):
    made = lambda self, replies, **options: init(self, reply, **options)  # noqa: E731
    made.__wrapped__ = init
    return made


def write(name, rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(name):
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def run(capsys, *words):
    code = cli.main(["rag", *words])
    return code, *capsys.readouterr()


FIT = ("fit", "task.jsonl", "--recipe", "r.yaml")


def test_readings_are_logged_and_fitted_and_the_strategy_reads_by_them(capsys, asked):
    code, out, _ = run(capsys, *FIT, "--k", "0,1,4", "--n", "1,2")
    assert code == 0
    for word in ("R²", "i_doc", "i_shot", "P*", "tokens: ", "errors of", "retrieval"):
        assert word in out
    rows = lines("readings.jsonl")
    assert "readings" in rows[0]
    thetas = {(row["k"], row["m"], row["n"]) for row in rows[1:]}
    assert {(0, 0, 1), (1, 0, 1), (0, 1, 1), (4, 1, 2)} <= thetas and (0, 1, 2) not in thetas
    assert len(rows) - 1 == len(thetas) * len(TOWNS)
    model = from_json(json.loads(Path("allocation.json").read_text()))
    assert model.gains("task").i_doc > 0 and model.n_points == len(thetas)

    recipe = ["strategy.allocation=allocation.json", "strategy.like=task", "strategy.n_max=2"]
    for budget, calls in (("1", 1), ("100000", None)):
        pipeline = read("r.yaml", [*recipe, f"strategy.budget_tokens={budget}"]).pipeline()
        result = pipeline.solve("In which land is TownA?")
        assert result.usage.calls == calls or calls is None
        assert result.diagnostics["theta"]["k"] == pipeline.strategy.theta().k
    assert pipeline.strategy.theta() != (0, 0, 1)


def test_what_is_logged_is_not_read_again_and_a_torn_line_is(capsys, asked):
    run(capsys, *FIT)
    n, model = len(asked), Path("allocation.json").read_text()
    run(capsys, *FIT)
    assert (len(asked), Path("allocation.json").read_text()) == (n, model)
    run(capsys, "fit", "--recipe", "r.yaml", "--out", "again.json")  # nothing but the log
    assert (len(asked), Path("again.json").read_text()) == (n, model)
    raw = Path("readings.jsonl").read_bytes()
    Path("readings.jsonl").write_bytes(raw[:-20])
    _, _, err = run(capsys, *FIT)
    assert "1 of 1 readings" in err
    assert sorted(Path("readings.jsonl").read_bytes().splitlines()) == sorted(raw.splitlines())


def test_the_forecast_is_near_what_was_spent(capsys, asked):
    run(capsys, *FIT, "--k", "0,1,2,4", "--n", "1,2")
    model = from_json(json.loads(Path("allocation.json").read_text()))
    rows = lines("readings.jsonl")[1:]
    within = [row["tokens"] <= model.costs.forecast(Theta(row["k"], row["m"], row["n"])) for row in rows]
    assert sum(within) >= 0.95 * len(within)
    for row in rows:
        if row["n"] == 1 or row["used"]["n"] == row["n"]:
            expected = model.costs.forecast(Theta(row["used"]["k"], row["m"], row["n"]), hard=False)
            assert row["tokens"] == pytest.approx(expected, rel=0.35)


def test_aliases_count_as_right(tmp_path):
    write("aliases.jsonl", [{"question": "q", "answer": "NYC", "answer_aliases": ["New York", "NYC"]}])
    [(problem, golds)] = rag.problems(tmp_path / "aliases.jsonl", None)
    assert (problem.answer, golds) == ("NYC", ("NYC", "New York"))


def test_demonstrations_are_what_was_answered_right_with_the_best_documents_first(capsys):
    code, out, _ = run(capsys, "demos", "task.jsonl", "--recipe", "r.yaml", "--out", "made.jsonl")
    assert (code, out) == (0, "7 demonstrations from 8 problems are in made.jsonl\n")
    rows = lines("made.jsonl")
    assert "TownH" not in str([row["question"] for row in rows])
    for row in rows:
        town = re.search(r"Town\w", row["question"])[0]
        assert row["steps"] == [[f"Where does {town} lie?", TOWNS[town]]]
        assert row["documents"][0] == {"id": town, "title": town, "text": f"{town} lies in {TOWNS[town]}."}
        assert len({document["id"] for document in row["documents"]}) == len(row["documents"])
    pipeline = read("r.yaml", ["strategy=iterdrag", "strategy.demos=made.jsonl", "strategy.m=2"]).pipeline()
    assert pipeline.solve("In which land is TownA?").answer == "LandA"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ((*FIT, "--k", "1,many"), "such as 1,2,5"),
        ((*FIT, "--n", "0"), "from 1"),
        ((*FIT, "--m", "0,3"), "demonstrations"),
        ((*FIT, "--strategy", "react"), "rag-iterative"),
        (("fit", "--recipe", "r.yaml"), "abduce rag fit DATA.jsonl"),
        (("fit", "nowhere.jsonl", "--recipe", "r.yaml"), "Cannot read"),
        ((FIT[0], "task.jsonl", *FIT[1:]), "same name"),
        ((*FIT, "--log", "towns.jsonl"), "--log"),
        ((*FIT, "--log", "no/where.jsonl"), "--log"),
        ((*FIT, "--limit", "4", "--metric", "em", "--set", "strategy.retriever=none"), "equally well"),
        (("demos", "task.jsonl", "--recipe", "r.yaml", "--out", "demos.jsonl"), "--out"),
    ],
)
def test_mistakes_are_told_with_what_to_write(capsys, words, hint):
    code, _, err = run(capsys, *words)
    assert code == 2 and hint in err and "Traceback" not in err


def test_a_model_that_does_not_answer_is_not_logged_as_wrong(capsys, monkeypatch):
    def dead(request, seed):
        raise EngineError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Scripted, "__init__", _scripted(Scripted.__init__.__wrapped__, dead))
        code, _, err = run(capsys, *FIT, "--limit", "2")
    assert code == 1 and "the server is gone" in err and "0 readings are in" in err
    assert len(lines("readings.jsonl")) == 1 and not Path("allocation.json").exists()
    code, *_ = run(capsys, *FIT)
    assert code == 0


def test_a_log_of_another_reader_is_refused(capsys):
    run(capsys, *FIT)
    code, _, err = run(capsys, *FIT, "--set", "strategy.doc_tokens=9")
    assert code == 2 and "another doc_tokens" in err and "--log" in err
    code, *_ = run(capsys, *FIT, "--set", "strategy.k=3", "--budget", "99 calls")
    assert code == 0


def test_figures_of_a_fit_are_those_of_its_points():
    random = Random(1)
    rows = [
        {"task": task, "id": str(i), "k": k, "m": m, "n": n, "acc": p, "tokens": 100 * (k + 1) * (m + 1) * n}
        | {"sent": {"calls": 1 if n == 1 else 2 * n + 1, "documents": k, "demonstrations": m}}
        for task, gain in (("a", 0.2), ("b", 0.1), ("c", 0.3))
        for k, m, n in product((0, 1, 5), (0, 1, 2), (1, 3))
        if k or n == 1
        for i in range(3)
        for p in [min(1.0, 0.1 + gain * (k > 0) + 0.05 * m + 0.1 * (n > 1) + random.uniform(0, 0.01))]
    ]
    model = rag.fitted(rows, "acc", "x")
    assert model.r2 > 0.8 and set(model.tasks) == {"a", "b", "c"} and model.model == "x"
    text = "\n".join(rag.told(model, rows, "acc"))
    assert f"R²  {model.r2:8.3f}" in text
