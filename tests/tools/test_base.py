import asyncio
import threading
import time
from pathlib import Path

import limits
import pytest

from abduce.serving import redact
from abduce.serving.errors import UnknownName, UsageError
from abduce.serving.flow import ToolResult
from abduce.tools import TOOLS, kit, load, toolbox
from abduce.tools.base import Limits, Tool, tool


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


SETTINGS = {
    "fetch": {"hosts": ["example.org"]},
    "mcp": {"command": ["python", "-m", "mcp_server_time", "--local-timezone=UTC"]},
    "search": {"folder": str(Path(__file__).parent)},
}


@pytest.mark.parametrize("name", sorted(TOOLS))
async def test_every_registered_tool_keeps_the_contract(name):
    tools = kit(name, **SETTINGS.get(name, {}))
    for found in tools:
        assert isinstance(found, Tool)
        assert found.name == name or len(tools) > 1
        assert found.description
        assert found.parameters["type"] == "object"
        assert not (await found.call({"no such argument": 1})).ok


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_one_that_needs_settings_says_which(name):
    with pytest.raises(UsageError, match=f"{{name: {name}, "):
        load(name)


def test_toolbox(tmp_path):
    assert list(toolbox(["python", "calculator", area])) == ["python", "calculator", "area"]
    searches = [{"name": "search", "folder": str(tmp_path)}, {"name": "search", "folder": ".", "as": "more"}]
    assert list(toolbox(searches)) == ["search", "more"]
    assert toolbox([]) == {}
    with pytest.raises(UnknownName, match="Did you mean 'calculator'"):
        toolbox(["calculater"])
    with pytest.raises(UnknownName, match="Did you mean 'folder'"):
        toolbox([{"name": "search", "foldr": "docs"}])
    for wrong in (["python", "python"], [area, area], [3], [{"folder": "x"}], [{"name": "python", "x": 1}]):
        with pytest.raises(UsageError):
            toolbox(wrong)


async def test_a_call_ends_within_its_time():
    @tool(limits=Limits(seconds=0.1))
    def sleepy() -> None:
        """Sleep."""
        time.sleep(1)

    @tool(limits=Limits(seconds=0.1))
    async def lazy() -> None:
        """Sleep."""
        await asyncio.sleep(60)

    began = time.perf_counter()
    told = await asyncio.gather(sleepy.call({}), lazy.call({}))
    assert time.perf_counter() - began < 0.9
    assert [t.text for t in told] == ["sleepy took more than 0.1 s.", "lazy took more than 0.1 s."]


async def test_a_timeout_of_the_tools_own_is_its_fault():
    @tool
    def own() -> None:
        """Raise."""
        raise TimeoutError("the other side is slow")

    assert (await own.call({})).text == "TimeoutError: the other side is slow"


async def test_a_long_result_is_cut_and_says_so():
    @tool(limits=Limits(output_chars=100))
    def long(n: int) -> str:
        """Long."""
        return "x" * n

    assert (await long.call({"n": 100})).text == "x" * 100
    assert (await long.call({"n": 101})).text == "x" * 100 + "\n[101 characters; the first 100 are shown]"


async def test_a_result_that_is_no_text_is_kept_as_a_value():
    @tool
    def facts(kind: str) -> object:
        """Facts."""
        return {"number": 3, "list": [1, {"a": None}], "text": "3", "set": {1}}[kind]

    values = [(await facts.call({"kind": kind})).value for kind in ("number", "list", "text", "set")]
    assert values == [3, [1, {"a": None}], None, None]


async def test_memory_and_time_of_a_process_are_limited():
    began = time.perf_counter()
    small, large, endless, broken = await asyncio.gather(
        limits.grow.call({"megabytes": 1}),
        limits.grow.call({"megabytes": 1000}),
        limits.spin.call({"seconds": 60}),
        limits.fail.call({"why": "no reason"}),
    )
    assert time.perf_counter() - began < 3
    assert (small.text, small.value, broken.text) == (str(1 << 20), 1 << 20, "ValueError: no reason")
    assert not (large.ok or endless.ok) and "256 MiB" in large.text and "0.5 s" in endless.text


def test_what_another_process_cannot_find_is_refused():
    with pytest.raises(UsageError, match="top of a module"):

        @tool(limits=Limits(memory_bytes=1 << 28))
        def inner() -> None:
            """Inner."""


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"at_once": 0}, {"output_chars": 0}, {"memory_bytes": 5}])
def test_limits_that_nothing_keeps_are_refused(wrong):
    with pytest.raises(UsageError):
        Limits(**wrong)


def test_an_effect_is_one_of_three_and_once_if_nothing_is_said():
    assert area.effect == "once" and area.spec.effect == "once"
    with pytest.raises(UsageError, match="pure, idempotent or once"):
        tool(effect="none")(area.run)


async def test_a_secret_in_a_fault_is_not_told():
    redact.register("hunter2-hunter2")

    @tool
    def leak() -> None:
        """Leak."""
        raise ValueError("no access with hunter2-hunter2")

    assert (await leak.call({})).text == "ValueError: no access with [secret]"
