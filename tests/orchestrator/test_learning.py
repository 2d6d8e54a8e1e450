"""`learn` and `abduce learn`: a run that is journalled, stopped and gone on with."""

import asyncio
import json
from collections import Counter
from dataclasses import replace

import pytest

from abduce.memory.in_memory import InMemory
from abduce.orchestrator import recipe, solve
from abduce.orchestrator.cli import main
from abduce.orchestrator.learning import learn
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.services import Services
from abduce.orchestrator.solve import Pipeline
from abduce.serving.errors import UsageError
from abduce.serving.scripted import Scripted
from abduce.strategies.arcmemo import ArcMemo
from abduce.strategies.base import Check, Task
from abduce.strategies.policy import policy

SOLVED = Check("regex", {"pattern": "solved"})
TASKS = [Task(f"Problem p{i}", checks=(SOLVED,), metadata={"id": f"p{i}"}) for i in range(1, 7)]


class Killed(BaseException):
    """The end of the process."""


class Student:
    """Solves everything, and learns a concept from each problem. `dies_after` so many calls it is killed."""

    def __init__(self, dies_after=10**9):
        self.dies_after = dies_after
        self.calls = 0

    def __call__(self, request, seed):
        self.calls += 1
        if self.calls > self.dies_after:
            raise Killed
        text = request.prompt.messages[-1].content
        if "as concise pseudocode" in text:
            number = text.rpartition("solved p")[2].strip()
            return f"<pseudocode>step {number}</pseudocode><summary>{number}</summary>"
        if "Write down the concepts" in text:
            return f"- {{concept: c{text.rpartition('step ')[2][0]}, kind: structure}}"
        return f"solved p{text.rpartition('Problem p')[2][0]}"


class Dying(InMemory):
    """Is killed once, when it has written for the `nth` time and before anybody hears of it."""

    def __init__(self, nth):
        super().__init__()
        self.left = nth

    async def write(self, entries, **options):
        version = await super().write(entries, **options)
        self.left -= 1
        if self.left == 0:
            raise Killed
        return version


def pipeline(student, memory, *, read="none", **limits):
    strategy = ArcMemo(policy=policy("plain"), read=read, min_used=0, max_passes=1, examples="")
    services = Services({"policy": Scripted(student)}, memory=memory)
    return Pipeline(strategy, services, Budget(**limits))


async def whole():
    student, memory = Student(), InMemory()
    learned = await learn(pipeline(student, memory), TASKS, batch=2)
    return learned, memory, student.calls


async def same(memory, reference):
    """Whether two memories say the same and came to it in the same steps."""

    def told(history):
        return [(change.version, change.name, change.action, change.reason) for change in history]

    assert await memory.everything() == await reference.everything()
    assert told(await memory.history()) == told(await reference.history())


@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_a_write_that_was_made_and_not_heard_of_is_made_once(tmp_path, nth):
    reference, kept, n_calls = await whole()
    store, memory, student = Runs(tmp_path), Dying(nth), Student()
    with pytest.raises(Killed):
        await learn(pipeline(student, memory), TASKS, batch=2, store=store)
    assert await memory.version() == nth
    learned = await learn(pipeline(student, memory), TASKS, batch=2, run=store.open("last"))
    assert learned.rounds == reference.rounds
    await same(memory, kept)
    assert student.calls == n_calls  # no completed call was repeated


@pytest.mark.parametrize("after", [0, 1, 4, 7, 11, 17])
async def test_a_run_that_was_killed_goes_on_to_the_same_memory(tmp_path, after):
    reference, kept, n_calls = await whole()
    store, memory, student = Runs(tmp_path), InMemory(), Student(after)
    with pytest.raises(Killed):
        await learn(pipeline(student, memory), TASKS, batch=2, store=store)
    again = Student()
    learned = await learn(pipeline(again, memory), TASKS, batch=2, run=store.open("last"))
    assert learned.rounds == reference.rounds
    await same(memory, kept)
    assert again.calls <= n_calls - after + 2  # at most the batch that was in flight is asked again
    run = store.open("last")
    assert run.result["answer"] == "6 of 6 solved"


async def learned_within(tmp_path, budgets, batch):
    """A run that ends at one budget after the other, and what it came to at last, without one."""
    store, memory, student, run = Runs(tmp_path), InMemory(), Student(), None
    for calls in budgets:
        made = pipeline(student, memory, read="all", calls=calls)
        learned = await learn(made, TASKS, batch=batch, store=store, run=run)
        assert (student.calls <= calls and "calls" in learned.stopped) if calls else not learned.stopped
        run = store.open("last")
        assert run.result["complete"] is not bool(calls)
    return learned, memory, student.calls


@pytest.mark.parametrize("calls", [[k, None] for k in (1, 2, 3, 4, 5, 6, 10, 17)] + [[2, 5, 6, 13, None]])
async def test_a_run_that_its_budget_ended_goes_on_as_if_it_had_had_a_larger_one(tmp_path, calls):
    reference, kept, n_calls = await learned_within(tmp_path / "whole", [None], 1)
    learned, memory, asked = await learned_within(tmp_path / "cut", calls, 1)
    assert learned.rounds == reference.rounds
    await same(memory, kept)  # counts of uses too
    assert asked <= n_calls + len(calls) - 1  # what is half written is written from the start


@pytest.mark.parametrize("calls", [[4, None], [7, None], [11, None], [4, 7, 11, 15, None]])
async def test_in_batches_what_a_budget_cut_off_is_tried_and_written_when_it_goes_on(tmp_path, calls):
    learned, memory, asked = await learned_within(tmp_path, calls, 4)
    assert sorted(learned.order) == [f"p{i}" for i in range(1, 7)]
    assert all(len(tries) == 1 for tries in learned.solved.values())
    kept = {entry.name: entry for entry in await memory.everything()}
    assert {name for name in kept if name.startswith("c")} == {f"c{i}" for i in range(1, 7)}
    assert asked <= 18 + 4 * (len(calls) - 1)
    shown = [
        {name for id in each.problems for name in learned.solved[id][0].selected} for each in learned.rounds
    ]
    assert {name: entry.uses for name, entry in kept.items() if entry.uses} == Counter(
        name for names in shown for name in names
    )


class Halting(InMemory):
    """Says its version only after a while, when it is asked for the `nth` time."""

    def __init__(self, nth):
        super().__init__()
        self.left = nth

    async def version(self):
        self.left -= 1
        await asyncio.sleep(0 if self.left else 2)
        return await super().version()


async def test_what_was_learned_before_time_was_up_is_told(tmp_path):
    reference, kept, _ = await whole()
    store, memory = Runs(tmp_path), Halting(4)  # the one after the first batch was learned from
    learned = await learn(pipeline(Student(), memory, seconds=1), TASKS, batch=2, store=store)
    assert "seconds" in learned.stopped
    assert [(each.solved, each.written) for each in learned.rounds] == [
        (each.solved, each.written) for each in reference.rounds[:1]
    ]
    learned = await learn(pipeline(Student(), memory), TASKS, batch=2, run=store.open("last"))
    assert learned.rounds == reference.rounds
    await same(memory, kept)


async def test_a_budget_in_money_needs_prices_here_too():
    class Unpriced(Scripted):
        def priced(self):
            return False

    made = pipeline(Student(), InMemory(), cost_usd=1)
    made = replace(made, services=replace(made.services, engines={"policy": Unpriced("")}))
    with pytest.raises(UsageError, match="no price of"):
        await learn(made, TASKS)


async def test_a_run_goes_on_with_the_same_problems_and_settings_only(tmp_path):
    store = Runs(tmp_path)
    made = pipeline(Student(), InMemory())
    await learn(made, TASKS, batch=2, store=store)
    run = store.open("last")
    for tasks, options, why in [
        (TASKS[1:], {}, "problems"),
        (TASKS, {"batch": 3}, "batch"),
        (TASKS, {"seed": 1}, "seed"),
    ]:
        with pytest.raises(UsageError, match=f"differs in: {why}"):
            await learn(made, tasks, **{"batch": 2, "run": run, **options})
    changed = replace(made, settings={"recipe": {"strategy": {"name": "arcmemo", "samples": 2}}})
    with pytest.raises(UsageError, match="differs in: settings"):
        await learn(changed, TASKS, batch=2, run=store.open("last"))
    await learn(replace(made, settings={"budget": "9 calls"}), TASKS, batch=2, run=store.open("last"))
    other = store.create({"task": TASKS[0], "seed": 0})
    with pytest.raises(UsageError, match="no run of abduce learn"):
        await learn(made, TASKS, run=other)


async def test_only_arcmemo_with_a_memory_learns():
    with pytest.raises(UsageError, match="arcmemo-grids"):
        await learn(recipe.load("best-of-n-math"), TASKS)
    with pytest.raises(UsageError, match=r"memory: concepts\.db"):
        await learn(pipeline(Student(), None), TASKS)


class Away(InMemory):
    """A memory on a server that is not running."""

    async def version(self):
        raise UsageError("The server cannot be used. Is it running?")

    everything = search = write = get = version


async def test_a_memory_that_cannot_be_reached_is_told_before_anything_is_asked():
    student = Student()
    with pytest.raises(UsageError, match="Is it running"):
        await learn(pipeline(student, Away()), TASKS)
    assert student.calls == 0


# ---------------------------------------------------------------- at the terminal


@pytest.fixture
def at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "home"))
    mirror = {
        "train": [{"input": [[1, 2]], "output": [[2, 1]]}],
        "test": [{"input": [[3, 4]], "output": [[4, 3]]}],
    }
    flip = {"train": [{"input": [[1], [2]], "output": [[2], [1]]}], "test": [{"input": [[3], [4]]}]}
    file = tmp_path / "puzzles.json"
    file.write_text(json.dumps({"m": mirror, "f": flip}))

    def say(request, seed):
        text = request.prompt.messages[-1].content
        if "Do not solve" in text:
            return "- mirror left to right"
        return (
            "```python\ndef transform(g):\n    # mirror_left_to_right\n    return [r[::-1] for r in g]\n```"
        )

    monkeypatch.setattr(solve, "_engine", lambda spec: Scripted(say))
    return file


def test_the_command_tells_of_each_batch_and_of_the_scores(at_home, capsys):
    command = ["learn", str(at_home), "--recipe", "arcmemo-grids", "--batch", "1"]
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found == {
        "problems": 2,
        "solved": 1,
        "official": 1,
        "strict": 1,
        "scored": 1,
        "selected": 2,
        "attributed": 1,
        "version": 2,
    }
    assert "learn from 2 problems" in printed.err.splitlines()[0]
    assert "abduce:   m: solved, 1 attempt" in printed.err
    assert "abduce:   f: not solved, 3 attempts" in printed.err
    assert "abduce: pass 1: 1 of 1 solved, 1 written, memory 1 -> 2" in printed.err
    assert main([*command, "--freeze"]) == 0
    assert "1 of 2, by their training pairs or checks" in capsys.readouterr().out
    assert main(["memory", "show", "solution of m", "--store", "concepts.db"]) == 0
    assert "tests" in capsys.readouterr().out


def test_rows_with_checks_are_problems_too(at_home, capsys, tmp_path):
    rows = [
        {"question": f"{i}?", "checks": [{"id": "regex", "kwargs": {"pattern": "python"}}]} for i in range(3)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert main(["learn", str(file), "--recipe", "arcmemo-grids", "--limit", "2"]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2" in printed and "official" not in printed
    file.write_text('{"question": "7 x 8 =", "answer": "56"}')
    assert main(["learn", str(file), "--recipe", "arcmemo-grids"]) == 2
    assert "no row has checks" in capsys.readouterr().err


def test_what_is_wrong_is_said(at_home, capsys, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a", "question": "x", "checks": [{"id": "regx", "kwargs": {"pattern": "x"}}]}')
    assert main(["learn", str(rows), "--recipe", "arcmemo-grids"]) == 2
    said = capsys.readouterr().err
    assert "problem 'a'" in said and "'regx'" in said and "run" not in said
    half = tmp_path / "half.json"
    half.write_text('{"a": {"train": [{"input": [[1]], "output": [[1]]}]}}')
    assert main(["learn", str(half), "--recipe", "arcmemo-grids"]) == 2
    assert "'a' is no puzzle: it has no 'test'" in capsys.readouterr().err
    assert main(["learn", "nowhere.json", "--recipe", "arcmemo-grids"]) == 2
    assert "Cannot read nowhere.json" in capsys.readouterr().err
    assert main(["learn", str(at_home), "--recipe", "one-sample-math"]) == 2
    assert "arcmemo-grids" in capsys.readouterr().err


def test_a_run_that_learns_is_gone_on_with_by_the_same_command(at_home, capsys, tmp_path):
    command = ["learn", str(at_home), "--recipe", "arcmemo-grids", "--batch", "1", "--budget", "3 calls"]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert "Go on with the same command, a larger budget" in told and "--resume 20" in told
    assert main(["resume", "last"]) == 2
    assert "abduce learn and: --resume" in capsys.readouterr().err
    before = [*tmp_path.rglob("run.json")]
    assert before
    assert main(["runs", "fork", "last", "--at", "0"]) == 2
    assert "has no forks" in capsys.readouterr().err
    assert main([*command, "--resume", "last"]) == 1  # the budget is the same
    assert "Go on with the same command, a larger budget" in capsys.readouterr().err
    assert main([*command[:-1], "100 calls", "--resume", "last"]) == 0
    assert "f: not solved, 3 attempts" in capsys.readouterr().err
    assert [*tmp_path.rglob("run.json")] == before
