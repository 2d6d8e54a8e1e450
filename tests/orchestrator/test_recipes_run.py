"""Every packaged recipe, run with a scripted model; the rich ones do what their first line says."""

from importlib.resources import files

import pytest

from abduce.orchestrator import recipe, solve
from abduce.orchestrator.services import Services
from abduce.orchestrator.steps import KINDS, kind_of
from abduce.orchestrator.trace import NodeStarted
from abduce.serving.scripted import Scripted
from abduce.strategies.base import Check, Task

PRODUCT = Task("7 x 8 =", checks=(Check("numeric", {"value": "56"}),))
LONG_PRODUCT = Task("24 x 3 =", checks=(Check("numeric", {"value": "72"}),))
WORDS = Task("Tom has 4 bags with 6 apples each, and eats 5 of them. How many apples are left in the end?")
SOLUTION = "The bags hold 4 * 6 = 24 apples.\nTom has 24 - 5 = 19 apples left.\nThe answer is 19."


def said(request, seed):
    """What a model that knows the three questions says, line by line where it is asked for lines."""
    text = "\n".join([*(message.content for message in request.prompt.messages), request.prompt.prefix])
    if "24 x 3" in text:
        return rest(text, "= 20 x 3 + 4 x 3\n= 60 + 12\nThe answer is 72")
    return " 56" if "7 x 8" in text and "Tom" not in text else rest(text, SOLUTION)


def rest(text, solution):
    """The lines of the solution that are not in the text yet."""
    lines = solution.splitlines(keepends=True)
    return "".join(lines[max((i + 1 for i, line in enumerate(lines) if line.strip() in text), default=0) :])


@pytest.fixture
def play(monkeypatch, tmp_path):
    """Runs a recipe with every engine scripted; returns its result, its visits and the engine's requests."""
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path))

    def played(name, task, script=said, overrides=(), **options):
        asked, seen = [], []

        def reply(request, seed):
            asked.append(request)
            return script(request, seed)

        sure = (-0.1, -3.0)
        engine = Scripted(reply, logprob=lambda _: -0.1, top_logprobs=lambda _: sure, ids=True)
        monkeypatch.setattr(solve, "_engine", lambda spec: engine)
        pipeline = recipe.load(name, overrides)
        result = pipeline.solve(task, observers=[seen.append], **options)
        return result, [event.node for event in seen if isinstance(event, NodeStarted)], asked

    return played


async def agrees(question, choices):
    return "yes"


def one_after_the_other(*texts):
    """A script; its last text is said for ever."""
    left = list(texts)
    return lambda request, seed: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize("name", recipe.packaged())
def test_every_recipe_finds_what_the_model_knows(play, name):
    task, answer = (WORDS, "19") if "math" in name else (PRODUCT, "56")
    task, answer = (LONG_PRODUCT, "72") if "long" in name else (task, answer)
    options = {"human": agrees} if "asked" in name else {}
    result, _, asked = play(name, task, **options)
    assert (result.answer, result.complete) == (answer, True)
    assert asked


def test_each_recipe_begins_with_a_comment_that_says_what_it_shows():
    folder = files("abduce") / "recipes"
    for name in recipe.packaged():
        first, second = (folder / f"{name}.yaml").read_text().splitlines()[:2]
        assert first.startswith("# ")
        assert first.endswith(".")
        assert second == f"name: {name}"


def test_the_recipes_show_every_step_but_that_of_the_users_own():
    shown = {kind_of(step) for name in recipe.packaged() for step in recipe.read(name).nodes.values()}
    assert shown == set(KINDS) - {"call"}


def test_a_draft_that_fails_the_check_is_drawn_again(play):
    result, visits, _ = play("retry-products", PRODUCT, one_after_the_other(" 54", " 58", " 56"))
    assert result.answer == "56"
    assert visits == ["solve", "verify"] * 3


def test_retries_end(play):
    result, visits, _ = play("retry-products", PRODUCT, lambda request, seed: " 54")
    assert (result.answer, result.diagnostics["verified"]) == ("54", False)
    assert visits.count("solve") == 8


@pytest.mark.parametrize(("task", "way"), [(PRODUCT, "short"), (WORDS, "long")])
def test_each_kind_of_question_takes_its_way(play, task, way):
    _, visits, _ = play("routed-math", task)
    assert visits == ["route", way, "verify"]


def test_a_wrong_calculation_is_mended_with_what_was_found(play):
    asked_for, wrong = [], SOLUTION.replace("= 19", "= 18").replace("is 19", "is 18")

    def script(request, seed):
        question, _, solution = request.prompt.prefix.rpartition("Answer:\n")
        asked_for.append(question)
        return rest(solution, SOLUTION if "What was found: 24 - 5 is 19, not 18." in question else wrong)

    result, visits, _ = play("revised-math", WORDS, script)
    assert result.answer == "19"
    assert visits == ["draft", "check", "mend", "check"]
    assert "An earlier solution:" in asked_for[-1]


def test_the_lines_of_a_question_are_solved_at_the_same_time(play):
    lines = Task("How many apples are in 4 bags of 6?\nTom eats 5 of 24. How many are left?")
    result, visits, asked = play("branched-math", lines, lambda request, seed: "The answer is 19.")
    assert visits == ["branch", "solve"]
    parts, whole = asked[:2], asked[2:]
    assert {"bags of 6" in r.prompt.prefix.rpartition("Question:")[2] for r in parts} == {True, False}
    assert all("Answer: 19" in request.prompt.prefix for request in whole)
    assert result.answer == "19"


def test_what_was_found_before_is_put_before_the_question(play):
    play("remembered-products", PRODUCT)
    result, visits, asked = play("remembered-products", PRODUCT)
    assert visits == ["recall", "solve", "verify", "remember"]
    assert '- "7 x 8 = Answer: 56"\n\n7 x 8 = Answer:' in asked[0].prompt.prefix
    assert result.diagnostics["verified"]


def test_what_is_refused_is_drawn_again(play):
    questions = []

    async def refuses_twice(question, choices):
        questions.append((question, *choices))
        return "no" if len(questions) < 3 else "yes"

    result, visits, _ = play("asked-products", PRODUCT, human=refuses_twice)
    assert visits == ["solve", "confirm"] * 3
    assert questions[0] == ("7 x 8 = 56: is that right?", "yes", "no")
    assert result.diagnostics["verified"] is True


def test_the_large_model_is_asked_only_in_doubt(play, monkeypatch):
    _, content, _ = play("two-models-math", WORDS)
    assert content == ["draft", "judge"]
    _, doubting, _ = play("two-models-math", WORDS, overrides=["nodes.judge.verify.at_least=1"])
    assert doubting == ["draft", "judge", "again"]


def test_the_whole_way(play):
    _, product, _ = play("whole-math", PRODUCT)
    assert product == ["recall", "kind", "product", "agree", "keep"]
    _, words, _ = play("whole-math", WORDS)
    assert words == ["recall", "kind", "words", "compute", "keep"]
    assert isinstance(recipe.load("whole-math").services, Services)
