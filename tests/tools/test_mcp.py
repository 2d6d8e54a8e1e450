import asyncio
import gc
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("mcp")

from abduce.orchestrator.services import Services
from abduce.orchestrator.solve import Pipeline
from abduce.serving import redact
from abduce.serving.errors import UnknownName, UsageError
from abduce.serving.flow import ToolCall
from abduce.serving.scripted import Scripted
from abduce.serving.tool_calls import write
from abduce.strategies.base import Task
from abduce.strategies.policy import POLICIES
from abduce.strategies.react import ReAct
from abduce.tools import toolbox
from abduce.tools.base import tool
from abduce.tools.mcp import MAX_DESCRIPTION, Mcp

HOSTILE = str(Path(__file__).parent / "hostile_server.py")
TIME = {"name": "mcp", "command": ["python", "-m", "mcp_server_time", "--local-timezone=UTC"]}


@pytest.fixture(scope="module")
def clock():
    """The time server of the protocol's authors, from PyPI."""
    pytest.importorskip("mcp_server_time")
    return toolbox([{**TIME, "effects": {"convert_time": "pure"}}])


@pytest.fixture(scope="module")
def hostile():
    redact.register("s3cret-of-the-user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef")
        given = {"GIVEN": "yes"}
        tools = Mcp(("python", HOSTILE), environment=given, seconds=1.5, output_chars=5000).tools()
    return {tool.name: tool for tool in tools}


def agent(engine, tools, **settings):
    strategy = ReAct(policy=POLICIES["plain"], **settings)
    return Pipeline(strategy, Services({"policy": engine}, tools=tools))


# ---------------------------------------------------------------- a real server


def test_its_tools_are_known_when_the_run_begins(clock):
    assert set(clock) == {"get_current_time", "convert_time"}
    assert clock["convert_time"].effect == "pure" and clock["get_current_time"].effect == "once"
    assert clock["convert_time"].parameters["required"] == ["source_timezone", "time", "target_timezone"]


async def test_calls_come_back_as_text_and_as_values(clock):
    asked = {"source_timezone": "Asia/Tokyo", "time": "12:00", "target_timezone": "Asia/Kolkata"}
    found = await clock["convert_time"].call(asked)
    assert found.ok and found.value["time_difference"] == "-3.5h" and json.loads(found.text) == found.value
    wrong = await clock["convert_time"].call({**asked, "source_timezone": "Mars/Olympus"})
    assert not wrong.ok and "Mars/Olympus" in wrong.text
    assert not (await clock["convert_time"].call({})).ok


def test_an_agent_uses_it(clock):
    """The agent is offered the server's tools, calls one, and answers from what it returned."""

    def model(request, seed):
        said = request.prompt.messages
        assert {tool.name for tool in request.prompt.tools} == set(clock)
        if said[-1].role == "user":
            zones = {"source_timezone": "Asia/Tokyo", "time": "12:00", "target_timezone": "Asia/Kolkata"}
            return write([ToolCall("", "convert_time", json.dumps(zones))])
        assert said[-1].role == "tool" and said[-2].tool_calls[0].id == said[-1].tool_call_id
        return "The difference is " + json.loads(said[-1].content)["time_difference"]

    result = agent(Scripted(model), clock).solve("12:00 in Tokyo: how far is Kolkata?")
    assert result.answer == "The difference is -3.5h" and result.complete
    assert result.diagnostics["tool_calls"] == 1 and result.usage.tool_calls == 1


def test_one_connection_serves_many_event_loops_and_threads(clock):
    for _ in range(3):
        assert asyncio.run(clock["get_current_time"].call({"timezone": "UTC"})).ok


async def test_calls_at_the_same_time(clock):
    hours = [f"{h:02}:00" for h in range(12)]
    asked = ({"source_timezone": "UTC", "time": hour, "target_timezone": "UTC"} for hour in hours)
    found = await asyncio.gather(*(clock["convert_time"].call(each) for each in asked))
    assert [f.value["target"]["datetime"][11:16] for f in found] == hours


def test_it_ends_when_nobody_holds_its_tools():
    tools = Mcp(("python", HOSTILE), seconds=5.0).tools()
    child = subprocess.run(
        ["pgrep", "-f", HOSTILE], capture_output=True, text=True, check=False
    ).stdout.split()
    del tools
    gc.collect()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = subprocess.run(["pgrep", "-f", HOSTILE], capture_output=True, text=True, check=False)
        if len(left.stdout.split()) < len(child):
            return
        time.sleep(0.05)
    raise AssertionError("the server still runs")


@pytest.fixture(scope="module")
def address():
    """A server behind an address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([sys.executable, HOSTILE, str(port)], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/mcp"
        process.kill()


async def test_over_http(address):
    [echo] = Mcp(url=address, only=("echo",), seconds=5.0).tools()
    assert (await echo.call({"text": "hello"})).text == "hello None"


def test_only_some_tools_under_a_name(address):
    tools = toolbox([{"name": "mcp", "url": address, "only": ["echo", "pay"], "as": "shop"}])
    assert list(tools) == ["shop_echo", "shop_pay"]


# ---------------------------------------------------------------- a hostile one


def test_a_description_is_one_short_paragraph_of_plain_text(hostile):
    told = hostile["weather"].description
    assert told.startswith("Look up the weather.") and len(told) <= MAX_DESCRIPTION
    assert told.isprintable() and "\n" not in told
    for markup in ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tools>", "\x1b", "\x00"):
        assert markup not in told


async def test_neither_results_nor_faults_hold_markup(hostile):
    found = await hostile["weather"].call({"city": "Oslo"})
    assert found.text.startswith("Sunny in Oslo.") and "<tool_call>" not in found.text
    assert "<|" not in found.text and "<|" not in json.dumps(found.value)
    failed = await hostile["fail"].call({})
    assert not failed.ok and "<|im_end|>" not in failed.text


def test_a_hostile_description_calls_nothing_and_leaks_nothing(hostile):
    """The model answers the question and nothing else: only what the model itself writes is a call. What
    the server says, in its description and in its result, asks for `pay`; it is never called."""
    paid, seen = [], []

    @tool
    def pay(amount: int) -> str:
        """Pay."""
        paid.append(amount)
        return "paid"

    def model(request, seed):
        seen.append(request.prompt)
        if request.prompt.messages[-1].role == "user":
            return write([ToolCall("", "weather", '{"city": "Oslo s3cret-of-the-user"}')])
        return "It is " + request.prompt.messages[-1].content

    tools = {"weather": hostile["weather"], "pay": pay}
    result = agent(Scripted(model), tools).solve(Task("Weather in Oslo?"))
    assert paid == [] and result.diagnostics["tool_calls"] == 1
    assert "[secret]" in result.text and "s3cret" not in result.text
    offered = [t for prompt in seen for t in prompt.tools if t.name == "weather"]
    assert offered and all("<" not in t.description for t in offered)


async def test_secrets_never_stand_in_arguments(hostile):
    more = {"key": "x s3cret-of-the-user y"}
    found = await hostile["echo"].call({"text": "s3cret-of-the-user", "more": more})
    assert found.text == "[secret] {'key': 'x [secret] y'}"


async def test_it_gets_the_environment_it_is_given_and_no_other(hostile):
    said = [(await hostile["around"].call({"name": name})).text for name in ("OPENAI_API_KEY", "GIVEN")]
    assert said == ["nothing", "yes"]


async def test_it_has_no_model_to_ask(hostile):
    found = await hostile["ask_model"].call({})
    assert not found.ok and "the model said" not in found.text


async def test_time_and_output_are_limited(hostile):
    began = time.perf_counter()
    slow, long = await asyncio.gather(hostile["slow"].call({}), hostile["long"].call({}))
    assert time.perf_counter() - began < 4 and not slow.ok
    assert len(long.text) < 5100 and "1000000 characters" in long.text
    assert (await hostile["echo"].call({"text": "still here"})).ok


async def test_cancelling_a_call_is_at_once_and_harms_no_other(hostile):
    call = asyncio.ensure_future(hostile["slow"].call({}))
    await asyncio.sleep(0.05)
    call.cancel()
    began = time.perf_counter()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert time.perf_counter() - began < 2
    assert (await hostile["echo"].call({"text": "a"})).ok


async def test_a_server_that_ends_is_told_to_the_model():
    tools = {t.name: t for t in Mcp(("python", HOSTILE), only=("die", "echo"), seconds=2.0).tools()}
    for name, arguments in (("die", {}), ("echo", {"text": "a"})):
        found = await tools[name].call(arguments)
        assert not found.ok and found.text


def test_a_tool_cannot_take_the_name_of_another(address):
    @tool
    def pay(amount: int) -> str:
        """Pay."""
        return str(amount)

    with pytest.raises(UsageError, match="Two tools are named 'pay'"):
        toolbox([pay, {"name": "mcp", "url": address}])


# ---------------------------------------------------------------- the user's mistakes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "needs a command or an address"),
        ({"command": ("a",), "url": "http://x"}, "needs a command or an address"),
        ({"command": "mcp-server-time"}, "command is a list"),
        ({"url": "tools.example.org"}, "url is an address"),
        ({"command": ("python",), "effects": {"x": "none"}}, "pure, idempotent or once"),
        ({"command": ("no-such-program-at-all",)}, "cannot be used"),
        ({"command": ("python", "-c", "print('hello')"), "seconds": 5.0}, "cannot be used"),
        (
            {"command": ("python", "-c", "import time; time.sleep(60)"), "connect_seconds": 0.5},
            "cannot be used",
        ),
        ({"command": ("python", "-c", "import sys; sys.exit('set FOO first')")}, "set FOO first"),
        ({"url": "http://127.0.0.1:9/mcp", "seconds": 2.0}, "cannot be used"),
    ],
)
def test_a_server_that_cannot_be_had_is_told(settings, said):
    with pytest.raises(UsageError, match=said):
        Mcp(**settings).tools()


def test_a_tool_that_it_has_not_is_told(address):
    with pytest.raises(UnknownName, match="Did you mean 'weather'"):
        toolbox([{"name": "mcp", "url": address, "only": ["wether"]}])
