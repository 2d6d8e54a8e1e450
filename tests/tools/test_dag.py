import asyncio
import random
import statistics
import time
from dataclasses import dataclass, field
from math import inf

import pytest
from still_clock import timed

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.journal import Journal
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.services import Services
from abduce.serving.errors import UsageError
from abduce.serving.flow import CallTool, Failure, Fork, ToolResult
from abduce.tools.dag import SKIPPED, Dag, Node, critical_path, in_order


@dataclass
class Work:
    """A tool that takes its time, fails where it is told to, and writes down when it ran."""

    seconds: dict[int, float]
    failing: frozenset[int] = frozenset()
    effect: str = "pure"
    begun: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    busy: asyncio.Event = field(default_factory=asyncio.Event)  # eight are in flight
    in_flight: int = 0
    peak: int = 0

    async def call(self, arguments):
        node = arguments["node"]
        self.begun.append(node)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        if self.in_flight == 8:
            self.busy.set()
        try:
            await asyncio.sleep(self.seconds[node])
        finally:
            self.in_flight -= 1
        self.ended.append(node)
        return ToolResult(str(node), ok=node not in self.failing)


def calling(node):
    def work(parents):
        [reply] = yield [CallTool("work", {"node": node})]
        ok = isinstance(reply, ToolResult) and reply.ok
        return reply if ok or isinstance(reply, Failure) else Failure("tool", f"{node} failed")

    return work


def nodes_of(parents):
    return [Node(node, calling(node), tuple(of)) for node, of in parents.items()]


def random_dag(draw, most=24):
    """Parents of each node, seconds of each, and which fail."""
    n, density = draw.randint(1, most), draw.random() ** 2
    parents = {i: [j for j in range(i) if draw.random() < density] for i in range(n)}
    slow = draw.random() * 0.3
    seconds = {i: draw.uniform(0.5, 2) if draw.random() < slow else draw.uniform(0.01, 0.1) for i in parents}
    failing = frozenset(i for i in parents if draw.random() < 0.08)
    names = list(parents)
    draw.shuffle(names)
    return {i: parents[i] for i in names}, seconds, failing


async def execute(parents, work, *, journal=None, budget=None, **options):
    services = Services(tools={"work": work})
    driver = Driver(services, journal=journal, budget=budget)
    return await driver.run(Dag(**options).run(nodes_of(parents)))


def doomed_by(parents, failing):
    """The nodes with a failed one among their ancestors."""
    doomed: set[int] = set()
    for node in sorted(parents):
        if any(parent in failing or parent in doomed for parent in parents[node]):
            doomed.add(node)
    return doomed


def test_a_thousand_random_graphs_run_each_node_once_after_its_parents_in_the_time_of_the_longest_chain():
    draw = random.Random(0)
    for _ in range(1000):
        parents, seconds, failing = random_dag(draw)
        work = Work(seconds, failing)
        results, took = timed(execute(parents, work, max_parallel=64))
        doomed = doomed_by(parents, failing)
        assert sorted(work.begun) == sorted(work.ended) == sorted(set(parents) - doomed)
        place = {node: i for i, node in enumerate(work.begun)}
        until = {node: i for i, node in enumerate(work.ended)}
        assert all(until[parent] < until[node] for node in place for parent in parents[node])
        assert results.keys() == parents.keys()
        for node, result in results.items():
            if node in doomed:
                assert result.kind == SKIPPED
            else:
                assert isinstance(result, Failure) == (node in failing)
        run = {node: of for node, of in parents.items() if node not in doomed}
        assert took == pytest.approx(critical_path(run, seconds), rel=1e-9)


async def test_in_real_time_too():
    """The median of ten within 10 % of the longest chain, each the least of four, since others work on the
    machine (`benchmarks/dag.py`: a thousand, each once)."""
    draw, ratios = random.Random(1), []
    await execute({0: []}, Work({0: 0.0}))
    for _ in range(10):
        parents, seconds, _ = random_dag(draw, 12)
        seconds = {node: 0.02 + s / 5 for node, s in seconds.items()}
        took = []
        while len(took) < 4 and min(took, default=inf) > 1.1:
            began = time.perf_counter()
            await execute(parents, Work(seconds))
            took.append((time.perf_counter() - began) / critical_path(parents, seconds))
        ratios.append(min(took))
    assert min(ratios) >= 1 and statistics.median(ratios) <= 1.1


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_more_at_once_than_the_limit_and_no_place_is_lost(limit):
    draw = random.Random(limit)
    for _ in range(60):
        parents, seconds, failing = random_dag(draw)
        work = Work(seconds, failing)
        results, took = timed(execute(parents, work, max_parallel=limit))
        assert work.peak <= limit and results.keys() == parents.keys()
        if limit == 1:
            assert took == pytest.approx(sum(seconds[node] for node in work.ended))
        # Graham's bound for any schedule that leaves no place empty without need.
        total = sum(seconds[node] for node in work.ended)
        assert took <= total / limit + critical_path(parents, seconds) + 1e-9


def test_a_failed_parent_is_handed_on_where_that_is_asked_for():
    seen = {}

    def last(parents):
        seen.update(parents)
        return "done"
        yield

    nodes = [Node(1, calling(1)), Node(2, calling(2)), Node(3, last, (1, 2))]
    work = Work({1: 0.1, 2: 0.1}, frozenset({1}))
    driver = Driver(Services(tools={"work": work}))
    results, _ = timed(driver.run(Dag(on_error="propagate").run(nodes)))
    assert seen == {1: Failure("tool", "1 failed"), 2: ToolResult("2")}
    assert results[3] == "done"


def test_behind_is_order_without_need():
    nodes = [Node(1, calling(1)), Node(2, calling(2), behind=(1,))]
    work = Work({1: 1.0, 2: 1.0}, frozenset({1}))
    results, took = timed(Driver(Services(tools={"work": work})).run(Dag().run(nodes)))
    assert work.begun == [1, 2] and took == pytest.approx(2)
    assert results[2] == ToolResult("2")


@pytest.mark.parametrize(
    ("parents", "said"),
    [
        ({1: [2], 2: [3], 3: [1]}, "circle"),
        ({1: [1]}, "circle"),
        ({1: [7]}, "which there is not"),
    ],
)
def test_what_is_no_graph_of_that_kind_is_refused_before_anything_runs(parents, said):
    with pytest.raises(UsageError, match=said):
        next(Dag().run(nodes_of(parents)))


def test_a_node_twice_is_refused():
    with pytest.raises(UsageError, match="two nodes named 1"):
        in_order([Node(1, calling(1)), Node(1, calling(1))])


def test_an_empty_graph_asks_for_nothing():
    with pytest.raises(StopIteration) as end:
        next(Dag().run([]))
    assert end.value.value == {}


def test_a_budget_ends_it_with_what_there_is():
    parents = {i: [i - 1] if i else [] for i in range(6)}
    work = Work(dict.fromkeys(parents, 0.1))
    results, _ = timed(execute(parents, work, budget=Budget(tool_calls=3)))
    assert work.ended == [0, 1, 2]
    assert [getattr(results[i], "kind", "ok") for i in parents] == ["ok"] * 3 + ["budget", SKIPPED, SKIPPED]


async def test_cancelling_leaves_nothing_running():
    parents = {i: [] for i in range(8)} | {8: [0, 1], 9: [8]}
    work = Work(dict.fromkeys(parents, 60.0))
    before = asyncio.all_tasks()
    running = asyncio.ensure_future(execute(parents, work))
    await asyncio.wait_for(work.busy.wait(), 5)
    began = time.perf_counter()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.perf_counter() - began < 5
    assert work.in_flight == 0 and asyncio.all_tasks() == before


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("effect", ["pure", "once"])
def test_a_resumed_graph_calls_nothing_again_that_had_ended(effect, tmp_path):
    """Cut off after any number of calls, with other delays after than before."""
    draw = random.Random(5)
    for trial in range(15):
        parents, seconds, _ = random_dag(draw, 12)
        file = tmp_path / f"{trial}.db"
        work = Work(seconds, effect=effect)
        dies_after, calls = draw.randint(0, len(parents)), []

        async def dying(node, slow=seconds, calls=calls, limit=dies_after):
            await asyncio.sleep(slow[node])
            if len(calls) >= limit:
                raise _Killed
            calls.append(node)

        class Dying(Work):
            async def call(self, arguments, dying=dying):
                await dying(arguments["node"])
                return ToolResult(str(arguments["node"]))

        journal = Journal(file)
        try:
            timed(execute(parents, Dying(seconds, effect=effect), journal=journal))
        except _Killed:
            pass
        finally:
            journal.close()
        again = Journal(file)
        other = Work({node: draw.uniform(0.01, 2) for node in parents}, effect=effect)
        results, _ = timed(execute(parents, other, journal=again))
        again.close()
        assert not set(calls) & set(other.begun), (trial, calls, other.begun)
        if effect == "pure":
            assert sorted([*calls, *other.begun]) == sorted(parents)
        assert all(results[node] == ToolResult(str(node)) for node in calls)
        del work


def test_who_steps_through_a_run_is_not_held_up_by_what_waits():
    """A step is a batch that asks for something; waiting for another branch is none."""
    seen = []

    async def gate(path, batch):
        seen.append([type(request) for request in batch])

    work = Work({1: 1.0, 2: 1.0})
    driver = Driver(Services(tools={"work": work}), gate=gate)
    timed(driver.run(Dag().run(nodes_of({1: [], 2: [1]}))))
    assert seen == [[Fork], [CallTool], [CallTool]]


def test_branches_may_be_added_while_others_run():
    """What a planner does that writes on while its first calls run."""
    dag = Dag()

    def grow(node, last):
        branch = dag.branch(Node(node, calling(node), (node - 2,) if node > 1 else ()))
        rest = (grow(node + 1, last),) if node < last else ()
        yield [CallTool("write", {"node": node})]
        yield [Fork((branch, *rest))]

    work, write = Work(dict.fromkeys(range(6), 1.0)), Work(dict.fromkeys(range(6), 0.1), effect="once")

    def flow():
        yield [Fork((grow(0, 5),))]
        return dag.results

    results, took = timed(Driver(Services(tools={"work": work, "write": write})).run(flow()))
    assert sorted(results) == list(range(6))
    assert took == pytest.approx(0.2 + 3.0)
