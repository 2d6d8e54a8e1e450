"""From the names of tools to what a strategy is told of them, and back from a run's record."""

import json

import pytest

import abduce
from abduce.orchestrator.again import again, task_of
from abduce.orchestrator.solve import build
from abduce.serving.errors import UnknownName
from abduce.serving.flow import ToolCall
from abduce.serving.scripted import Scripted
from abduce.serving.tool_calls import write
from abduce.strategies.base import Task
from abduce.tools import load
from abduce.tools.base import tool

CALL = write([ToolCall("", "calculator", '{"expression": "6 * 7"}')])


def pipeline(**options):
    settings = {"policy": "plain", "tools": ["calculator", "python"], **options}
    return build(strategy="react", model={"engine": "scripted", "replies": [CALL, "42"]}, **settings)


def offered(task, tools=("calculator", "python")):
    """The names of the tools that the model is offered."""
    seen = []

    def model(request, seed):
        seen.append([tool.name for tool in request.prompt.tools])
        return "done"

    build(strategy="react", policy="plain", tools=list(tools), model=Scripted(model)).solve(task)
    return seen[0]


def test_a_task_has_the_tools_it_names_or_all_of_the_run():
    assert offered("q") == ["calculator", "python"]
    assert offered(Task("q", tools=("python",))) == ["python"]
    assert offered(Task("q", tools=(load("calculator").spec,))) == ["calculator"]
    with pytest.raises(UnknownName, match="Did you mean 'calculator'"):
        offered(Task("q", tools=("calculater",)))
    with pytest.raises(UnknownName):
        offered(Task("q", tools=("python",)), tools=())


def test_a_tool_of_ones_own():
    @tool
    def mine(x: int) -> str:
        """Mine."""
        return "1"

    assert offered("q", ["calculator", mine]) == ["calculator", "mine"]


def test_a_run_that_is_resumed_is_asked_with_the_same_tools(tmp_path):
    runs = abduce.Runs(tmp_path)
    first = pipeline().solve("6 * 7 =", store=runs)
    assert first.answer == "42" and first.usage.tool_calls == 1
    record = runs.open("last").record
    task, seed = task_of(json.loads(json.dumps(record)))
    assert [spec.name for spec in task.specs] == ["calculator", "python"]
    assert task.specs[0] == load("calculator").spec
    resumed = again(record).solve(task, seed=seed, run=runs.open("last"))
    assert resumed == first  # the script has ended: nothing was asked again


def test_a_recipe_gives_tools_their_settings(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("The password of the week is tuna.")
    file = tmp_path / "r.yaml"
    file.write_text(
        "# x\nname: x\nstrategy: react\npolicy: plain\n"
        "model: {engine: scripted, replies: [REPLY, tuna]}\n".replace(
            "REPLY", json.dumps(write([ToolCall("", "notes", '{"query": "password"}')]))
        )
        + f"tools: [calculator, {{name: search, folder: {tmp_path / 'notes'}, as: notes}}]\n"
    )
    made = abduce.load(file)
    assert list(made.services.tools) == ["calculator", "notes"]
    result = made.solve("What is the password?")
    assert result.answer == "tuna" and result.usage.tool_calls == 1
