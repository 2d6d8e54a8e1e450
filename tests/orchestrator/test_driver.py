"""The driver and its dispatcher: order, concurrency, failures, retries, races, deadlines, seeds."""

import asyncio
import time

import pytest
from flows import Echo, ask, chain, garden

from abduce.orchestrator.background import wait_for
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.services import Services
from abduce.orchestrator.trace import comparable, row
from abduce.serving.errors import BudgetExhausted, EngineError, TransientError, UsageError
from abduce.serving.flow import Ask, CallTool, Failure, Flow, Fork, Generate, Note, Prompt, Recall, ToolResult
from abduce.serving.scripted import Scripted


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


async def test_the_engines_own_limit_holds_for_all_runs_together():
    engine = Echo(delay_s=0.005)
    engine.max_concurrency = 3
    runs = (driver(engine, concurrency=limit).run(batch(*"abcdefgh")) for limit in (None, 1, 2, 5))
    await asyncio.gather(*runs)
    assert engine.peak == 3
    assert len(engine.started) == 32


def test_the_engines_own_limit_holds_in_one_loop_after_another():
    engine = Echo(delay_s=0.001)
    engine.max_concurrency = 2
    for _ in range(3):
        asyncio.run(driver(engine).run(batch(*"abcd")))
    assert engine.peak == 2


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


@pytest.mark.parametrize("budget", [None, Budget(tokens=1000)])
@pytest.mark.parametrize("at", ["count_tokens", "generate"])
async def test_a_fault_is_a_failure_and_a_mistake_is_the_users(monkeypatch, budget, at):
    def fails_with(error):
        def fail(*_, **__):
            raise error

        engine = Echo(fail if at == "generate" else lambda request, seed: "ok")
        if at == "count_tokens":
            monkeypatch.setattr(engine, at, fail)
        return driver(engine, budget=budget)

    counts = at == "generate" or budget is not None
    run = fails_with(EngineError("no template"))
    [reply] = await run.run(batch("a"))
    assert (reply == Failure("engine", "no template")) == counts
    assert run.ledger.usage.calls == 1
    if counts:
        with pytest.raises(UsageError, match="No weights"):
            await fails_with(UsageError("No weights")).run(batch("a"))


async def test_engines_are_ready_before_the_clock_starts():
    class Slow(Echo):
        times = 0

        async def ready(self):
            self.times += 1
            await asyncio.sleep(0.2)

    engine = Slow()
    services = Services({"policy": engine, "judge": engine})
    [reply] = await Driver(services, budget=Budget(seconds=0.15)).run(batch("a"))
    assert isinstance(reply, tuple) and engine.times == 1


@pytest.mark.parametrize(
    ("request_", "counted"),
    [(ask("a"), (1, 0)), (CallTool("t"), (0, 1)), (Recall("q"), (0, 0)), (Ask("?"), (0, 0))],
)
async def test_a_failed_request_counts_as_what_it_is(request_, counted):
    class Broken:
        async def call(self, arguments):
            raise ValueError

        async def search(self, query, k, *, kinds):
            raise ValueError

    async def human(question, choices):
        raise ValueError

    def flow():
        return (yield [request_])

    engine = Echo(lambda request, seed: {}["x"])
    services = Services({"policy": engine}, tools={"t": Broken()}, memory=Broken(), human=human)
    run = Driver(services)
    [reply] = await run.run(flow())
    assert isinstance(reply, Failure)
    assert (run.ledger.usage.calls, run.ledger.usage.tool_calls) == counted


async def test_an_observer_that_fails_is_told_no_more_and_harms_nobody(caplog):
    told, others = [], []

    def broken(event):
        told.append(event)
        raise ZeroDivisionError

    observers = [broken, others.append]
    assert len(await driver(Echo(), observers=observers).run(batch(*"abc"))) == 3
    assert (len(told), len(others)) == (1, 3)
    assert [record.message for record in caplog.records if "observer" in record.message]


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


def endless():
    n = 0
    try:
        while True:
            yield [ask("a")]
            n += 1
    except BudgetExhausted as end:
        return n, end.resource


@pytest.mark.parametrize("more", [{}, {"calls": 10**9}])
async def test_a_deadline_holds_where_nothing_ever_waits(more):
    began = time.perf_counter()
    n, resource = await driver(Scripted("x"), budget=Budget(seconds=0.3, **more)).run(endless())
    assert n > 64 and resource == "seconds"
    assert time.perf_counter() - began < 5


async def test_a_run_where_nothing_ever_waits_can_be_cancelled():
    run = asyncio.ensure_future(driver(Scripted("x"), budget=Budget(seconds=20)).run(endless()))
    await asyncio.sleep(0.01)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(run), 5)


async def test_what_the_deadline_cuts_off_counts_with_the_attempts_before_it():
    class Stuck(Echo):
        async def generate(self, request, *, seed):
            self.started.append(request.prompt.prefix)
            if len(self.started) == 1:
                raise TransientError("connection lost")
            await asyncio.sleep(60)

    engine = Stuck()
    run = driver(engine, budget=Budget(seconds=0.1), concurrency=1)
    with pytest.raises(BudgetExhausted):
        await run.run(batch("a", "b", "c"))
    assert run.ledger.usage.calls == len(engine.started) == 2  # and not what waited for its turn


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
