"""A record is enough to make the run again: by words, by a recipe, with changes."""

import orjson
import pytest

from abduce.orchestrator import recipe
from abduce.orchestrator.again import again, changed, recipe_of, task_of
from abduce.orchestrator.codec import dumps
from abduce.orchestrator.solve import build
from abduce.serving.constraints import Regex
from abduce.serving.errors import UsageError
from abduce.serving.flow import Message, ToolCall, ToolSpec
from abduce.strategies.base import Check, Task

WORDS = {
    "strategy": "beam",
    "width": 3,
    "model": {"engine": "synthetic", "alphabet": "abcd", "depth": 3},
    "models": {"reward": {"engine": "synthetic", "alphabet": "abcd", "depth": 3}},
    "policy": {"preset": "cot", "answer_kind": "text"},
    "reward": {"kind": "rate"},
    "tools": ["calculator"],
    "budget": {"tokens": 900},
    "concurrency": 3,
}


def record(pipeline, task="Which?", seed=5):
    """As it comes back from a store."""
    task = Task(task) if isinstance(task, str) else task
    return orjson.loads(dumps({**pipeline.settings, "task": task, "seed": seed, "run": "r"}))


def test_words_are_enough():
    first = build(**WORDS)
    second = again(record(first))
    assert (second.strategy, second.budget, second.concurrency) == (
        first.strategy,
        first.budget,
        first.concurrency,
    )
    assert second.solve("Which?", seed=3) == first.solve("Which?", seed=3)


def test_words_can_be_read_as_a_recipe():
    """A run is the same whether its record holds the words of `build` or the recipe that they make."""
    words = record(build(**WORDS))
    by_recipe = changed(words, ["width=3"])
    assert set(by_recipe) >= {"recipe", "task", "seed"}
    assert not set(by_recipe) & {"strategy", "params", "model"}
    assert again(by_recipe).solve("Which?", seed=5) == again(words).solve("Which?", seed=5)
    assert (again(by_recipe).budget, again(by_recipe).concurrency) == (again(words).budget, 3)


@pytest.mark.parametrize("name", recipe.packaged())
def test_every_packaged_recipe_comes_back(name):
    written = recipe.read(name)
    stored = orjson.loads(dumps({"recipe": written.data(), "task": Task("x"), "seed": 0}))
    assert recipe_of(stored) == written


def test_a_whole_part_is_replaced_with_all_it_had():
    words = record(build(**WORDS))
    found = changed(words, ["strategy=best_of_n", "n=2", "model=scripted", "model.replies=x"])
    assert found["recipe"]["strategy"] == {"name": "best_of_n", "n": 2}
    assert found["recipe"]["model"] == {"engine": "scripted", "replies": "x"}


def test_what_the_task_was_comes_back():
    call = ToolCall("t1", "look", "{}")
    task = Task(
        "7 x 8 =",
        choices=("55", "56"),
        checks=(Check("numeric", {"value": "56"}),),
        metadata={"from": "a book"},
        messages=(Message("user", "7 x 8 ="), Message("assistant", "", tool_calls=(call,))),
        offers=(ToolSpec("look", "Look.", {"type": "object"}),),
        stop=("\n",),
        max_tokens=9,
    )
    assert task_of(record(build(**WORDS), task, seed=9)) == (task, 9)


def test_a_form_that_is_not_written_down_is_said():
    with pytest.raises(UsageError, match="demands a form"):
        task_of(record(build(**WORDS), Task("x", constraint=Regex("[0-9]+"))))


@pytest.mark.parametrize("damaged", [{}, {"task": {}, "seed": 0}, {"task": {"question": "x"}, "seed": "a"}])
def test_a_record_without_a_task_is_damaged(damaged):
    with pytest.raises(UsageError, match="damaged"):
        task_of({"run": "r", **damaged})


def test_python_objects_are_named(tmp_path):
    class Mine:
        def solve(self, task, *, seed):
            yield []

    words = record(build(strategy=Mine(), model=WORDS["model"]))
    for use in (lambda: again(words), lambda: changed(words, ["seed=1"])):
        with pytest.raises(UsageError, match="strategy=<Mine object>, which is not written down"):
            use()
    assert changed(words, []) == words  # it can still be forked as it is, to go on in Python


def test_changes_are_a_list_or_a_mapping():
    made = record(build(**WORDS))
    assert changed(made, {"seed": 4})["seed"] == changed(made, ["seed=4"])["seed"] == 4
    with pytest.raises(UsageError, match="Changes are a list of texts such as"):
        changed(made, "seed=4")
