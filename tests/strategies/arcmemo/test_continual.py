"""From problem to problem: order, batches, versions, the gate, and what is left of a run that was killed."""

import pytest

from abduce.memory.concepts import Library
from abduce.memory.concepts.rendering import selected
from abduce.memory.concepts.selecting import Selection
from abduce.memory.sqlite import SqliteStore
from abduce.orchestrator.driver import Driver
from abduce.orchestrator.ledger import Budget
from abduce.serving.errors import UsageError
from abduce.strategies.arcmemo import ArcMemo, learn
from abduce.strategies.base import Check, Task
from abduce.strategies.policy import policy

from .skilled import Skilled
from .world import LABELS, MIRROR, PUZZLES, arcmemo, filled, run, services

OWN = "concepts: [{concept: seed, kind: structure}]"


class Student:
    """Solves `p1`, `p2` … and writes a concept `c1`, `c2` …; it fails those of `hard` unless its prompt shows
    the concept that they need."""

    def __init__(self, hard=None):
        self.hard = hard or {}
        self.asked = []

    def __call__(self, request, seed):
        text = "\n".join(message.content for message in request.prompt.messages)
        kind = Skilled.kind(text)
        self.asked.append((kind, text))
        if kind == "preprocess":
            return f"<pseudocode>\n{text.rpartition('solved ')[2].strip()}\n</pseudocode><summary>s</summary>"
        if kind == "abstract":
            number = text.rpartition("</pseudocode>")[0].rpartition("p")[2].strip()
            return f"- {{concept: c{number}, kind: routine, routine_subtype: grid manipulation}}"
        name = text.rpartition("Problem ")[2].split()[0]
        needs = self.hard.get(name)
        return "hm" if needs and needs not in text else f"solved {name}"


def problems(n):
    return [
        Task(f"Problem p{i} ", checks=(Check("regex", {"pattern": "solved"}),), metadata={"id": f"p{i}"})
        for i in range(1, n + 1)
    ]


def student(**options):
    return arcmemo(**{"read": "all", "max_passes": 1, "examples": "", **options})


async def course(n=4, hard=None, memory=None, strategy=None, **options):
    memory = memory or await filled(OWN)
    say = Student(hard)
    flow = learn(strategy or student(), problems(n), seed=0, **options)
    return await run(flow, say, memory), memory, say


async def test_each_batch_makes_a_version_and_the_order_is_recorded():
    learned, memory, _ = await course(5, batch=2)
    assert [(each.problems, each.read, each.version) for each in learned.rounds] == [
        (("p1", "p2"), 1, 2),
        (("p3", "p4"), 2, 3),
        (("p5",), 3, 4),
    ]
    assert learned.order == ("p1", "p2", "p3", "p4", "p5")
    assert learned.rounds[0].written == (
        "c1",
        "solution of p1",
        "c2",
        "solution of p2",
    )
    history = await memory.history("c3")
    assert [(change.version, change.reason) for change in history] == [(3, "learned from p3, p4")]


@pytest.mark.parametrize(("batch", "seen"), [(1, {"c1", "c2", "c3"}), (2, {"c1", "c2"}), (4, set())])
async def test_a_problem_sees_what_earlier_batches_left_and_nothing_of_its_own(batch, seen):
    _, _, say = await course(4, batch=batch)
    last = next(text for kind, text in say.asked if kind == "solve" and "Problem p4" in text)
    assert {f"c{i}" for i in range(1, 5) if f"c{i} (routine" in last} == seen


async def test_a_later_pass_takes_up_what_failed_with_the_memory_of_that_moment():
    hard = {"p1": "c3", "p2": "nothing that there is"}
    learned, _, _ = await course(3, hard, batch=1, passes=3)
    assert [(each.turn, each.problems, each.solved) for each in learned.rounds] == [
        (1, ("p1",), ()),
        (1, ("p2",), ()),
        (1, ("p3",), ("p3",)),
        (2, ("p1",), ("p1",)),
        (2, ("p2",), ()),
        (3, ("p2",), ()),
    ]
    assert "c1" in learned.rounds[3].written
    assert learned.rounds[4].version == learned.rounds[4].read  # nothing was learned, nothing changed
    assert [len(tries) for tries in learned.solved.values()] == [2, 3, 1]


async def test_a_frozen_memory_is_read_and_never_written():
    memory = await filled(OWN)
    before = await memory.everything()
    learned, memory, say = await course(3, memory=memory, freeze=True, batch=1)
    assert await memory.everything() == before
    assert {each.version for each in learned.rounds} == {1}
    assert all("seed (structure)" in text for _, text in say.asked)
    assert {kind for kind, _ in say.asked} == {"solve"}


async def test_the_same_run_gives_the_same_memory_whatever_was_concurrent():
    found = []
    for limit in (None, 1):
        memory = await filled(OWN)
        flow = learn(student(), problems(4), seed=0, batch=2)
        await Driver(services(Student(), memory), seed=0, concurrency=limit).run(flow)
        found.append((await memory.everything(), await memory.history()))
    assert found[0] == found[1]


async def test_it_can_be_taken_back_to_any_version():
    memory = await filled(OWN)
    states = [await memory.everything()]
    _, memory, _ = await course(3, memory=memory, batch=1)
    for version in (1, 2, 3, 4):
        states.append(await memory.everything(at=version))
    await memory.rollback(2)
    assert Library.of(await memory.everything()) == Library.of(states[2])
    assert len(states[2]) < len(states[4])


# ---------------------------------------------------------------- the gate


def leaky():
    """A program that fits the examples and not the test."""
    return "aabf363d", arcmemo(max_passes=1, examples="")


async def test_what_fits_the_examples_is_written_whatever_the_test_says():
    name, strategy = leaky()
    memory = await filled()
    learned = await run(learn(strategy, [PUZZLES[name].task(name)], seed=0), Skilled(), memory)
    assert learned.gate == "feedback"
    assert learned.rounds[0].solved == (name,)
    [entry] = await memory.get([f"solution of {name}"])
    assert entry.evidence[0].verifier == "tests"


async def test_the_oracle_writes_only_what_has_the_tests_right_and_marks_the_run():
    name, strategy = leaky()
    tasks = [PUZZLES[each].task(each) for each in (name, "67a3c6ac")]
    memory = await filled()
    learned = await run(learn(strategy, tasks, seed=0, oracle=LABELS), Skilled(), memory)
    assert learned.gate == "oracle"
    assert learned.rounds[0].solved == ("67a3c6ac",)
    assert await memory.get([f"solution of {name}"]) == ()


async def test_without_the_oracle_the_labels_are_nowhere():
    """Labels that differ from the truth change no request: nobody looked at them."""
    name = "67a3c6ac"
    say = Skilled()
    await run(learn(arcmemo(), [PUZZLES[name].task(name)], seed=0), say, await filled())
    [label] = LABELS[name]
    rows = "\n".join(" ".join(map(str, row)) for row in label)
    assert say.asked
    assert all(rows not in text for _, text in say.asked)
    assert not any("label" in field or "gold" in field for field in vars(PUZZLES[name]))


# ---------------------------------------------------------------- ends


async def test_a_budget_ends_it_with_what_was_done():
    memory = await filled(OWN)
    flow = learn(student(), problems(4), seed=0, batch=1)
    learned = await Driver(services(Student(), memory), budget=Budget(calls=4)).run(flow)
    assert "calls" in learned.stopped
    assert learned.rounds[0].version == 2


async def test_without_a_memory_problems_are_solved_and_nothing_is_kept():
    learned = await run(learn(student(), problems(2), seed=0), Student())
    assert learned.rounds[0].solved == ("p1", "p2")
    assert (learned.rounds[0].read, learned.rounds[0].version) == (0, 0)


@pytest.mark.parametrize(
    ("tasks", "options", "why"),
    [
        ([MIRROR.task("a"), MIRROR.task("a")], {}, "same id"),
        ([MIRROR.task("a")], {"batch": 0}, "batch"),
        ([MIRROR.task("a")], {"passes": 0}, "passes"),
    ],
)
def test_what_makes_no_sense_is_refused(tasks, options, why):
    with pytest.raises(UsageError, match=why):
        next(learn(arcmemo(), tasks, seed=0, **options))


def test_problems_without_an_id_are_told_apart_by_what_they_ask():
    flow = learn(ArcMemo(policy=policy("cot")), [Task("one"), Task("two")], seed=0)
    assert next(flow)
    flow.close()


async def test_a_sqlite_memory_does_the_same(tmp_path):
    memory = SqliteStore(tmp_path / "m.db")
    await memory.write(list(Library.of(await (await filled(OWN)).everything()).entries()))
    learned, _, _ = await course(4, memory=memory, batch=2)
    reference, other, _ = await course(4, batch=2)
    assert [vars(each) for each in learned.rounds] == [vars(each) for each in reference.rounds]
    assert Library.of(await memory.everything()) == Library.of(await other.everything())
    await memory.close()


# ---------------------------------------------------------------- what does not help


class Misled(Student):
    """Solves everything unless a concept is in view."""

    def __call__(self, request, seed):
        said = super().__call__(request, seed)
        text = request.prompt.messages[-1].content
        return "hm" if Skilled.kind(text) == "solve" and "bad (structure" in text else said


async def test_concepts_that_do_harm_are_retired_by_what_the_controls_reach_without():
    memory = await filled("concepts: [{concept: bad, kind: structure}, {concept: worse, kind: structure}]")
    tasks = problems(60)
    strategy = student(control=1)
    learned = await run(learn(strategy, tasks, seed=0, batch=10), Misled(), memory)
    gone = [name for each in learned.rounds for name in each.retired]
    assert "bad" in gone
    turn = next(i for i, each in enumerate(learned.rounds) if "bad" in each.retired)
    assert turn <= 2
    [entry] = await memory.get(["bad"])
    assert (entry.status, entry.wins) == ("retired", 0)
    assert all(tries[-1].won for name, tries in list(learned.solved.items())[10 * (turn + 1) :])


async def test_nothing_is_retired_without_controls():
    memory = await filled("concepts: [{concept: bad, kind: structure}]")
    learned = await run(learn(student(), problems(30), seed=0), Misled(), memory)
    assert not any(each.retired for each in learned.rounds)


class Luckless(Student):
    """Whatever is in view, if anything is, two of three of its problems fail."""

    def __call__(self, request, seed):
        said = super().__call__(request, seed)
        kind, text = self.asked[-1]
        shown = kind == "solve" and "(structure" in text
        return "hm" if shown and int(said.removeprefix("solved p") or 0) % 3 else said


@pytest.mark.parametrize("freeze", [False, True])
async def test_a_memory_that_harms_as_a_whole_is_shown_no_more(freeze):
    """Its concepts are shown once or twice each, so nothing speaks against any of them."""
    names = ", ".join(f"{{concept: k{i}, kind: structure}}" for i in range(150))
    memory, say = await filled(f"concepts: [{names}]"), Luckless()
    flow = learn(Turns(**vars(student(control=1))), problems(90), seed=0, batch=10, freeze=freeze)
    learned = await run(flow, say, memory)
    [turn] = [i for i, each in enumerate(learned.rounds) if each.withheld]
    assert 1 <= turn <= 5
    assert "100% without it" in learned.rounds[turn].withheld
    before = list(learned.solved.values())[: 10 * (turn + 1)]
    after = list(learned.solved.values())[10 * (turn + 1) :]
    assert all(tries[0].selected for tries in before) and not any(tries[0].selected for tries in after)
    assert all(tries[0].won for tries in after)
    assert learned.rounds[-1].version == await memory.version()


class Turns(ArcMemo):
    """Shows each problem another concept."""

    def chosen(self, library, problem, *, seed, tried=""):
        if self.read == "none":
            return Selection()
        name = sorted(library.concepts)[seed % len(library.concepts)]
        return Selection((name,), selected(library, [name]), "select")
        yield


async def test_a_memory_that_helps_is_never_withheld():
    hard = {f"p{i}": "bad (structure" for i in range(1, 61, 2)}
    memory = await filled("concepts: [{concept: bad, kind: structure}]")
    learned = await run(learn(student(control=1), problems(60), seed=0), Student(hard), memory)
    assert not any(each.withheld for each in learned.rounds)
    assert all(tries[0].won for tries in learned.solved.values())
