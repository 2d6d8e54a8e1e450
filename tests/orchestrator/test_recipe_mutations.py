"""Recipes with mistakes of every kind: each gives one line for each mistake, never a traceback or a hang.

The control is that the same recipes load before they are changed.
"""

import copy
import gc
import random
import time
from contextlib import suppress

import pytest
import yaml

from abduce.orchestrator import recipe, strict_yaml
from abduce.serving.errors import UsageError

BASES = {name: recipe.document(name).data for name in recipe.packaged()}
BASES["rich"] = yaml.safe_load("""
name: rich
model: {engine: synthetic, depth: 3}
models: {judge: synthetic}
reward: {kind: judge, model: judge, scale: 5}
policy: {preset: cot, max_steps: 4, sampling: {temperature: 0.5}}
tools: [python, calculator]
memory: {store: concepts.db, recall: 6}
budget: {tokens: 9000}
seed: 3
concurrency: 4
solvers:
  quick: {strategy: chain_of_thought}
  deep: {strategy: {name: a_star, k: 3, cost: drop}, model: {engine: synthetic, depth: 2}, reward: checks}
pipeline:
  - recall
  - route: {by: question, ways: {short: {words: {at_most: 12}, solve: quick}, long: {solve: deep}}}
  - verify: {by: python, retries: 2}
  - branch: {most: 3, solve: quick}
  - solve: {strategy: particle_filter, particles: 8, select: orm, outcome: {kind: judge, n_eval: 2}}
  - verify: {by: reward, at_least: 0.7, retries: 2}
  - revise: quick
  - ask: {question: "Is {answer} right?", choices: ["yes", "no"], use: verdict}
  - call: my_function
  - remember
""")
BASES["nodes"] = recipe.from_data(BASES["rich"]).data()

CPU_S = 0.5


def outcome(text):
    """The lines of the complaint, or none; in time, and each line by itself sound."""
    gc.disable()  # a collection walks what hundreds of other tests left; other threads are not measured
    started, lines = time.thread_time(), []
    try:
        recipe.check(strict_yaml.parse(text, file="my.yaml"))
    except UsageError as error:
        lines = str(error).split("\n")
    finally:
        taken = time.thread_time() - started
        gc.enable()
    assert taken < CPU_S
    for line in lines:
        assert line.startswith("my.yaml:")
        assert line.isprintable()
        assert len(line) < 700
    assert len(lines) <= 21
    return lines


def places(data, path=()):
    """Every place of a value, from the outside in; examples are texts of the user's."""
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield (*path, key)
        if key != "examples":
            yield from places(data[key], (*path, key))


def parent(data, path):
    for key in path[:-1]:
        data = data[key]
    return data


def typo(key, rng):
    at = rng.randrange(len(key))
    return rng.choice(
        [key[:at] + key[at + 1 :], key[:at] + "é" + key[at:], key + "s", key.upper(), key + " "]
    )


NAMED_BY_THE_USER = {"models", "solvers", "ways", "nodes", "arms"}  # another key is another name there
DATA = {"rows"}  # of any shape
FREE = {"description", "question", "name", "store", "choices", "contains", "about", "prompt", "said", "call"}
WRONG = [
    ["x", ["y"]],
    {"x": {"y": 1}},
    -1,
    10**30,
    10**5000,
    -0.5,
    True,
    "\u202eodd\u2028\U0001f600",
    "x" * 30_000,
    [[[[[[1]]]]]],
    [None] * 500,
    {f"k{i}": i for i in range(300)},
]


def test_the_unchanged_ones_load():
    for data in BASES.values():
        assert outcome(yaml.safe_dump(data, sort_keys=False, allow_unicode=True)) == []


@pytest.mark.parametrize("name", BASES)
def test_a_misspelt_key_is_told(name):
    rng, told = random.Random(name), 0
    everywhere = [*places(BASES[name])]
    for path in rng.sample(everywhere, min(60, len(everywhere))):
        if not isinstance(path[-1], str) or NAMED_BY_THE_USER & set(path[-2:-1]) or DATA & set(path):
            continue
        data = copy.deepcopy(BASES[name])
        at = parent(data, path)
        at[typo(path[-1], rng)] = at.pop(path[-1])
        lines = outcome(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
        assert lines, path
        told += 1
    assert told > 3


@pytest.mark.parametrize("name", [*[*BASES][::3], "rich", "nodes"])
def test_a_value_of_another_kind_is_told_or_sound(name):
    rng, told, tried = random.Random(name), 0, 0
    everywhere = [*places(BASES[name])]
    for path in rng.sample(everywhere, min(40, len(everywhere))):
        wrong = rng.choice(WRONG)
        if DATA & set(path) or (isinstance(wrong, str) and FREE & set(map(str, path))):
            continue
        data = copy.deepcopy(BASES[name])
        parent(data, path)[path[-1]] = wrong
        with suppress(ValueError):  # yaml itself cannot write 5,000 digits
            lines = outcome(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
            told, tried = told + bool(lines), tried + 1
    assert told >= 0.85 * tried


@pytest.mark.parametrize("seed", range(60))
def test_several_mistakes_at_once_are_a_line_each(seed):
    rng = random.Random(seed)
    data = copy.deepcopy(BASES[rng.choice(["rich", "nodes"])])
    for _ in range(rng.randint(2, 6)):
        path = rng.choice([*places(data)])
        at = parent(data, path)
        kind = rng.choice(["drop", "swap", "wrong", "nothing", "repeat"])
        if kind == "drop":
            del at[path[-1]]
        elif kind == "swap":
            other = rng.choice([*places(data)])
            at[path[-1]] = copy.deepcopy(parent(data, other)[other[-1]])
        elif kind == "repeat" and isinstance(at, list):
            at.append(copy.deepcopy(at[path[-1]]))
        else:
            at[path[-1]] = rng.choice(WRONG[:4] + WRONG[5:9]) if kind == "wrong" else None
    lines = outcome(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    assert len(set(lines)) == len(lines)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = "{a: " * 5000


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        "name: &x a\nstrategy: *x\n",
        f"name: x\nstrategy: {DEEP}",
        "name: x\nstrategy: " + "[" * 20_000,
        "name: x\nstrategy:\n" + "".join(" " * i + "- \n" for i in range(1, 200)),
        "name: x\nstrategy: beam\n" + "".join(f"k{i}: 1\n" for i in range(3000)),
        "name: x\nstrategy: beam\n" * 1000,
        "name: x\npipeline:\n" + "  - solve: {strategy: beam}\n" * 1200,
        "name: x\npipeline:\n" + "  - solve: {strategy: bean}\n" * 1200,
        "name: x\npipeline:\n" + "  - verify: {by: checks, retries: 100}\n" * 60,
        "name: x\nnodes: {" + ",".join(f"n{i}: {{solve: {{strategy: beam}}}}" for i in range(60)) + "}\n"
        "edges: [" + ",".join(f"n{i} -> n{j}" for i in range(60) for j in range(60)) + "]\n",
        "name: x\nstrategy: {name: beam, width: " + "9" * 60_000 + "}\n",
        "name: x\nstrategy: " + "x" * 60_000 + "\n",
        "name: x\n? " + "y" * 60_000 + "\n: 1\n",
        "name: x\n" + '"a\\nb\\tc": 1\nstrategy: beam\n',
        'name: x\nstrategy: "\\0"\n',
        'name: "a\\nb"\nstrategy: beam\n',
        "name: x\nstrategy: {name: beam, width: .nan}\n",
        "name: x\nstrategy: {name: beam, width: 1e999}\n",
        "name: x\nbudget: {tokens: -.inf}\nstrategy: beam\n",
        "name: x\nbudget: .nan tokens\nstrategy: beam\n",
        "name: x\nseed: 99999999999999999999\nstrategy: beam\n",
        "name: x\nmodel: {engine: synthetic, depth: 1000000000000}\nstrategy: {name: beam, width: 0x10}\n",
        "name: x\nstrategy: !!python/object/apply:os.system [ls]\n",
        "name: x\nstrategy: !!binary aGVsbG8=\n",
        "name: x\nstrategy: !!set {a, b}\n",
        "%YAML 9.9\n---\nname: x\n",
        "--- a\n--- b\n",
        "name: x\nstrategy: |\n  a\n b\n",
        "name: 'x\nstrategy: beam\n",
        "\ufeffname: x\nstrategie: beam\n",
        "name: x\r\nstrategie: beam\r\n",
        "{name: x, strategy: beam, name: y}",
        "name: x\ninclude: ../../../etc/passwd\nstrategy: beam\n",
        "name: x\nmodel: ''\nstrategy: beam\n",
        "name: x\nreward: {kind: judge, model: {engine: nope}}\nstrategy: beam\n",
        "",
        "~",
        "[]",
        "\t\tname: x\n",
    ],
    ids=range(40),
)
def test_what_is_meant_to_harm_is_told_in_time(text):
    assert outcome(text)


@pytest.mark.parametrize("name", ["rich", "nodes", "whole-math", "particle-math"])
def test_any_override_is_applied_or_told_as_it_was_typed(name):
    rng = random.Random(name)
    written = strict_yaml.parse(yaml.safe_dump(BASES[name], sort_keys=False, allow_unicode=True))
    keys = [str(key) for path in places(recipe.from_data(BASES[name]).data()) for key in path]
    keys += [str(key) for path in places(written.data) for key in path]
    values = [
        "1",
        "x",
        "{a: 1}",
        "[1, 2]",
        "",
        "null",
        ".nan",
        "[",
        "'",
        "-7",
        "a: b: c",
        "1e9",
        "${secret:X}",
    ]
    for _ in range(60):
        path = [rng.choice([*keys, "0", "9", "x", "é", " "]) for _ in range(rng.randint(1, 5))]
        override = f"{'.'.join(path)}={rng.choice(values)}"
        try:
            recipe.check(written, [override])
        except UsageError as error:
            assert all(len(line) < 700 for line in str(error).split("\n"))
            assert f"--set {override}".strip() in str(error) or "recipe" in str(error), override


def test_the_same_holds_of_files_of_any_bytes(tmp_path):
    rng = random.Random(0)
    for i in range(60):
        file = tmp_path / f"{i}.yaml"
        file.write_bytes(rng.randbytes(rng.randint(0, 3000)))
        with pytest.raises(UsageError) as error:
            recipe.read(file)
        assert "\n" not in str(error.value)
