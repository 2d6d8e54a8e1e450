"""The driver: order, concurrency, failures, retries, races, deadlines, seeds."""

import asyncio
import time

import pytest
from flows import Echo, ask, chain, garden

from abduce.orchestrator.background import wait_for
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import comparable, row
from abduce.serving.errors import BudgetExhausted, EngineError, TransientError
from abduce.serving.flow import CallTool, Failure, Flow, Fork, Generate, Note, Prompt, ToolResult


def driver(engine, **options) -> Driver:
    return Driver(Services({"policy": engine}), backoff_s=0.001, **options)


def batch(*names: str) -> Flow[list[object]]:
    replies = yield [ask(name) for name in names]
    return list(replies)


async def test_replies_come_in_the_order_of_the_requests():
    engine = Echo(lambda request, seed: request.prompt.prefix, delay_s=0.01)
    replies = await driver(engine).run(batch(*"abcdefgh"))
    assert [reply[0].text for reply in replies] == list("abcdefgh")
    assert engine.peak == 8


@pytest.mark.parametrize("limit", [1, 3])
async def test_concurrency_is_limited(limit):
    engine = Echo(delay_s=0.005)
    await driver(engine, concurrency=limit).run(batch(*"abcdefgh"))
    assert engine.peak == limit


async def test_the_engines_own_limit_holds():
    engine = Echo(delay_s=0.005)
    engine.max_concurrency = 2
    await driver(engine, concurrency=5).run(batch(*"abcdefgh"))
    assert engine.peak == 2


async def test_a_failed_call_is_a_reply_and_is_not_retried():
    def say(request, seed):
        if request.prompt.prefix == "bad":
            raise EngineError("too long a prompt")
        return "ok"

    engine = Echo(say)
    run = driver(engine)
    good, bad = await run.run(batch("good", "bad"))
    assert good[0].text == "ok"
    assert bad == Failure("engine", "too long a prompt")
    assert engine.started.count("bad") == 1
    assert run.ledger.usage.calls == 2


async def test_a_bug_in_an_engine_is_a_failure_that_names_it():
    [reply] = await driver(Echo(lambda request, seed: {}["x"])).run(batch("a"))
    assert reply == Failure("engine", "KeyError: 'x'")


@pytest.mark.parametrize("faults", [1, 2, 3])
async def test_transient_faults_are_retried_twice_with_the_same_seed(faults):
    seeds = []

    def say(request, seed):
        seeds.append(seed)
        if len(seeds) <= faults:
            raise TransientError("connection lost")
        return "ok"

    run = driver(Echo(say), retries=2)
    [reply] = await run.run(batch("a"))
    assert len(set(seeds)) == 1
    assert len(seeds) == min(faults + 1, 3) == run.ledger.usage.calls
    if faults < 3:
        assert reply[0].text == "ok"
    else:
        assert reply == Failure("engine", "connection lost (tried 3 times)")


async def test_no_engine_no_tool_no_memory_are_failures():
    def flow():
        replies = yield [ask("a"), CallTool("nope")]
        return replies

    model, tool = await Driver(Services()).run(flow())
    assert model.kind == "engine" and "Give the run a model" in model.message
    assert tool == ToolResult("No tool named 'nope'. Known: none.", ok=False)


async def test_branches_do_not_wait_for_each_other():
    order: list[str] = []

    def say(request, seed):
        order.append(request.prompt.prefix)
        return ""

    engine = Echo(say)

    def flow():
        [said] = yield [Fork((chain("long", 5), chain("short", 1)))]
        return said

    long, short = await driver(engine).run(flow())
    assert (len(long), len(short)) == (5, 1)
    assert order.index("short0") < order.index("long4")


async def test_a_race_ends_with_the_first_sufficient_subset_and_cancels_the_rest():
    class Slow(Echo):
        async def generate(self, request, *, seed):
            self.in_flight += 1
            try:
                await asyncio.sleep(0.001 if request.prompt.prefix.startswith("fast") else 30)
            finally:
                self.in_flight -= 1
            return await super().generate(request, seed=seed)

    engine = Slow()

    def flow():
        branches = (chain("slow", 1), chain("fast", 1), chain("fast", 2))
        [said] = yield [Fork(branches, until=lambda ended: len(ended) == 2)]
        return said

    began = time.perf_counter()
    slow, *fast = await driver(engine).run(flow())
    assert time.perf_counter() - began < 5
    assert slow == Failure("cancelled", "another branch won")
    assert [len(said) for said in fast] == [1, 2]
    assert engine.in_flight == 0


async def test_a_bug_in_a_branch_reaches_the_caller_and_stops_the_others():
    engine = Echo(delay_s=0.01)

    def broken():
        yield [ask("a")]
        raise ZeroDivisionError

    def flow():
        yield [Fork((chain("b", 1000), broken()))]

    with pytest.raises(ZeroDivisionError):
        await driver(engine).run(flow())
    assert engine.in_flight == 0


async def test_seeds_depend_on_the_path_alone():
    runs = []
    for shuffle, limit in [(0, None), (1, 1), (2, 3)]:
        engine = Echo(delay_s=0.003, shuffle=shuffle)
        runs.append(await driver(engine, seed=7, concurrency=limit).run(garden(5, 4)))
    assert runs[0] == runs[1] == runs[2]
    other = await driver(Echo(), seed=8).run(garden(5, 4))
    assert other != runs[0]
    flat = [seed for said in runs[0] for seed in said]
    assert len(set(flat)) == len(flat)


async def test_an_explicit_seed_is_used():
    def flow():
        [reply] = yield [Generate(Prompt(), seed=42)]
        return reply[0].text

    assert await driver(Echo()).run(flow()) == "42"


@pytest.mark.parametrize("limit", [None, 1, 2, 7])
@pytest.mark.parametrize("shuffle", [0, 1, 2])
async def test_same_seed_same_trace(limit, shuffle):
    async def trace(engine, **options):
        events = []
        await driver(engine, observers=[events.append], seed=3, **options).run(garden(6, 5))
        return comparable(map(row, events))

    assert await trace(Echo(delay_s=0.004, shuffle=shuffle), concurrency=limit) == await trace(Echo())
    assert await trace(Echo(lambda request, seed: str(seed + 1))) != await trace(Echo())


async def test_a_deadline_ends_the_search_with_what_there_is():
    class Stuck(Echo):
        async def generate(self, request, *, seed):
            await asyncio.sleep(0.0 if len(self.started) < 4 else 60)
            return await super().generate(request, seed=seed)

    def flow():
        said = []
        try:
            while True:
                [reply] = yield [ask("a")]
                said.append(reply[0].text)
        except BudgetExhausted as end:
            return len(said), end.resource

    began = time.perf_counter()
    assert await driver(Stuck(), budget=Budget(seconds=0.2)).run(flow()) == (4, "seconds")
    assert time.perf_counter() - began < 5


async def test_a_deadline_in_a_batch_keeps_the_replies_that_arrived():
    class Stuck(Echo):
        async def generate(self, request, *, seed):
            await asyncio.sleep(60 if request.prompt.prefix == "slow" else 0)
            return await super().generate(request, seed=seed)

    quick, slow = await driver(Stuck(), budget=Budget(seconds=0.1)).run(batch("quick", "slow"))
    assert quick[0].text and slow.kind == "budget"


async def test_cancelling_the_run_is_not_swallowed_by_a_deadline():
    run = asyncio.ensure_future(driver(Echo(delay_s=60), budget=Budget(seconds=100)).run(batch("a", "b")))
    await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


async def test_a_flow_is_closed_however_it_ends():
    closed = []

    def flow():
        try:
            yield [ask("a")]
        finally:
            closed.append(True)

    run = asyncio.ensure_future(driver(Echo(delay_s=60)).run(flow()))
    await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert closed == [True]


async def test_reward_passes_declared_by_a_note_are_charged():
    def flow():
        yield [Note("scores", {}, reward_passes=3)]
        return 1

    run = driver(Echo())
    await run.run(flow())
    assert run.ledger.usage.reward_passes == 3


async def test_synchronous_use_inside_a_running_loop():
    async def answer():
        return await driver(Echo(lambda request, seed: "56")).run(chain("a", 1))

    assert wait_for(answer()) == ["56"]
