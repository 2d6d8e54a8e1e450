import asyncio
import threading

import pytest

from abduce.serving.errors import UnknownName, UsageError
from abduce.serving.flow import ToolResult
from abduce.tools import TOOLS, load, toolbox
from abduce.tools.base import Tool, tool


@tool
def area(width: float, height: float = 1.0) -> float:
    """The area of a rectangle."""
    return width * height


async def test_a_tool_is_its_signature_and_docstring():
    assert (area.name, area.description) == ("area", "The area of a rectangle.")
    assert area.parameters["required"] == ["width"]
    assert area.parameters["properties"]["height"]["default"] == 1.0
    assert area.schema()["function"]["parameters"] == area.parameters
    assert await area.call({"width": 2, "height": 3}) == ToolResult("6.0")


@pytest.mark.parametrize(
    "arguments", [{}, {"width": "wide"}, {"width": 1, "depth": 2}, {"width": None}, {1: 2}, {"width": [1]}]
)
async def test_wrong_arguments_are_told_to_the_model(arguments):
    told = await area.call(arguments)
    assert not told.ok
    assert told.text.startswith("Wrong arguments for area (it takes: width, height).")


async def test_a_fault_is_told_to_the_model():
    @tool
    def divide(a: int, b: int) -> float:
        """a / b."""
        return a / b

    assert await divide.call({"a": 1, "b": 0}) == ToolResult("ZeroDivisionError: division by zero", ok=False)


async def test_results_become_text():
    @tool
    async def facts(kind: str) -> object:
        """Facts."""
        return {"json": {"é": [1, None]}, "result": ToolResult("no", ok=False), "set": {1}}[kind]

    assert (await facts.call({"kind": "json"})).text == '{"é": [1, null]}'
    assert await facts.call({"kind": "result"}) == ToolResult("no", ok=False)
    assert (await facts.call({"kind": "set"})).text == "{1}"


async def test_a_plain_function_does_not_hold_up_the_others():
    all_here = threading.Barrier(3, timeout=10)

    @tool
    def meet() -> str:
        """Wait for two others."""
        all_here.wait()
        return "met"

    results = await asyncio.gather(*(meet.call({}) for _ in range(3)))
    assert results == [ToolResult("met")] * 3


def test_what_cannot_be_described_is_refused():
    def no_doc(x: int) -> int:
        return x

    def no_type(x):
        """Doc."""

    def too_free(*xs: int) -> None:
        """Doc."""

    for function, told in ((no_doc, "docstring"), (no_type, "needs a type"), (too_free, "named parameters")):
        with pytest.raises(UsageError, match=told):
            tool(function)


@pytest.mark.parametrize("name", sorted(TOOLS))
async def test_every_registered_tool_keeps_the_contract(name):
    found = load(name)
    assert isinstance(found, Tool)
    assert found.name == name
    assert found.description
    assert found.parameters["type"] == "object"
    assert not (await found.call({"no such argument": 1})).ok


def test_toolbox():
    assert list(toolbox(["python", "calculator"])) == ["python", "calculator"]
    assert toolbox([]) == {}
    with pytest.raises(UnknownName, match="Did you mean 'calculator'"):
        toolbox(["calculater"])
