"""`abduce recipe`, and the JSON schema that editors read."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from abduce.orchestrator import recipe, strict_yaml
from abduce.orchestrator.cli import main
from abduce.orchestrator.recipe.schema import schema

FILE = files("abduce") / "recipes" / "recipe.schema.json"


@pytest.fixture(scope="module")
def validator():
    Draft7Validator.check_schema(schema())
    return Draft7Validator(schema())


def test_check_says_what_a_recipe_is(capsys):
    assert main(["recipe", "check", "whole-math"]) == 0
    assert main(["recipe", "check", "particle-math", "--set", "particles=4"]) == 0
    whole, particle = capsys.readouterr().out.splitlines()
    assert whole.startswith("whole-math: correct (8 steps: recall, kind, ")
    assert particle == "particle-math: correct (strategy particle_filter, model embedded, reward self_eval)"


def test_check_tells_mistakes_a_line_each(capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\nstrategie: beam\npipeline: [{slove: beam}]\n")
    assert main(["recipe", "check", str(file)]) == 2
    told = capsys.readouterr().err
    assert f"{file}:3: pipeline.0: no step is named 'slove'. Did you mean 'solve'?" in told
    assert f"{file}:2: strategie: 'strategie' is not a key of a recipe. Did you mean 'strategy'?" in told
    assert "Traceback" not in told


def test_check_does_not_need_the_functions_of_a_recipe(capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\nmodel: synthetic\npipeline: [{solve: {strategy: beam}}, {call: my_own}]\n")
    assert main(["recipe", "check", str(file)]) == 0


@pytest.mark.parametrize("name", ["particle-math", "whole-math", "frugal-products"])
def test_what_show_prints_is_the_same_recipe(capsys, name):
    assert main(["recipe", "show", name, "--set", "seed=5"]) == 0
    shown = capsys.readouterr().out
    assert recipe.check(strict_yaml.parse(shown)) == recipe.read(name, ["seed=5"])
    for node in recipe.read(name).nodes:
        assert re.search(rf"^# {node}\b", shown, re.MULTILINE)


def test_every_packaged_recipe_is_listed(capsys):
    assert main(["recipe", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == recipe.packaged()


def test_the_schema_file_is_current(capsys):
    assert main(["recipe", "schema"]) == 0
    printed = capsys.readouterr().out
    assert printed == FILE.read_text(encoding="utf-8"), "abduce recipe schema > recipes/recipe.schema.json"


@pytest.mark.parametrize("name", recipe.packaged())
def test_the_schema_accepts_every_packaged_recipe_and_its_normal_form(validator, name):
    written = strict_yaml.read(Path(str(files("abduce") / "recipes" / f"{name}.yaml"))).data
    for data in (written, recipe.read(name).data()):
        assert [error.message for error in validator.iter_errors(data)] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"strategie": "beam"},
        {"strategy": {"name": "beam", "widht": 3}},
        {"strategy": {"name": "beam", "width": "three"}},
        {"pipeline": []},
        {"pipeline": [{"slove": "quick"}]},
        {"pipeline": [{"verify": {"by": "hand"}}]},
        {"pipeline": [{"verify": {"by": "python", "retry": 1}}]},
        {"pipeline": [{"route": {"ways": {"a": {"solve": "x"}, "b": {}}}}]},
        {"nodes": {"a": {"verify": {"by": "python", "retries": 2}}}},
        {"edges": [{"from": "a", "to": "b", "wenn": {}}]},
        {"edges": ["a to b"]},
        {"policy": {"max_step": 3}},
        {"reward": {"kind": "judge", "n_evals": 2}},
        {"budget": {"tokns": 3}},
        {"memory": {"recall": 3}},
        {"seed": -1},
    ],
)
def test_the_schema_marks_mistakes(validator, wrong):
    assert not validator.is_valid({"name": "x", **wrong})


def test_the_schema_lets_third_parties_parts_pass(validator):
    parts = {
        "strategy": {"name": "my_own", "x": 1},
        "reward": "mine",
        "model": {"engine": "mine", "url": "u"},
    }
    assert validator.is_valid({"name": "x", **parts})
