"""What a recipe takes from elsewhere: another recipe underneath it, and secrets from the environment."""

import json

import pytest

from abduce.orchestrator import recipe, strict_yaml
from abduce.orchestrator.recipe.secrets import resolve
from abduce.serving.errors import UsageError

BASE = """name: base
model: {engine: synthetic, depth: 3}
budget: {tokens: 9000, seconds: 60}
solvers: {quick: {strategy: chain_of_thought}, deep: {strategy: beam}}
pipeline: [{solve: quick}]
"""


@pytest.fixture
def write(tmp_path):
    def written(text, name="mine.yaml"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    written(BASE, "base.yaml")
    return written


def complaint(file):
    with pytest.raises(UsageError) as error:
        recipe.read(file)
    return str(error.value)


# ---------------------------------------------------------------- include


def test_keys_are_merged_and_entries_of_the_large_parts(write):
    found = recipe.read(
        write(
            "name: mine\ninclude: base.yaml\nbudget: {tokens: 5}\n"
            "solvers: {deep: {strategy: beam, width: 2}}\n"
        )
    )
    assert (found.name, found.budget) == ("mine", {"tokens": 5, "seconds": 60})
    assert found.solvers["quick"].strategy.name == "chain_of_thought"
    assert found.solvers["deep"].strategy.params == {"width": 2}
    assert found.model.params == {"depth": 3}


def test_a_choice_and_the_steps_are_replaced_as_a_whole(write):
    found = recipe.read(
        write("name: mine\ninclude: base.yaml\nmodel: {engine: synthetic}\nstrategy: best_of_n\n")
    )
    assert found.model.params == {}
    assert found.strategy.name == "best_of_n"


def test_a_packaged_recipe_can_be_included_also_without_a_file():
    text = "name: mine\ninclude: best-of-n-products\nbudget: {tokens: 5}\n"
    found, base = recipe.check(strict_yaml.parse(text)), recipe.read("best-of-n-products")
    assert (found.nodes, found.policy, found.budget) == (
        base.nodes,
        base.policy,
        {**base.budget, "tokens": 5},
    )


def test_an_included_recipe_can_include(write):
    write("name: middle\ninclude: ../base.yaml\nseed: 4\n", "below/middle.yaml")
    assert "own folder" in complaint(write("name: top\ninclude: middle.yaml\n", "below/top.yaml"))
    write("name: middle\ninclude: base.yaml\nseed: 4\n", "middle.yaml")
    found = recipe.read(write("name: top\ninclude: middle.yaml\nbudget: {calls: 1}\n"))
    assert (found.seed, found.budget) == (4, {"tokens": 9000, "seconds": 60, "calls": 1})


def test_a_mistake_is_told_with_the_file_that_holds_it(write):
    write(BASE.replace("tokens", "tokns"), "base.yaml")
    found = complaint(write("name: mine\ninclude: base.yaml\nbudget: {secnds: 5}\n")).splitlines()
    assert [line.split(": ")[0].rpartition("/")[2] for line in found] == ["base.yaml:3", "mine.yaml:3"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.yaml", "no such file"),
        ("../../etc/passwd.yaml", "own folder"),
        ("/etc/passwd.yaml", "own folder"),
        ("mine.yaml", "include each other: mine.yaml -> mine.yaml"),
        ("a-star-maths", "Did you mean 'a-star-math'"),
        ("[a, b]", "must be a file or a packaged recipe"),
        ('"x\\0.yaml"', "own folder"),
    ],
)
def test_what_cannot_be_included_is_refused(write, name, told):
    found = complaint(write(f"name: mine\ninclude: {name}\n"))
    assert told in found
    assert "mine.yaml:2: include: " in found


def test_files_that_include_each_other_are_refused(write):
    write("name: other\ninclude: mine.yaml\n", "other.yaml")
    assert "mine.yaml -> other.yaml -> mine.yaml" in complaint(write("name: mine\ninclude: other.yaml\n"))


def test_a_link_out_of_the_folder_is_refused(write, tmp_path):
    outside = write(BASE, "outside/base.yaml")
    file = write("name: mine\ninclude: link.yaml\n", "inside/mine.yaml")
    (tmp_path / "inside" / "link.yaml").symlink_to(outside)
    assert "own folder" in complaint(file)


# ---------------------------------------------------------------- secrets

SERVER = 'name: x\nstrategy: best_of_n\nmodel: {engine: sglang, url: "http://127.0.0.1:9", api_key: "%s"}\n'


def test_a_secret_is_put_in_place_where_the_engine_is_made_and_nowhere_else(monkeypatch):
    monkeypatch.setenv("SGLANG_TEST_KEY", "hush-hush")
    found = recipe.check(strict_yaml.parse(SERVER % "${secret:SGLANG_TEST_KEY}"))
    pipeline = found.pipeline()
    assert pipeline.services.engines["policy"]._transport._headers["Authorization"] == "Bearer hush-hush"
    assert "${secret:SGLANG_TEST_KEY}" in found.yaml()
    for told in (repr(found), found.yaml(), json.dumps(found.data()), repr(pipeline.settings)):
        assert "hush" not in told


def test_a_variable_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("SGLANG_TEST_KEY", raising=False)
    found = recipe.check(strict_yaml.parse(SERVER % "${secret:SGLANG_TEST_KEY}"))
    with pytest.raises(UsageError, match="environment variable SGLANG_TEST_KEY, which is not set"):
        found.pipeline()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SERVER % "sk-hush-hush", "recipe:3: model.api_key: a secret does not belong in a recipe"),
        (SERVER % "${secret:A}${HOME}", "model.api_key: a secret does not belong"),
        (SERVER % "${secret:not a name hush}", "model.api_key: a secret does not belong"),
        (
            'name: x\nstrategy: best_of_n\ndescription: "${secret:HOME}"\n',
            "recipe:3: description: a secret may stand only",
        ),
        (
            'name: x\nstrategy: best_of_n\npolicy: {prompt: "{question} ${secret:HOME}"}\n',
            "policy.prompt: a secret may",
        ),
        ('name: x\nstrategy: best_of_n\nmemory: "postgresql://me:hush@db/x"\n', "a password does not belong"),
    ],
)
def test_secrets_stand_only_where_they_belong_and_only_as_references(text, told):
    with pytest.raises(UsageError) as error:
        recipe.check(strict_yaml.parse(text))
    assert told in str(error.value)
    assert "hush" not in str(error.value)


def test_only_references_are_replaced(monkeypatch):
    monkeypatch.setenv("TEST_TOKEN", "t")
    data = {"headers": {"a": "Bearer ${secret:TEST_TOKEN}"}, "b": ["$TEST_TOKEN", "${TEST_TOKEN}", 3, None]}
    assert resolve(data) == {"headers": {"a": "Bearer t"}, "b": ["$TEST_TOKEN", "${TEST_TOKEN}", 3, None]}
