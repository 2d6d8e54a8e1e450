"""Resuming is replaying: stopped at any moment, a run ends as if it had never been stopped.

And no call whose reply was stored is ever made again. (Processes that are killed: test_kill.py.)
"""

import asyncio
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from flows import Echo, ask, chain

from abduce.orchestrator.driver import Driver
from abduce.orchestrator.journal import Journal, SqliteRows
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.runs import Run, Runs
from abduce.orchestrator.services import Services
from abduce.orchestrator.solve import build
from abduce.orchestrator.trace import Called, comparable, read, row
from abduce.serving.errors import BudgetExhausted, EngineError, TransientError
from abduce.serving.flow import CallTool, Completion, Failure, Fork, Note
from abduce.serving.synthetic import Synthetic
from abduce.tools.base import tool

# ---------------------------------------------------------------- what is resumed


class Model(Echo):
    """Waits, fails in passing or for good by the name of the call; a new one is a new process."""

    def __init__(self, served: Counter[str], *, turns: dict[str, int] | None = None) -> None:
        super().__init__(lambda request, seed: f"{seed % 997}")
        self.served = served
        self.turns = turns or {}

    async def generate(self, request, *, seed):
        name = request.prompt.prefix
        for _ in range(self.turns.get(name, 0)):
            await asyncio.sleep(0)
        if name.startswith("slow"):
            await asyncio.sleep(0.002)
        if name.startswith("stuck"):
            await asyncio.sleep(60)
        if name.startswith("shaky") and self.started.count(name) == 0:
            self.started.append(name)
            raise TransientError("connection lost")
        if name.startswith("bad"):
            self.served[name] += 1
            raise EngineError("too long a prompt")
        reply = await super().generate(request, seed=seed)
        self.served[name] += 1
        return reply


def twig(name: str):
    yield [Note("twig", {"name": name}, reward_passes=1)]
    [reply] = yield [ask(name)]
    yield [Note("grown", {"name": name}, reward_passes=1)]
    return reply[0].text


def straggler():
    """Gets somewhere at once, and then no further."""
    yield from twig("l0")
    yield from twig("l1")
    yield from twig("stuck")


def outing():
    """Everything a flow can do: batches, forks in forks, tools, failures, retries, a race."""
    said: list[object] = []
    yield [Note("begin")]
    [branches] = yield [Fork((chain("slow.a", 3), chain("b", 1), forked()))]
    said += branches
    replies = yield [CallTool("double", {"x": 21}), ask("bad"), ask("shaky"), CallTool("nope")]
    said += map(str, replies)
    racing = (straggler(), chain("slow.v", 3), chain("slow.w", 2))
    [raced] = yield [Fork(racing, until=lambda ended: len(ended) == 2)]
    yield [Note("raced", {"said": raced})]
    last = yield [ask("slow.y"), ask("z")]
    return said, raced, last


def forked():
    [said] = yield [Fork((twig("f0"), twig("slow.f1"), twig("shaky.f2")))]
    return said


def spending():
    """Batches until nothing is left, then what was kept back for the end."""
    said: list[object] = []
    try:
        for i in range(100):
            replies = yield [ask(f"{'slow.' * (j % 2)}{i}.{j}", cap=3) for j in range(5)]
            said += [getattr(reply, "kind", None) or reply[0].text for reply in replies]
    except BudgetExhausted as end:
        said.append(str(end))
    try:
        yield [ask("finish", cap=3)]
    except BudgetExhausted as end:
        said.append(str(end))
    return said


class Interrupted(BaseException):
    """As Ctrl-C; of an Exception in an observer a run takes no notice."""


class Process:
    """One process of a run: a driver with a journal on disk, that may break off after k new replies."""

    def __init__(self, file: Path, **options) -> None:
        self.file = file
        self.options = options
        self.served: Counter[str] = Counter()
        self.events: list[object] = []

    def run(self, flow, *, k: int | None = None, turns: dict[str, int] | None = None):
        @tool
        def double(x: int) -> int:
            """Twice x."""
            self.served["double"] += 1
            return 2 * x

        def watch(event) -> None:
            self.events.append(event)
            new = [e for e in self.events if isinstance(e, Called) and not e.replayed]
            if len(new) == k:
                raise Interrupted

        async def go():
            journal = Journal(self.file)
            services = Services({"policy": Model(self.served, turns=turns)}, tools={"double": double})
            driver = Driver(
                services, seed=5, journal=journal, observers=[watch], backoff_s=0.001, **self.options
            )
            try:
                result = await driver.run(flow)
            finally:
                journal.close()
            return result, driver.ledger.usage, comparable(map(row, self.events))

        return asyncio.run(go())


def stored(file: Path) -> list[tuple[object, ...]]:
    """What a journal holds; nothing yet, if it was killed before it had its table."""
    db = sqlite3.connect(file)
    tables = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'replies'").fetchall()
    rows = db.execute("SELECT path, request, reply, usage FROM replies ORDER BY path") if tables else ()
    found = list(rows)
    db.close()
    return found


def name(request) -> str:
    return request.name if isinstance(request, CallTool) else request.prompt.prefix


def stops_anywhere(folder: Path, flow, **options) -> int:
    """Interrupt a run after each number of replies there is, resume it, compare; how often that was."""
    expected = Process(folder / "whole.db", **options).run(flow())
    for k in range(1, 1000):
        file = folder / f"{k}.db"
        first, second = Process(file, **options), Process(file, **options)
        try:
            assert first.run(flow(), k=k) == expected
            return k - 1
        except Interrupted:
            kept = stored(file)
        assert second.run(flow()) == expected
        assert [row[0] for row in stored(file)] == [row[0] for row in stored(folder / "whole.db")]
        replayed = [event for event in second.events if isinstance(event, Called) and event.replayed]
        assert k <= len(replayed) <= len(kept)
        assert not {name(event.request) for event in replayed} & set(second.served)
    raise AssertionError("the run does not end")


# ---------------------------------------------------------------- stopped at every reply


def test_stopped_after_any_reply_a_run_ends_the_same_and_repeats_no_call(tmp_path):
    assert stops_anywhere(tmp_path, outing) == 20


@pytest.mark.parametrize("limit", [2, 3])
def test_so_it_does_with_few_calls_at_a_time(tmp_path, limit):
    assert stops_anywhere(tmp_path, outing, concurrency=limit) == 20


@pytest.mark.parametrize(
    "limits", [{"calls": 17}, {"tokens": 120}, {"output_tokens": 33}, {"output_tokens": 33, "finish": 0.0}]
)
def test_so_it_does_until_its_budget_ends_it(tmp_path, limits):
    assert stops_anywhere(tmp_path, spending, budget=Budget(**limits)) > 8


def test_a_run_that_time_ended_ends_the_same_again(tmp_path):
    def flow():
        yield [ask("a")]
        replies = yield [ask("b"), ask("stuck")]
        try:
            yield [ask("c")]
        except BudgetExhausted as end:
            return [reply if isinstance(reply, Failure) else reply[0].text for reply in replies], str(end)

    first = Process(tmp_path / "journal.db", budget=Budget(seconds=0.3))
    again = Process(tmp_path / "journal.db", budget=Budget(seconds=0.3))
    expected = first.run(flow())
    assert expected[0][1] == "budget of 0.3 seconds is used up"
    assert again.run(flow()) == expected
    assert not again.served


def test_the_time_before_a_stop_counts(tmp_path):
    first = Process(tmp_path / "journal.db", budget=Budget(seconds=60))
    with pytest.raises(Interrupted):
        first.run(chain("slow", 100), k=10)
    journal = Journal(tmp_path / "journal.db")
    used = journal.elapsed_s
    journal.close()
    assert used > 0.02
    again = Process(tmp_path / "journal.db", budget=Budget(seconds=used))
    with pytest.raises(BudgetExhausted):
        again.run(chain("slow", 100))
    assert not again.served


@pytest.mark.parametrize("text", ["half \ud800 a pair", "\udfff", "plain"])
def test_a_replayed_reply_is_the_reply_whatever_is_in_it(tmp_path, text):
    class Odd(Echo):
        async def generate(self, request, *, seed):
            return (await super().generate(request, seed=seed))._replace(value=(Completion(text),))

    def run(engine):
        async def go():
            journal = Journal(tmp_path / "journal.db")
            try:
                return await Driver(Services({"policy": engine}), journal=journal).run(chain("a", 2))
            finally:
                journal.close()

        return asyncio.run(go())

    again = Odd()
    assert run(Odd()) == run(again) == [text, text]
    assert not again.started


# ---------------------------------------------------------------- races


def test_a_race_that_was_decided_stays_decided(tmp_path):
    def flow():
        [said] = yield [Fork((chain("x", 1), chain("y", 1)), until=lambda ended: len(ended) == 1)]
        yield from chain("z", 2)
        return said

    first = Process(tmp_path / "journal.db")
    with pytest.raises(Interrupted):
        first.run(flow(), k=2, turns={"x0": 9})
    again = Process(tmp_path / "journal.db")
    (lost, won), _, _ = again.run(flow(), turns={"y0": 9})
    assert lost == Failure("cancelled", "another branch won")
    assert len(won) == 1
    assert set(again.served) == {"z1"}


@pytest.mark.parametrize("length", range(24))
@pytest.mark.parametrize("lane", [0, 2])
def test_a_loser_is_replayed_exactly_as_far_as_it_got(tmp_path, length, lane):
    """The winner takes one turn of the event loop longer each time, and so cuts the losers off at each of
    their awaits: before a branch begins, while it waits, while its reply is being stored."""

    def flow():
        racing = [forking(), raced()]
        racing.insert(lane, chain("w", 1))
        [said] = yield [Fork(tuple(racing), until=lambda ended: lane in ended)]
        return said

    def forking():
        yield from twig("l0")
        yield [ask("stuck"), Fork((twig("stuck"), bough("l")))]
        yield [Note("never", {}, reward_passes=100)]

    def bough(name):
        yield [ask(f"{name}1"), ask(f"{name}2")]
        yield from twig(f"{name}3")

    def raced():
        twigs = (twig("r0"), twig("r1"), twig("stuck"))
        [said] = yield [Fork(twigs, until=lambda ended: len(ended) == 2)]
        yield [Note("raced", {"said": said}, reward_passes=1)]
        yield [ask("stuck"), Fork((bough("s"),))]
        yield [Note("never", {}, reward_passes=100)]

    turns = {"w0": length, "l0": 6, "l2": 3, "r0": 2, "s1": 4}
    expected = Process(tmp_path / "journal.db").run(flow(), turns=turns)
    again = Process(tmp_path / "journal.db")
    assert again.run(flow(), turns=turns) == expected
    assert not again.served


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_an_inherited_race_of_other_branches_is_run_again(tmp_path, width):
    """The third branch won; where there is one in the fork it wins there, too."""

    def flow(width):
        racing = tuple(chain(f"{name}.", 1) for name in "abcd"[:width])
        [said] = yield [Fork(racing, until=lambda ended: len(ended) == 1)]
        return said

    first = Process(tmp_path / "first.db")
    first.run(flow(3), turns={"a.0": 9, "b.0": 9})
    rows = SqliteRows(tmp_path / "first.db")
    fork = SqliteRows(tmp_path / "fork.db")
    fork.inherit(rows.read()[1])
    fork.close()
    rows.close()
    said, _, _ = Process(tmp_path / "fork.db").run(flow(width))
    won = [branch for branch, reply in enumerate(said) if isinstance(reply, list)]
    assert len(won) == 1
    assert won == [2] or width < 3
    again, _, _ = Process(tmp_path / "fork.db").run(flow(width))
    assert again == said


# ---------------------------------------------------------------- whole searches


def files(run: Run) -> tuple[str, bytes]:
    return comparable(read(run.trace)), (run.folder / "result.json").read_bytes()


IN_BATCHES = ["particle_filter", "a_star", "mcts", "beam", "best_of_n", "self_consistency"]


@pytest.mark.parametrize(
    ("strategy", "budget"),
    [*((name, None) for name in [*IN_BATCHES, "dvts"]), *((name, {"tokens": 300}) for name in IN_BATCHES)],
)
def test_a_search_stopped_anywhere_leaves_the_same_files(tmp_path, strategy, budget):
    pipeline = build(
        strategy=strategy,
        model=Synthetic(seed=2, alphabet="abcdefgh"),
        policy={"preset": "cot", "answer_kind": "text", "sampling": {"max_tokens": 12}},
        reward=None if strategy == "self_consistency" else "rate",
        budget=budget,
    )
    runs = Runs(tmp_path)
    events: list[object] = []
    whole = pipeline.solve("Which?", seed=3, store=runs, observers=[events.append])
    expected = files(runs.open("last"))
    calls = sum(isinstance(event, Called) for event in events)
    assert calls == whole.usage.calls
    for k in sorted({0, calls // 4, calls // 2, calls - 1}):
        left = iter(range(k))

        def stop(event, left=left) -> None:
            if isinstance(event, Called) and next(left, None) is None:
                raise Interrupted

        with pytest.raises(Interrupted):
            pipeline.solve("Which?", seed=3, store=runs, observers=[stop])
        run = runs.open("last")
        assert run.result is None
        assert pipeline.solve("Which?", seed=3, run=run) == whole
        assert files(run) == expected
