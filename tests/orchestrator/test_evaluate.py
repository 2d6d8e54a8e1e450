"""Measuring: rows are read strictly, results are never lost, figures are right."""

import json
import math
import threading
from dataclasses import replace

import pytest

from abduce.orchestrator.against import against, outcomes_in
from abduce.orchestrator.evaluate import (
    Outcome,
    Results,
    _lost,
    evaluate,
    header,
    read_problems,
    report,
    wilson,
)
from abduce.orchestrator.judge import same_answer
from abduce.orchestrator.ledger import Budget
from abduce.orchestrator.runs import Runs
from abduce.orchestrator.services import Services
from abduce.orchestrator.solve import Pipeline
from abduce.serving.base import Engine, Served
from abduce.serving.errors import EngineError, UsageError
from abduce.serving.flow import Completion, Generate, Prompt, Usage
from abduce.strategies.base import Candidate, Check, Result
from abduce.strategies.chain_of_thought import ChainOfThought
from abduce.strategies.policy import policy


def write(tmp_path, *rows):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return file


class Multiplier(Engine):
    """Knows products, but errs on those above 50; dies when asked about 13."""

    name = "multiplier"
    capabilities = frozenset({"generate"})

    def __init__(self):
        self.asked = []

    async def generate(self, request, *, seed):
        question = request.prompt.messages[0].content
        self.asked.append(question)
        if "13" in question:
            raise RuntimeError("bad luck")
        a, b = (int(word) for word in question.replace("=", "").split(" x "))
        return Served((Completion(str(a * b if a * b <= 50 else 0)),), Usage(5, 2, 3, 1))


class Twice:
    """Asks, and answers 1 as a second candidate."""

    def solve(self, task, *, seed):
        [reply] = yield [Generate(Prompt.user(task.question))]
        if not isinstance(reply, tuple):
            raise RuntimeError(reply.message)
        answer = reply[0].text
        return Result(answer, answer, (Candidate(answer, answer), Candidate("1", "1")))


def pipeline(engine=None, **settings):
    return Pipeline(Twice(), Services({"policy": engine or Multiplier()}), settings=settings)


PRODUCTS = [{"question": f"{a} x {b} =", "answer": str(a * b)} for a in (2, 9) for b in (3, 8)]


# ---------------------------------------------------------------- data


def test_gsm8k_rows_are_read_as_they_are(tmp_path):
    [problem] = read_problems(write(tmp_path, {"question": "Ducks?", "answer": "16-3 = 13\n#### 1,318"}))
    assert (problem.id, problem.answer, problem.task.checks) == ("1", "1,318", ())


def test_checks_and_choices_reach_the_task_and_the_answer_does_not(tmp_path):
    check = {"id": "numeric", "kwargs": {"value": 56}}
    row = {"id": "p", "question": "7 x 8 =", "answer": 56, "checks": [check], "choices": ["56", "65"]}
    [problem] = read_problems(write(tmp_path, row))
    assert problem.task.checks == (Check("numeric", {"value": 56}),)
    assert problem.task.choices == ("56", "65")
    assert not problem.task.metadata


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"question": "x", "answer": 1', "not JSON"),
        ("[1]", "a row is an object"),
        ({"query": "x", "answer": "1"}, "'question' must be text, got None. The row has: query, answer"),
        ({"question": " ", "answer": "1"}, "'question' must be text"),
        ({"question": "x"}, "'answer' or 'checks' is missing"),
        ({"question": "x", "answer": ""}, "'answer' is empty and there are no 'checks'"),
        ({"question": "x", "answer": "9 #### ", "checks": []}, "'answer' is empty"),
        ({"question": "x", "answer": None}, "'answer' must be text or a number, got None"),
        ({"question": "x", "answer": "1", "choices": "ab"}, "'choices' must be a list"),
        ({"question": "x", "checks": {"id": "numeric"}}, "'checks' must be a list"),
        ({"question": "x", "checks": [{"name": "numeric"}]}, "a check is"),
        ({"question": "x", "checks": [{"id": "numeric", "kwargs": 3}]}, "a check is"),
        ({"id": "a", "question": "x", "answer": "1"}, "the id 'a' is that of line 1 too"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, row, complaint):
    file = write(tmp_path, {"id": "a", "question": "ok", "answer": "1"}, "", row)
    with pytest.raises(UsageError, match=r"data\.jsonl:3: ") as error:
        read_problems(file)
    assert complaint in str(error.value)


def test_other_bad_files_say_so(tmp_path):
    with pytest.raises(UsageError, match="Cannot read"):
        read_problems(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="holds no problems"):
        read_problems(write(tmp_path, ""))
    (tmp_path / "bytes.jsonl").write_bytes(b'{"question": "\xff"}')
    with pytest.raises(UsageError, match=r"bytes\.jsonl:1: the line is not UTF-8"):
        read_problems(tmp_path / "bytes.jsonl")


def test_a_limit_stops_reading(tmp_path):
    assert len(read_problems(write(tmp_path, *PRODUCTS, "not JSON"), limit=3)) == 3


# ---------------------------------------------------------------- right or wrong


@pytest.mark.parametrize(
    ("given", "gold", "right"),
    [
        ("56", "56", True),
        ("56.0", "56", True),
        ("$1,234.50", "1234.5", True),
        ("1/2", "0.5", True),
        ("-3", "\u22123", True),
        ("56.", "56", True),
        ("57", "56", False),
        ("560", "56", False),
        ("Paris", " paris. ", True),
        ("fifty", "50", False),
        ("1e999999999", "1", False),
        ("1/0", "1", False),
        ("nan", "nan", True),  # as words
        ("", "0", False),
    ],
)
def test_answers_are_compared_as_numbers_or_words(given, gold, right):
    assert same_answer(given, gold) is right


def test_choices_are_compared_by_letter_or_text():
    choices = ("yes", "no", "cannot tell")
    assert same_answer("(B)", "no", choices)
    assert same_answer("No.", "B", choices)
    assert not same_answer("A", "no", choices)
    assert not same_answer("D", "no", choices)


@pytest.mark.parametrize(("k", "n", "low", "high"), [(3, 10, 0.1078, 0.6032), (30, 30, 0.8865, 1.0)])
def test_wilson_interval(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_of_nothing_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


# ---------------------------------------------------------------- runs


async def run(tmp_path, rows=PRODUCTS, *, engine=None, resume=False, parallel=3, seed=0):
    data = write(tmp_path, *rows)
    problems = read_problems(data)
    pipe = pipeline(engine, strategy="twice")
    results = Results(tmp_path / "out.jsonl", header(pipe, data, seed), resume=resume)
    try:
        return await evaluate(pipe, problems, results, seed=seed, parallel=parallel)
    finally:
        results.close()


async def test_figures_count_everything(tmp_path):
    found = await run(tmp_path, [*PRODUCTS, {"question": "1 x 60 =", "answer": "1"}])
    assert (found.n, found.correct, found.any_correct) == (5, 3, 4)
    assert found.usage == Usage(25, 10, 15, 5)
    assert (found.candidates, found.errors, found.incomplete) == (10, 0, 0)
    assert found.interval == wilson(3, 5)
    assert json.loads(json.dumps(found.to_json()))["accuracy"] == 0.6


async def test_a_fault_in_one_problem_costs_that_problem_only_and_is_tried_again(tmp_path):
    rows = [*PRODUCTS, {"question": "1 x 13 =", "answer": "13"}]
    found = await run(tmp_path, rows)
    assert (found.n, found.errors, found.correct) == (5, 1, 3)
    again = Multiplier()
    await run(tmp_path, rows, engine=again, resume=True)
    assert set(again.asked) == {"1 x 13 ="}


async def test_an_answer_lost_to_a_failed_call_is_an_error_and_asked_again(tmp_path):
    class Down(Multiplier):
        async def generate(self, request, *, seed):
            self.asked.append(request.prompt.messages[0].content)
            raise EngineError("the key is not valid")

    async def run(engine, resume):
        data = write(tmp_path, *PRODUCTS)
        pipe = Pipeline(ChainOfThought(policy=policy("plain")), Services({"policy": engine}))
        results = Results(tmp_path / "out.jsonl", header(pipe, data, 0), resume=resume)
        try:
            return await evaluate(pipe, read_problems(data), results)
        finally:
            results.close()

    lost = await run(Down(), False)
    assert (lost.errors, lost.incomplete, lost.correct) == (4, 0, 0)
    assert "the key is not valid" in lost.error
    again = await run(Multiplier(), True)
    assert (again.errors, again.correct, again.error) == (0, 3, "")


def test_a_search_that_a_budget_ended_is_no_error():
    found = Result(
        None, "", complete=False, diagnostics={"stopped": "budget of 9 tokens", "failures": ["no"]}
    )
    assert not _lost(found)
    assert not _lost(Result("5", "5", complete=False, diagnostics={"stopped": "no", "failures": ["no"]}))


def test_answers_of_another_kind_than_the_policy_reads_are_counted():
    def row(answer, gold, **more):
        return Outcome("a", False, False, answer, gold, 1, more.pop("complete", True), 0.5, Usage(), **more)

    told = [row(None, "Paris"), row("1889", "Paris"), row("The answer is 7.", "7")]
    silent = [
        row("oslo", "Paris"),
        row("57", "7"),
        row("The answer is 57.", "7"),
        replace(row("1", "x"), correct=True),
        row(None, "7"),
        row(None, "Paris", error="lost"),
        row(None, ""),
    ]
    assert report(told).unread == 3
    assert report([*silent, row(None, "Paris", complete=False)]).unread == 0


async def test_judging_holds_up_nobody(tmp_path, monkeypatch):
    both = threading.Barrier(2)  # passed only by two that judge at once
    monkeypatch.setattr("abduce.orchestrator.evaluate.judge", lambda *_: both.wait(10) is not None)
    found = await run(tmp_path, PRODUCTS[:2], parallel=2)
    assert (found.correct, found.errors) == (2, 0)


async def test_finished_problems_are_not_repeated_after_a_torn_line(tmp_path):
    whole = await run(tmp_path)
    out = tmp_path / "out.jsonl"
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # header, two results, a torn third
    engine = Multiplier()
    again = await run(tmp_path, engine=engine, resume=True)
    assert len(engine.asked) == 2
    assert (again.n, again.correct, again.usage) == (whole.n, whole.correct, whole.usage)
    assert sorted(line[:8] for line in out.read_bytes().splitlines()) == sorted(line[:8] for line in lines)


async def test_results_are_never_overwritten_or_mixed(tmp_path):
    await run(tmp_path)
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(UsageError, match="Add --resume"):
        await run(tmp_path)
    with pytest.raises(UsageError, match="was made with another seed"):
        await run(tmp_path, resume=True, seed=1)
    with pytest.raises(UsageError, match="was made with another sha256"):
        await run(tmp_path, PRODUCTS[:2], resume=True)
    other = header(pipeline(strategy="other"), write(tmp_path, *PRODUCTS), 0)
    with pytest.raises(UsageError, match="was made with another recipe"):
        Results(tmp_path / "out.jsonl", other, resume=True)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(UsageError, match="no file of `abduce eval`"):
        Results(tmp_path / "notes.txt", {}, resume=True)


async def test_a_mistake_of_the_user_ends_the_evaluation_and_names_the_problem(tmp_path):
    class Refusing:
        def solve(self, task, *, seed):
            yield from ()
            raise UsageError("the task has no checks")

    data = write(tmp_path, *PRODUCTS)
    pipe = Pipeline(Refusing(), Services({"policy": Multiplier()}))
    results = Results(tmp_path / "out.jsonl", header(pipe, data, 0))
    with pytest.raises(UsageError, match=r"Problem \d \(line \d\): the task has no checks"):
        await evaluate(pipe, read_problems(data), results)
    results.close()


async def test_a_total_ends_it_and_a_larger_one_goes_on(tmp_path):
    data = write(tmp_path, *PRODUCTS)

    async def spend(total, engine, resume):
        pipe = pipeline(engine)
        results = Results(tmp_path / "out.jsonl", header(pipe, data, 0), resume=resume)
        try:
            return await evaluate(
                pipe, read_problems(data), results, parallel=1, total=Budget.parse(total) if total else None
            )
        finally:
            results.close()

    asked = Multiplier()
    assert (await spend("9 tokens", Multiplier(), False)).n == 2  # of 6 tokens each
    assert (await spend("9 tokens", asked, True)).n == 2 and not asked.asked
    assert (await spend("", asked, True)).n == 4 and len(asked.asked) == 2
    with pytest.raises(UsageError, match="not seconds"):
        await spend("9 s", asked, True)


async def test_runs_are_kept_if_asked_for_and_named(tmp_path):
    data, store = write(tmp_path, *PRODUCTS), Runs(tmp_path / "runs")
    results = Results(tmp_path / "out.jsonl", header(pipeline(), data, 0))
    await evaluate(pipeline(), read_problems(data), results, store=store)
    results.close()
    runs = {outcome.run: outcome.answer for outcome in results.outcomes.values()}
    assert {name: store.open(name).result["answer"] for name in store.names()} == runs and len(runs) == 4


async def test_two_results_are_compared_in_pairs(tmp_path):
    await run(tmp_path)
    theirs = (tmp_path / "out.jsonl").rename(tmp_path / "theirs.jsonl")
    data = header(pipeline(), tmp_path / "data.jsonl", 0)["sha256"]
    same = outcomes_in(theirs, data)
    even = against(same, same)
    assert (even.n, even.gained, even.lost, even.mean, even.tokens) == (4, 0, 0, 0.0, even.tokens_there)
    assert even.low < 0 < even.high and "no difference is shown" in str(even)
    wrong = {i: replace(o, correct=False, usage=o.usage + o.usage) for i, o in same.items()}
    worse = against(wrong, same)
    assert (worse.gained, worse.lost, worse.mean) == (0, 3, -0.75)
    assert worse.tokens == 2 * worse.tokens_there
    lost = {i: replace(o, error="lost") if i == "1" else o for i, o in same.items()}
    assert against(lost, same).n == 3
    for digest, file, told in (
        ("x", theirs, "other problems"),
        (data, tmp_path / "data.jsonl", "no file of"),
    ):
        with pytest.raises(UsageError, match=told):
            outcomes_in(file, digest)
    with pytest.raises(UsageError, match="no problem in common"):
        against(same, {})


def test_half_a_character_in_an_answer_ends_no_evaluation(tmp_path):
    results = Results(tmp_path / "out.jsonl", {"sha256": "x"})
    results.add(Outcome("1", False, False, "a\ud83d", "d", 1, True, 0.1, Usage()))
    results.close()
    assert outcomes_in(tmp_path / "out.jsonl", "x")["1"].answer == "a?"


def test_a_compared_answer_may_hold_what_ends_lines_elsewhere(tmp_path):
    made = Outcome("1", False, False, "a bc", "d", 1, True, 0.1, Usage())
    results = Results(tmp_path / "out.jsonl", {"sha256": "x"})
    results.add(made)
    results.close()
    assert outcomes_in(tmp_path / "out.jsonl", "x") == {"1": made}


def test_a_report_of_nothing_divides_by_nothing():
    assert report([]).accuracy == 0.0
    one = Outcome("a", True, True, "1", "1", 1, True, 0.5, Usage(calls=1))
    assert report([one, one]).usage.calls == 2
    assert math.isclose(report([one]).accuracy, 1.0)
