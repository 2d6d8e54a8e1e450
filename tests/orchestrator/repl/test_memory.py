import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from talking import Talk

from abduce.memory.sqlite import SqliteStore
from abduce.orchestrator.arguments.memory import VERBS as COMPLETED
from abduce.orchestrator.commands.memory import VERBS
from abduce.orchestrator.recipe import from_data
from abduce.orchestrator.repl.sitting import Sitting
from abduce.orchestrator.runs import Runs
from abduce.serving.entries import Entry, Evidence
from abduce.serving.errors import UsageError

TESTS = (Evidence("r1", "p1", "tests", 1.0),)


@pytest.fixture
def sitting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sitting:
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    async def fill() -> None:
        store = SqliteStore(tmp_path / "memory" / "m.db")
        await store.write(
            [
                Entry("keep rows", "keep what's odd", evidence=TESTS),
                Entry("rotate", "turn it", evidence=TESTS),
            ]
        )
        await store.close()

    asyncio.run(fill())
    solve = {"solve": {"strategy": "chain_of_thought", "model": "synthetic"}}
    recipe = {"name": "run", "model": "synthetic", "memory": "m.db", "pipeline": ["recall", solve]}
    return Sitting(Runs(tmp_path / "runs"), from_data(recipe))


def say(sitting: Sitting, line: str) -> str:
    from talking import shown

    return shown(*sitting.do(line))


def test_a_query_is_looked_up_and_alone_it_tells_what_there_is(sitting: Sitting) -> None:
    assert "keep rows" in say(sitting, "memory which rows to keep, if they're odd?")
    assert "shares" in say(sitting, "memory search rows -k 1")
    told = say(sitting, "memory")
    assert "m.db" in told and "retire" in told


def test_the_verbs_are_those_of_the_command_line(sitting: Sitting) -> None:
    assert "rotate" in say(sitting, "memory list")
    assert "tests 1" in say(sitting, 'memory show "keep rows"')
    say(sitting, 'memory retire "keep rows"')
    assert "keep rows" not in say(sitting, "memory list")
    assert "status: retired" in say(sitting, "memory diff")
    say(sitting, "memory rollback 1")
    assert "keep rows" in say(sitting, "memory list")
    assert "Nothing is wrong" in say(sitting, "memory audit")
    assert "2 entries" in say(sitting, "memory export --out x.jsonl") and Path("x.jsonl").exists()
    assert "already there" in say(sitting, "memory import x.jsonl")
    assert "1 forgotten" in say(sitting, "memory forget rotate --yes")
    assert "usage: memory search" in say(sitting, "memory search --help")
    assert json.loads(say(sitting, "memory list --json"))[0]["name"] == "keep rows"


def test_there_is_a_verb_for_each_that_is_offered() -> None:
    assert set(COMPLETED) == set(VERBS)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("memory show", "required: NAME"),
        ("memory show nobody", "No entry named 'nobody'"),
        ("memory search x -k 0", "not a whole number above 0"),
        ("memory forget rotate", "add --yes"),
        ("memory export", "export needs a file"),
        ("memory list --store other.db", "the memory is the recipe's"),
    ],
)
def test_mistakes_are_told_and_the_sitting_goes_on(sitting: Sitting, line: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        sitting.do(line)
    assert "rotate" in say(sitting, "memory list")


def test_without_a_memory_it_is_told_how_to_have_one(talk: Callable[..., Talk]) -> None:
    with pytest.raises(UsageError, match=r"set memory\.store"):
        talk().sitting.do("memory list")
