"""What a tool does to the world decides when the driver runs it."""

import asyncio

import pytest

from abduce.orchestrator.dispatch import UNFINISHED
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.journal import Journal
from abduce.orchestrator.services import Services
from abduce.serving.flow import CallTool, Failure, Fork, ToolResult
from abduce.tools.base import Limits, tool


def counted(effect, seconds=0.0, at_once=None):
    """A tool that counts its calls."""
    called, flying, peak = [], [0], [0]

    @tool(effect=effect, limits=Limits(at_once=at_once))
    async def count(x: int) -> str:
        """Count."""
        called.append(x)
        flying[0] += 1
        peak[0] = max(peak[0], flying[0])
        await asyncio.sleep(seconds)
        flying[0] -= 1
        if x < 0:
            raise ValueError("negative")
        return f"{x} for the {called.count(x)}. time"

    return count, called, peak


def calls(*batch):
    replies = yield list(batch)
    return replies


async def run(flow, *tools, journal=None):
    driver = Driver(Services(tools={tool.name: tool for tool in tools}), journal=journal)
    return await driver.run(flow), driver.ledger.usage


def call(x, speculative=False):
    return CallTool("count", {"x": x}, speculative)


async def test_a_pure_tool_is_run_once_for_equal_calls_also_at_the_same_time():
    tool, called, _ = counted("pure", 0.01)
    replies, usage = await run(calls(*[call(1)] * 5, call(2)), tool)
    assert sorted(called) == [1, 2] and [r.text for r in replies[:5]] == ["1 for the 1. time"] * 5
    assert usage.tool_calls == 6  # a budget does not depend on who came first


async def test_what_failed_is_tried_again():
    tool, called, _ = counted("pure")
    replies, _ = await run(calls(call(-1), call(-1)), tool)
    assert called == [-1, -1] and not any(reply.ok for reply in replies)


async def test_nothing_is_kept_from_one_run_to_the_next():
    tool, called, _ = counted("pure")
    await run(calls(call(1)), tool)
    await run(calls(call(1)), tool)
    assert called == [1, 1]


@pytest.mark.parametrize("effect", ["idempotent", "once"])
async def test_a_tool_with_effects_is_run_each_time(effect):
    tool, called, _ = counted(effect)
    await run(calls(call(1), call(1)), tool)
    assert called == [1, 1]


@pytest.mark.parametrize("effect", ["pure", "idempotent", "once"])
async def test_a_speculative_call_runs_pure_tools_only(effect):
    tool, called, _ = counted(effect)
    [reply], usage = await run(calls(call(1, speculative=True)), tool)
    assert reply.ok == (effect == "pure") and called == [1] * reply.ok
    assert usage.tool_calls == len(called)
    if not reply.ok:
        assert "not run" in reply.text


@pytest.mark.parametrize("effect", ["pure", "idempotent", "once"])
async def test_in_a_race_every_call_is_speculative(effect):
    tool, called, _ = counted(effect)

    def race():
        nested = (calls(call(1)), calls(call(2)))
        [found] = yield [Fork((calls(call(0)), outer(nested)), until=lambda ended: len(ended) == 2)]
        after = yield [call(3)]
        return found, after

    def outer(nested):
        found = yield [Fork(nested)]
        return found

    (_, [after]), _ = await run(race(), tool)
    assert sorted(called) == ([0, 1, 2, 3] if effect == "pure" else [3])
    assert after.ok


async def test_a_search_of_many_branches_has_no_effect_at_all():
    """A hundred branches that fork and fork again, all speculative: pure calls are shared, others not run."""
    look, looked, _ = counted("pure")
    write, written, _ = counted("once")
    write = type(write)("write", *(getattr(write, f) for f in ("description", "parameters", "run", "model")))

    def branch(depth):
        yield [CallTool("count", {"x": depth}, True), CallTool("write", {"x": depth}, True)]
        if depth:
            yield [Fork(tuple(branch(depth - 1) for _ in range(3)))]

    await run(branch(4), look, write)
    assert sorted(looked) == [0, 1, 2, 3, 4] and written == []


async def test_no_more_at_once_than_the_tool_allows():
    tool, _, peak = counted("once", 0.005, at_once=2)
    await run(calls(*(call(x) for x in range(10))), tool)
    assert peak == [2]


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("effect", ["pure", "idempotent", "once"])
async def test_a_call_that_was_cut_off_is_not_repeated_if_it_must_not_be(effect, tmp_path):
    called = []

    @tool(effect=effect)
    async def count(x: int) -> str:
        """Count, and be killed once its work is done."""
        called.append(x)
        raise _Killed

    journal = Journal(tmp_path / "j")
    with pytest.raises(_Killed):
        await run(calls(call(1)), count, journal=journal)
    journal.close()
    again, counts, _ = counted(effect)
    journal = Journal(tmp_path / "j")
    [reply], usage = await run(calls(call(1)), again, journal=journal)
    journal.close()
    if effect == "once":
        assert counts == [] and reply == Failure("tool", UNFINISHED.format("count"))
    else:
        assert counts == [1] and reply.ok
    assert called == [1] and usage.tool_calls == 1


@pytest.mark.parametrize("effect", ["pure", "idempotent", "once"])
async def test_a_call_that_ended_is_never_repeated(effect, tmp_path):
    first, called, _ = counted(effect)
    for _ in range(3):
        journal = Journal(tmp_path / "j")
        replies, _ = await run(calls(call(1), call(2)), first, journal=journal)
        journal.close()
        assert [reply.text for reply in replies] == ["1 for the 1. time", "2 for the 1. time"]
    assert sorted(called) == [1, 2]


async def test_values_survive_the_journal(tmp_path):
    @tool(effect="pure")
    def facts() -> dict[str, list[int]]:
        """Facts."""
        return {"a": [1, 2]}

    for _ in range(2):
        journal = Journal(tmp_path / "j")
        [reply], _ = await run(calls(CallTool("facts")), facts, journal=journal)
        journal.close()
        assert reply == ToolResult('{"a": [1, 2]}') and reply.value == {"a": [1, 2]}
