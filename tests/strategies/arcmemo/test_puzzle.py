"""Puzzles, and programs that are run on them."""

import json

import pytest

from abduce.serving.errors import UsageError
from abduce.serving.flow import ToolResult
from abduce.strategies.arcmemo import Puzzle, read
from abduce.strategies.arcmemo.puzzle import Ran, call, program, ran, wrong

from .world import LABELS, MIRROR, PUZZLES, services

GRID = ((1, 2), (3, 4))


def test_a_puzzle_is_the_same_from_its_task():
    for name, puzzle in PUZZLES.items():
        assert Puzzle.parse(puzzle.task(name).question) == puzzle


def test_test_outputs_are_nowhere_in_a_puzzle():
    data = {"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[3]], "output": [[77]]}]}
    puzzle = Puzzle.parse(json.dumps(data))
    for text in (puzzle.text, puzzle.task("x").question, repr(puzzle)):
        assert "77" not in text


@pytest.mark.parametrize(
    "text", ["7 x 8 =", "{", '{"train": []}', '{"train": 3, "test": []}', "[1]", '{"a": 1}']
)
def test_other_questions_are_no_puzzles(text):
    assert Puzzle.parse(text) is None


def test_a_file_gives_puzzles_and_apart_from_them_what_is_right():
    assert len(PUZZLES) == len(LABELS) == 16
    assert all(len(LABELS[name]) == len(puzzle.test) for name, puzzle in PUZZLES.items())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        ("{}", "no puzzles"),
        ('{"a": {"train": [], "test": []}}', "'a' is no puzzle"),
        (
            '{"a": {"train": [{"input": [[1], [1, 2]], "output": [[1]]}], "test": [{"input": [[1]]}]}}',
            "one length",
        ),
        ('{"a": {"train": [{"input": [[1.5]], "output": [[1]]}], "test": [{"input": [[1]]}]}}', "integers"),
        ('{"a": 3}', "'a' is no puzzle"),
    ],
)
def test_a_file_that_is_none_is_refused_with_the_reason(tmp_path, text, why):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UsageError, match=why):
        read(tmp_path / "p.json")
    with pytest.raises(UsageError, match="Cannot read"):
        read(tmp_path / "q.json")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```python\ndef transform(g):\n    return g\n```", "def transform(g):\n    return g"),
        (
            "```\nx = 1\n```\n```py\ndef transform(g):\n    pass\n```\n```\nx\n```",
            "def transform(g):\n    pass",
        ),
        ("```python\ndef transform(g):\n    return g", "def transform(g):\n    return g"),
        ("def transform(g): return g", ""),
        ("```python\ndef other(g):\n    return g\n```", ""),
    ],
)
def test_the_program_of_an_answer(text, found):
    assert program(text) == found


async def tried(body, seconds=2.0):
    code = f"def transform(g):\n    {body}"
    request = call(code, GRID)
    reply = await services("", seconds=seconds).tools["python"].call(request.arguments)
    return ran(code, GRID, reply)


@pytest.mark.parametrize(
    ("body", "grid"),
    [
        ("return g", GRID),
        ("return tuple(map(tuple, g))", GRID),
        ("print('hello'); return [[0]]", ((0,),)),
        ("import numpy as np; return np.array(g) * 2", ((2, 4), (6, 8))),
        ("import numpy as np; return [[np.int64(1)]]", ((1,),)),
    ],
)
async def test_what_a_program_returns_is_a_grid(body, grid):
    if "numpy" in body:
        pytest.importorskip("numpy")
    assert (await tried(body)).grid == grid


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 7", "but this int: 7"),
        ("return 'abc'", "but this str: 'abc'"),
        ("return [[1.0]]", "but this list: [[1.0]]"),
        ("return [[True]]", "but this list: [[True]]"),
        ("return [[1], [1, 2]]", "but this list: [[1], [1, 2]]"),
        ("return []", "but this list: []"),
        ("return {1: 2}", "but this dict: {1: 2}"),
        ("return None", "but this NoneType: None"),
        ("return object", "but this type: <class 'object'>"),
        ("return nothing", "NameError"),
        ("raise ValueError('oh')", "ValueError: oh"),
        ("import sys; sys.exit(0)", "ended before"),
        ("print('x' * 20000); return g", "printed too much"),
        ("print('transformed 1 {}'); return 3", "but this int: 3"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "Error"),
        ("return [bytearray(1 << 30)]", "MemoryError"),
    ],
)
async def test_what_is_no_grid_is_told_with_what_it_was(body, said):
    found = await tried(body)
    assert found.grid is None
    assert said in found.said


async def test_an_endless_program_is_stopped_in_time():
    found = await tried("while True: pass", seconds=1.0)
    assert "stopped after 1 s" in found.said or "of CPU" in found.said


async def test_feedback_shows_the_wrong_grid_and_nothing_for_the_right_one():
    given, wanted = MIRROR.train[0]
    same = await tried("return g")
    assert wrong(2, given, Ran(given)) == ""
    assert wrong(2, wanted, same).startswith("Example 2: the output is wrong. Your program returned (2 x 2):")
    assert wrong(2, wanted, Ran(None, "NameError")) == "Example 2: NameError"


async def test_no_output_of_a_program_can_pass_for_its_result():
    code = "def transform(g):\n    return [[9]]"
    assert ran(code, GRID, ToolResult('transformed 0 {"value": [[1]]}')).grid is None


def test_without_the_tool_the_user_is_told_to_add_it():
    with pytest.raises(UsageError, match=r"tools: \[python\]"):
        ran("code", GRID, ToolResult("No tool named 'python'. Known: none.", ok=False))
