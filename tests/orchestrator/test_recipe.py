"""Recipes: what is right is read, what is wrong is named by file, line, key, value and nearest spelling."""

import pytest

from abduce.orchestrator import recipe, strict_yaml
from abduce.orchestrator.runs import Runs
from abduce.serving.errors import UsageError

BASE = "name: test\nstrategy: particle_filter\n"
STEP = "name: test\npipeline:\n  - solve:\n      strategy: particle_filter\n"


def read(text, *overrides, **replaced):
    return recipe.check(strict_yaml.parse(text, file="my.yaml"), overrides, replaced)


def complaint(text, *overrides, **replaced):
    with pytest.raises(UsageError) as error:
        read(text, *overrides, **replaced)
    return str(error.value)


# ---------------------------------------------------------------- what is right


def test_three_ways_to_write_the_same_strategy():
    short = read("name: test\nstrategy: {name: particle_filter, particles: 4}\n")
    step = read(STEP + "      particles: 4\n")
    overridden = read(BASE, "particles=4")
    assert short.options() == step.options() == overridden.options()
    assert short.options()["particles"] == 4


def test_every_field_becomes_an_argument_of_build():
    found = read(
        BASE + "description: all of it\nmodel: {engine: embedded, slots: 4}\nseed: 7\n"
        "reward: {kind: self_eval, model: judge}\nmodels: {judge: synthetic}\npolicy: cot\nconcurrency: 8\n"
        "tools: [calculator]\nbudget: {tokens: 8000, seconds: 120}\n"
    )
    assert found.seed == 7
    assert found.options() == {
        "strategy": "particle_filter",
        "model": {"engine": "embedded", "slots": 4},
        "models": {"judge": "synthetic"},
        "reward": {"kind": "self_eval", "model": "judge"},
        "concurrency": 8,
        "policy": "cot",
        "tools": ("calculator",),
        "budget": {"tokens": 8000, "seconds": 120},
    }


def test_a_budget_may_be_written_in_words():
    assert read(BASE + "budget: 8k tokens, 60 s\n").options()["budget"] == {"tokens": 8000, "seconds": 60}


def test_numbers_are_what_they_look_like():
    found = read(BASE, "strategy.threshold=5e-1", "weight_temperature=2").strategy.params
    assert found == {"threshold": 0.5, "weight_temperature": 2}


def test_overrides_win_over_the_file_and_over_options():
    found = read(BASE + "seed: 1\nbudget: {tokens: 5}\n", "seed=3", "budget.tokens=7", seed="2")
    assert (found.seed, found.budget) == (3, {"tokens": 7})


def test_parts_that_are_not_written_can_be_changed():
    found = read(BASE, "policy.max_steps=3", "model.slots=2").options()
    assert found["policy"] == {"preset": "cot", "max_steps": 3}
    assert found["model"] == {"engine": "embedded", "slots": 2}


def test_another_strategy_leaves_the_recipes_parameters_behind():
    found = read(STEP + "      threshold: 0.5\n", strategy="particle_gibbs")
    assert found.options() == {"strategy": "particle_gibbs", "model": "embedded"}


@pytest.mark.parametrize("name", recipe.packaged())
def test_every_packaged_recipe_is_correct(name):
    found = recipe.read(name)
    assert found.name == name
    assert found.description


def test_a_recipe_is_found_by_path_and_by_name(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(BASE)
    assert recipe.read(file) == recipe.read(str(file))
    with pytest.raises(UsageError, match=r"'best-of-m-products'\. Did you mean 'best-of-n-products'"):
        recipe.read("best-of-m-products")
    with pytest.raises(UsageError, match=r"No recipe file 'nowhere/x\.yaml'\. Packaged"):
        recipe.read("nowhere/x.yaml")


def test_of_a_file_that_is_not_there_the_nearest_recipe_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text(BASE)
    with pytest.raises(UsageError, match=r"Did you mean '.*/mine\.yaml'\?"):
        recipe.read(tmp_path / "mien.yaml")
    for spelled in ("recipes/smart-mth.yaml", "recipes/smart-math.yaml", "./smart-math.yml"):
        with pytest.raises(UsageError, match=r"No recipe file .* Did you mean 'smart-math'\? Packaged"):
            recipe.read(tmp_path / spelled)


def test_the_seed_and_the_tools_of_a_recipe_are_those_of_its_runs(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\nseed: 7\ntools: [calculator]\nmodel: synthetic\nstrategy: best_of_n\n")
    pipeline, runs, seen = recipe.load(file), Runs(tmp_path / "runs"), []
    pipeline.solve("7 x 8 =", store=runs, observers=[seen.append])
    record = runs.open("last").record
    assert (seen[0].seed, record["seed"]) == (7, 7)
    assert [tool["name"] for tool in record["task"]["tools"]] == ["calculator"]
    pipeline.solve("7 x 8 =", seed=3, store=runs)
    assert runs.open("last").record["seed"] == 3


def test_an_outcome_reward_may_be_written():
    orm = STEP + "      select: orm\n      outcome: {kind: judge, n_eval: 1, model: synthetic}\n"
    found = read(orm + "model: synthetic\n").pipeline()
    assert found.strategy.outcome.n_eval == 1
    assert set(found.services.engines) == {"policy", "outcome"}


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            BASE + "bugdet: 3\n",
            ["my.yaml:3: bugdet", "Did you mean 'budget'?", "Allowed: budget,"],
        ),
        ("strategy: particle_filter\n", ["my.yaml:1: the key 'name' is missing"]),
        ("name: test\n", ["my.yaml:1: the key 'pipeline' (or strategy"]),
        (BASE + "seed: x\n", ["my.yaml:3: seed", "integer", "'x'"]),
        (BASE + "seed: true\n", ["my.yaml:3: seed", "integer", "True"]),
        (BASE + "seed: -1\n", ["my.yaml:3: seed", "greater than or equal to 0", "-1"]),
        (BASE + "budget:\n  tokns: 3\n", ["my.yaml:4: budget.tokns", "Did you mean 'tokens'?"]),
        (BASE + "budget: {tokens: -3}\n", ["my.yaml:3: budget", "≥ 0", "-3"]),
        (BASE + "budget: 8k tokenz\n", ["my.yaml:3: budget", "8k tokenz"]),
        (BASE + "tools: calculator\n", ["my.yaml:3: tools", "'calculator'"]),
        (BASE + "model: {url: x}\n", ["my.yaml:3: model", "'engine' is missing", "url"]),
        (BASE + "model: embeded\n", ["my.yaml:3: model", "Did you mean 'embedded'?"]),
        (BASE + "model: {engine: embedded, slot: 3}\n", ["my.yaml:3: model", "slot"]),
        (BASE + "tools:\n  - python\n  - calculater\n", ["my.yaml:5: tools.1", "'calculator'"]),
        (BASE + "tools: [{folder: x}]\n", ["my.yaml:3: tools: a tool is a name, or a mapping"]),
        (
            BASE + "tools: [{name: search, foldr: x}]\n",
            ["my.yaml:3: tools.0.foldr", "Did you mean 'folder'?"],
        ),
        (
            BASE + "tools: [{name: calculator, x: 1}]\n",
            ["my.yaml:3: tools.0.x: the tool calculator has no settings"],
        ),
        (BASE + "reward: self_evil\n", ["my.yaml:3: reward", "Did you mean 'self_eval'?"]),
        (BASE + "reward:\n  kind: judge\n  n_evals: 2\n", ["my.yaml:5: reward.n_evals", "'n_eval'"]),
        (BASE + "reward:\n  kind: judge\n  n_eval: 0\n", ["my.yaml:5: reward.n_eval", "at least 1, got 0"]),
        (BASE + "reward:\n  kind: checks\n  model: embedded\n", ["my.yaml:5: reward.model", "no", "checks"]),
        (
            "name: test\nstrategy:\n  name: best_of_n\n  n: 0\n",
            ["my.yaml:4: strategy.n", "at least 1, got 0"],
        ),
        (STEP + "      select: orm\n", ["my.yaml:5: pipeline.0.solve.select", "give outcome="]),
        (STEP + "      outcome: chekcs\n", ["my.yaml:5: pipeline.0.solve.outcome", "Did you mean 'checks'?"]),
        (STEP + "      outcome: 5\n", ["my.yaml:5: pipeline.0.solve.outcome", "kind", "5"]),
        (
            STEP + "      outcome:\n        kind: judge\n        scale: 0\n",
            ["my.yaml:7: pipeline.0.solve.outcome.scale"],
        ),
        (BASE + "policy: cott\n", ["my.yaml:3: policy", "Did you mean 'cot'?"]),
        (BASE + "policy: {max_step: 3}\n", ["my.yaml:3: policy.max_step", "'max_steps'"]),
        (BASE + "policy: {max_steps: 0}\n", ["my.yaml:3: policy", "at least 1"]),
        (
            BASE + "policy:\n  sampling: {temprature: 1}\n",
            ["my.yaml:4: policy.sampling.temprature", "'temperature'"],
        ),
        (BASE + "model: [1]\n", ["my.yaml:3: model", "[1]"]),
        (
            STEP + "      particels: 8\n",
            ["my.yaml:5: pipeline.0.solve.particels", "Did you mean 'particles'?"],
        ),
        (STEP + "      particles: eight\n", ["my.yaml:5: pipeline.0.solve.particles", "integer", "'eight'"]),
        (STEP + "      particles: '8'\n", ["my.yaml:5: pipeline.0.solve.particles", "integer", "'8'"]),
        (STEP + "      particles: true\n", ["my.yaml:5: pipeline.0.solve.particles", "integer", "True"]),
        (
            STEP + "      select: best\n",
            ["my.yaml:5: pipeline.0.solve.select", "'vote'", "'argmax_score'", "'best'"],
        ),
        (
            "name: test\nstrategy:\n  name: particle_filter\n  policy: cot\n",
            ["my.yaml:4: strategy.policy", "'policy' is not a parameter of particle_filter"],
        ),
        ("name: test\nstrategy: particle_filtr\n", ["my.yaml:2: ", "Did you mean 'particle_filter'?"]),
        (
            "name: test\npipeline:\n  - recall\n  - solve: {strategy: beam}\n",
            ["my.yaml:3: pipeline.0", "the recipe has no memory", "memory: {store:"],
        ),
        (
            "name: test\npipeline:\n  - recal\n",
            ["my.yaml:3: pipeline.0", "'recal'", "Did you mean 'recall'?"],
        ),
        (
            "name: test\npipeline:\n  - solve: beam\n",
            ["my.yaml:3: pipeline.0.solve", "'beam'", "{strategy: beam}"],
        ),
        (
            "name: test\npipeline:\n  - solve: {n: 8}\n",
            ["my.yaml:3: pipeline.0.solve", "is missing"],
        ),
        ("name: test\npipeline: []\n", ["my.yaml:2: pipeline", "a list of steps", "[]"]),
        (BASE + "pipeline: []\n", ["my.yaml:3: pipeline", "not both"]),
        ("name: Bad Name\nstrategy: particle_filter\n", ["my.yaml:1: name", "'Bad Name'"]),
    ],
)
def test_a_mistake_is_named_with_its_place(text, told):
    found = complaint(text)
    assert "\n" not in found
    for part in told:
        assert part in found


def test_all_mistakes_are_told_a_line_each():
    assert len(complaint("nam: x\nstrategie: y\nseed: z\n").splitlines()) == 5  # three wrong, two missing


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("budget.tokens=many", "--set budget.tokens=many"),
        (
            "particels=3",
            "--set particels=3: 'particels' is not a parameter of particle_filter. Did you mean",
        ),
        ("seed", "--set seed: write key=value"),
        ("seed.x=3", "--set seed.x=3: "),
        ("a..b=3", "write key=value"),
        ("particles=[1", "--set particles=[1: "),
        ("strategy=beem", "Did you mean 'beam'?"),
    ],
)
def test_a_wrong_override_is_named_as_it_was_typed(override, told):
    assert told in complaint(BASE, override)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"strategy": "particle_gibs"}, "--strategy particle_gibs: No strategy named 'particle_gibs'"),
        ({"seed": "x"}, "--seed x: "),
        ({"budget": "ten bananas"}, "--budget ten bananas: "),
    ],
)
def test_a_wrong_option_is_named_as_it_was_typed(options, told):
    assert complaint(BASE, **options).startswith(told)


LINE = "name: test\npipeline:\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            LINE + "  - solve: {strategy: beam}\n  - verify: {by: checks, retry: 2}\n",
            [
                "my.yaml:4: pipeline.1.verify.retry: 'retry' is not a key of the step 'verify'. "
                "Did you mean 'retries'?"
            ],
        ),
        (
            LINE + "  - route: {ways: {a: {word: {at_most: 4}, solve: beam}, b: {solve: beam}}}\n",
            ["pipeline.0.route.ways.a.word: 'word' is not a key of a way. Did you mean 'words'? Allowed: "],
        ),
        (
            LINE + "  - route: {ways: {a: {words: {at_most: four}, solve: {strategy: beam}}, b: "
            "{solve: {strategy: beam}}}}\n",
            ["pipeline.0.route.ways.a.words.at_most: must be a number, got 'four'."],
        ),
        (
            LINE + "  - ask: {question: Well, choices: yes}\n",
            ["pipeline.0.ask.choices: must be a list such as [yes], got 'yes'."],
        ),
        (
            "name: test\nnode:\n  a: {recall: {}}\nedges:\n  - a -> end\n",
            [
                "the key 'pipeline' (or strategy, or nodes) is missing.",
                "node: 'node' is not a key of a",
            ],
        ),
    ],
)
def test_a_mistake_in_a_line_of_steps_is_told_once_and_with_what_may_stand_there(text, told):
    lines = complaint(text).splitlines()
    assert all(each in line for each, line in zip(told, lines, strict=False)), lines
    assert len([line for line in lines if "no solver is named" not in line]) == len(told), lines


@pytest.mark.parametrize("changes", ["seed=4", {"seed": 4}])
def test_changes_are_a_list(changes):
    with pytest.raises(UsageError, match="Changes are a list of texts such as"):
        recipe.check(strict_yaml.parse(BASE), changes)


def test_a_file_without_its_ending_is_told_how_to_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(BASE)
    with pytest.raises(UsageError, match=r"For the file write mine\.yaml"):
        recipe.read("mine")
