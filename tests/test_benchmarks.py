"""What the benchmarks share."""

import ast
import asyncio
import math
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from abduce.serving.sglang.plugin.tries import Tries

FOLDER = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))
try:
    from glimp_tasks import N_SHOTS, problems
    from intervals import bootstrap, paired, resampled
    from lookahead_replay import FORMS, drafted, replayed
    from rows import Rows
    from ruler_tasks import TASKS, problem
finally:
    sys.path.pop(0)


def test_the_interval_holds_the_mean_and_lies_within_the_values() -> None:
    mean, low, high = bootstrap([0.1, 0.2, 0.3, 0.4])
    assert mean == pytest.approx(0.25)
    assert 0.1 <= low < 0.25 < high <= 0.4
    assert bootstrap([0.5] * 4) == (0.5, 0.5, 0.5)


def test_values_that_share_a_group_tell_less_than_as_many_alone() -> None:
    values = [float(i % 8 < 4) for i in range(64)]  # eight groups of eight: four of ones, four of noughts
    groups = [i % 8 for i in range(64)]
    _, low, high = bootstrap(values)
    _, low_by, high_by = bootstrap(values, by=groups)
    assert high_by - low_by > 2 * (high - low)


def test_kept_rows_are_not_measured_again_and_the_file_only_grows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"of": "another benchmark"}\n')
    first = Rows(file)(["a", 1], lambda: {"loss": 0.5})
    before = file.read_text()
    rows = Rows(file)
    assert rows(["a", 1], lambda: {"loss": 0.7}) == first
    assert file.read_text() == before
    assert rows(["a", 2], lambda: {"loss": 0.7})["loss"] == 0.7
    assert file.read_text().startswith(before) and before.startswith('{"of": "another benchmark"}')


async def test_only_what_is_not_known_is_measured_and_rows_come_in_the_order_asked(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.jsonl"
    measured: list[int] = []

    async def square(n: int) -> dict[str, Any]:
        await asyncio.sleep(0.002 * (3 - n))  # the last ends first
        measured.append(n)
        return {"square": (n * n,)}

    def run(n: int) -> list[Any]:
        return ["squares", n]

    first = await Rows(file).each([1], run, square)
    for at_once in (1, 3):
        rows = await Rows(file).each([0, 1, 2], run, square, at_once=at_once)
        assert [row["square"] for row in rows] == [[0], [1], [4]]  # as they are read, not as measured
        assert rows[1] == first[0]
    assert measured == [1, 0, 2]
    await Rows(file).each([1], lambda n: ["cubes", n], square)
    assert measured == [1, 0, 2, 1]  # another setting is not mixed up with it


def test_other_statistics_are_resampled_as_means_are() -> None:
    values = [0.1, 0.7, 0.2, 0.9, 0.4]
    assert resampled(values, fmean) == bootstrap(values)[1:]
    assert paired(values, [0.0] * 5) == bootstrap(values)
    assert all(map(math.isnan, resampled(values, lambda drawn: math.nan)))


def scripts() -> list[Path]:
    return sorted(FOLDER.glob("*.py"))


def test_the_index_lists_every_file_once() -> None:
    rows = [line for line in (FOLDER / "README.md").read_text("utf-8").splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`(\w+\.py)`", row.split("|")[1])]
    assert sorted(listed) == [file.name for file in scripts()]


@pytest.mark.parametrize("file", scripts(), ids=lambda file: file.name)
def test_a_script_says_how_it_is_called(file: Path) -> None:
    text = file.read_text("utf-8")
    doc = ast.get_docstring(ast.parse(text))
    assert doc
    if "__main__" in text:
        assert re.search(rf"^    .*benchmarks/{file.name}", doc, re.MULTILINE)


def test_every_script_can_be_imported() -> None:
    """One that lacks a package which is not installed here (torch, say) is left out."""
    program = """
import importlib, sys
folder, *names = sys.argv[1:]
for name in names:
    sys.path.insert(0, folder)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] in ("abduce", "tests", *names):
            raise
"""
    names = [file.stem for file in scripts()]
    command = [sys.executable, "-c", program, str(FOLDER), *names]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_task_that_runs_out_gives_all_its_problems_once() -> None:
    _, asked = problems("products", 10_000, seed=0)
    assert len({each.task.question for each in asked}) == len(asked) == 38 * 7 - N_SHOTS


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n", [700, 2000])
def test_a_long_problem_is_as_long_as_asked_and_holds_its_answers(task: str, n: int) -> None:
    made = problem(task, 3, n, words)
    assert 0.9 * n <= words(made.context + made.question) <= n
    assert made == problem(task, 3, n, words)
    assert made.context != problem(task, 4, n, words).context
    assert len(set(made.answers)) == len(made.answers)
    assert made.score("it is " + ", ".join(made.answers)) == 1
    assert made.score("") == made.score(made.question) == 0
    if task.startswith("niah"):
        assert [made.context.count(each) for each in made.answers] == [1] * len(made.answers)


def test_the_variables_that_are_asked_for_have_the_value() -> None:
    made = problem("tracking", 1, 800, words)
    has: dict[str, str] = {}
    for line in made.context.splitlines():
        if line.startswith("VAR "):
            name, value = line.removeprefix("VAR ").split(" = ")
            has[name] = has[value.removeprefix("VAR ")] if value.startswith("VAR ") else value
    (value,) = {has[name] for name in made.answers}
    assert sorted(made.answers) == sorted(name for name in has if has[name] == value)
    assert len(has) > len(made.answers) and value in made.question


@pytest.mark.parametrize("task", ["common words", "frequent words"])
def test_the_words_that_are_asked_for_are_the_most_frequent(task: str) -> None:
    made = problem(task, 2, 2000, words)
    said = [word for word in made.context.split() if word.isalpha()]
    times = {word: said.count(word) for word in set(said)}
    rest = max(n for word, n in times.items() if word not in made.answers)
    assert min(times[word] for word in made.answers) > rest


def test_four_prompts_ask_for_one_key_each_of_the_same_text() -> None:
    made = [problem("niah multikey 1", seed, 900, words) for seed in range(4, 9)]
    assert len({each.context for each in made[:4]}) == 1 != len({each.answers for each in made[:4]})
    assert all(each.answers[0] in made[0].context for each in made[:4])
    assert made[4].context != made[0].context


def test_one_of_many_like_needles_is_asked_for() -> None:
    made = problem("niah multikey 2", 1, 2000, words)
    needles = [line for line in made.context.splitlines() if line.startswith("One of")]
    key = made.question.split(" for ")[1].split()[0]
    assert len(needles) > 150
    (asked,) = [line for line in needles if f" {key} " in line]
    assert made.answers[0] in asked


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [1, 2, 5, 30])
def test_a_replay_gives_the_text_by_drafts_of_the_size_that_is_told(form: str, n: int) -> None:
    text = {"prompt": [1, 2, 3, 4, 1, 2, 5, 3, 1, 4] * 2, "output": [1, 2, 3, 4, 1, 2, 5, 9, 8, 1, 2, 3]}
    tokens, forwards = replayed(Tries(), None, text, n, form)
    assert tokens == 11
    assert (forwards == 11) if n == 1 else (2 <= forwards < 11)
    tries = Tries()
    tries.open("request", None, text["prompt"], [])
    paths = drafted(tries, "request", [1, 2], n, form)
    rows = {tuple(path[: i + 1]) for path in paths for i in range(len(path))}
    assert len(rows) < n
    assert form == "tree" or sum(map(len, paths)) < n
    assert form != "one path" or len(paths) == 1
