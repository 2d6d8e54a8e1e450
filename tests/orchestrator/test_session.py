import asyncio
from pathlib import Path

import pytest
from flows import Echo, ask, chain, garden

from abduce.orchestrator import trace
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.services import Services
from abduce.orchestrator.session import Session
from abduce.orchestrator.trace import Called, Event, NodeStarted
from abduce.serving.flow import Ask, Flow, Usage


async def test_a_visit_asks_with_the_seeds_of_a_search_of_its_own() -> None:
    services = Services({"policy": Echo()})
    with Session(None, budget=Budget()) as session:
        alone = await session.drive(garden(3, 2), services, seed=5)
        visit = await session.drive(garden(3, 2), services, seed=5, root=(7,))
        other = await session.drive(garden(3, 2), services, seed=6, root=(7,))
    assert alone == visit != other


async def test_the_paths_of_a_visit_begin_with_its_root() -> None:
    events: list[Event] = []
    with Session(None, budget=Budget(), observers=[events.append]) as session:
        await session.drive(garden(2, 2), Services({"policy": Echo()}), seed=0, root=(3,))
    calls = [event.path for event in events if isinstance(event, Called)]
    assert len(calls) == 4
    assert all(path[0] == 3 for path in calls)


async def test_searches_of_a_run_share_its_budget() -> None:
    services = Services({"policy": Echo()})
    with Session(None, budget=Budget(calls=6, finish=0), spent=Usage(calls=1)) as session:
        first = await session.drive(chain("a", 4), services, seed=0, root=(0,))
        assert len(first) == 4
        with pytest.raises(Exception, match="6 calls is used up"):
            await session.drive(chain("b", 4), services, seed=0, root=(1,))
        assert session.ledger.usage.calls == 6


async def test_nothing_is_asked_while_the_gate_is_shut_and_the_clock_stands() -> None:
    engine, reached, opened = Echo(), asyncio.Event(), asyncio.Event()

    async def gate(path: trace.Path, batch: object) -> None:
        if path == (1,):
            reached.set()
            await opened.wait()

    with Session(None, budget=Budget(seconds=1.2), gate=gate) as session:
        running = asyncio.ensure_future(session.drive(chain("a", 3), Services({"policy": engine}), seed=0))
        await reached.wait()
        assert engine.started == ["a0"]
        await asyncio.sleep(1.4)  # longer than the budget
        assert engine.started == ["a0"]
        opened.set()
        assert len(await running) == 3
        assert session.elapsed_s < 1.1


async def test_the_deadline_holds_behind_the_gate() -> None:
    async def gate(path: trace.Path, batch: object) -> None:
        await asyncio.sleep(0.3 if path == (0,) else 0)

    slow = Services({"policy": Echo(delay_s=100)})
    with Session(None, budget=Budget(seconds=0.2), gate=gate) as session:
        with pytest.raises(Exception, match=r"0\.2 seconds is used up"):
            await asyncio.wait_for(session.drive(chain("a", 1), slow, seed=0), timeout=5)
        assert 0.15 < session.elapsed_s < 2


async def test_a_run_that_goes_on_keeps_the_trace_of_past_visits(tmp_path: Path) -> None:
    run = Runs(tmp_path).create({})
    services = Services({"policy": Echo()})
    with Session(run, budget=Budget()) as session:
        session.begin("q", 0, {})
        for visit in range(2):
            session.emit(NodeStarted((visit,), "n", "solve", 0.0))
            await session.drive(chain("a", 2), services, seed=0, root=(visit,))
    before = trace.comparable(trace.read(run.trace))
    with Session(run, budget=Budget(), visit=1) as session:
        session.emit(NodeStarted((1,), "n", "solve", 0.0))
        await session.drive(chain("a", 2), services, seed=0, root=(1,))
    assert trace.comparable(trace.read(run.trace)) == before
    assert [event["replayed"] for event in trace.read(run.trace) if event["event"] == "called"] == [
        False,
        False,
        True,
        True,
    ]


async def test_the_clock_stands_while_the_human_thinks() -> None:
    def asking() -> Flow[str]:
        [said] = yield [Ask("?")]
        [reply] = yield [ask("a")]
        return f"{said} {type(reply).__name__}"

    async def human(question: str, choices: object) -> str:
        await asyncio.sleep(1.2)
        return "well"

    services = Services({"policy": Echo()}, human=human)
    with Session(None, budget=Budget(seconds=1)) as session:
        assert await session.drive(asking(), services, seed=0) == "well tuple"
        assert session.elapsed_s < 1
