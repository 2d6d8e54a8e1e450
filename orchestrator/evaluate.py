"""Measuring a pipeline on a file of problems: every result written as it comes, figures at the end.

A data row is a JSON object: `question`, and `answer` (what is right) or `checks` (demands the answer must
meet); optionally `id` and `choices`. GSM8K rows ("… #### 42") are read as they are. The strategy sees the
question, the choices and the checks; `answer` is for judging only.

The output file holds a header (what was run on which data), then one line a problem. It can be stopped and
gone on with: finished problems are not repeated, a torn last line is cut off.
"""

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

from ..serving import redact
from ..serving.errors import UsageError
from ..serving.flow import Usage
from ..serving.seeds import derive
from ..strategies.answers import canon, number
from ..strategies.base import Candidate, Check, Result, Task
from .doors import Doors, priced
from .judge import judge
from .ledger import Budget
from .rows import Rows
from .runs import Runs
from .trace import Event, Observer, RunStarted


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of the data. `answer` is what is right; empty where the checks decide."""

    id: str
    task: Task
    answer: str
    line: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one problem."""

    id: str
    correct: bool
    any_correct: bool  # of all candidates the strategy had
    answer: Any
    gold: str
    n_candidates: int
    complete: bool
    seconds: float
    usage: Usage
    stopped: str = ""
    error: str = ""
    run: str = ""  # its name, if runs are kept


@dataclass(frozen=True, slots=True)
class Report:
    """The figures over all problems of a run."""

    n: int
    correct: int
    any_correct: int
    errors: int
    incomplete: int
    seconds: float  # sum over problems
    candidates: int
    usage: Usage
    unread: int = 0  # wrong answers of another kind than the right one is
    error: str = ""  # the most frequent one
    stopped: str = ""  # likewise, of what ended searches early

    @property
    def accuracy(self) -> float:
        """Share answered right."""
        return self.correct / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson(self.correct, self.n)

    def to_json(self) -> dict[str, Any]:
        """All figures as plain data."""
        figures: dict[str, Any] = {**asdict(self), "accuracy": self.accuracy, "interval": self.interval}
        return figures


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % confidence interval of a share.

    >>> [round(x, 4) for x in wilson(3, 10)]
    [0.1078, 0.6032]
    """
    if not n:
        return 0.0, 1.0
    p, zz = correct / n, z * z / n
    centre, half = (p + zz / 2) / (1 + zz), z * math.sqrt(p * (1 - p) / n + zz / (4 * n)) / (1 + zz)
    return max(0.0, centre - half), min(1.0, centre + half)


# ---------------------------------------------------------------- data


def read_problems(file: Path, limit: int | None = None) -> list[Problem]:
    """The problems in a file. Raises UsageError with file and line for the first row that is none."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {error.strerror}.") from None
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for place, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        if limit is not None and len(problems) == limit:
            break
        try:
            problem = _problem(json.loads(line.decode("utf-8-sig")), place)
        except UnicodeDecodeError:
            raise UsageError(f"{file}:{place}: the line is not UTF-8 text.") from None
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{file}:{place}: not JSON: {error.msg} at column {error.colno}. {_ROW}"
            ) from None
        except _Malformed as error:
            raise UsageError(f"{file}:{place}: {error}") from None
        if problem.id in seen:
            raise UsageError(f"{file}:{place}: the id {problem.id!r} is that of line {seen[problem.id]} too.")
        seen[problem.id] = place
        problems.append(problem)
    if not problems:
        raise UsageError(f"{file} holds no problems. {_ROW}")
    return problems


_ROW = 'A line is a problem: {"question": "7 x 8 =", "answer": "56"}.'


class _Malformed(Exception):
    """What is wrong with a row."""


def _problem(row: Any, line: int) -> Problem:
    if not isinstance(row, dict):
        raise _Malformed(f'a row is an object like {{"question": …, "answer": …}}, not {type(row).__name__}.')
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise _Malformed(
            f"'question' must be text, got {question!r}. The row has: {', '.join(row) or 'nothing'}."
        )
    if "answer" not in row and "checks" not in row:
        raise _Malformed(f"'answer' or 'checks' is missing. The row has: {', '.join(row)}.")
    answer = row.get("answer", "")
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        raise _Malformed(f"'answer' must be text or a number, got {answer!r}.")
    choices = row.get("choices", ())
    if not isinstance(choices, (list, tuple)) or not all(isinstance(choice, str) for choice in choices):
        raise _Malformed(f"'choices' must be a list of texts, got {choices!r}.")
    checks = row.get("checks", [])
    if not isinstance(checks, list):
        raise _Malformed(f"'checks' must be a list, got {checks!r}.")
    task = Task(question, choices=tuple(choices), checks=tuple(map(_check, checks)))
    gold = str(answer).rpartition("####")[2].strip()  # GSM8K: the reasoning, then #### and the number
    if not gold and not checks:
        raise _Malformed(f"'answer' is empty and there are no 'checks' to judge by, got {answer!r}.")
    return Problem(str(row.get("id", line)), task, gold, line)


def _check(row: Any) -> Check:
    shape = '{"id": "numeric", "kwargs": {"value": 56}}'
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or set(row) - {"id", "kwargs"}:
        raise _Malformed(f"a check is {shape}, got {row!r}.")
    kwargs = row.get("kwargs", {})
    if not isinstance(kwargs, dict):
        raise _Malformed(f"a check is {shape}, got kwargs {kwargs!r}.")
    return Check(row["id"], kwargs)


# ---------------------------------------------------------------- runs


@dataclass
class Results:
    """The output file: a header, then outcomes. Opening an existing one needs `resume`."""

    file: Path
    header: Mapping[str, Any]
    resume: bool = False
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows = Rows(
            self.file, "eval", self.header, resume=self.resume, command="abduce eval", option="--out"
        )
        try:
            for row in self._rows.rows:
                outcome = Outcome(**{**row, "usage": Usage(**row["usage"])})
                self.outcomes[outcome.id] = outcome
        except (KeyError, TypeError):
            self.close()
            raise self._rows.foreign() from None

    def add(self, outcome: Outcome) -> None:
        """Write an outcome; it is on disk when this returns."""
        self.outcomes[outcome.id] = outcome
        self._rows.add(asdict(outcome))

    def close(self) -> None:
        """Close the file."""
        self._rows.close()


def header(pipeline: Doors, data: Path, seed: int) -> dict[str, Any]:
    """What makes two evaluations the same one."""
    digest = sha256(data.read_bytes()).hexdigest()
    settings: dict[str, Any] = json.loads(json.dumps(pipeline.settings, default=str))
    return {"data": data.name, "sha256": digest, "seed": seed, "settings": redact.settings(settings)}


async def evaluate(
    pipeline: Doors,
    problems: Sequence[Problem],
    results: Results,
    *,
    seed: int = 0,
    parallel: int = 4,
    progress: Callable[[Outcome], None] = lambda outcome: None,
    observers: Sequence[Observer] = (),
    store: Runs | None = None,
    total: Budget | None = None,
) -> Report:
    """Solve the problems not solved yet, `parallel` at a time, and report on all of them. The observers are
    those of all runs, which are concurrent. With a `store` each run is kept there. Once the problems have
    used up the `total` together, no other is begun, and the report is of those that were."""
    limits = _whole(pipeline, total)
    waiting = iter([p for p in problems if p.id not in results.outcomes or results.outcomes[p.id].error])

    async def worker() -> None:
        for problem in waiting:
            if limits and _used_up(limits, results.outcomes.values()):
                return
            outcome = await _solve(pipeline, problem, seed, observers, store)
            results.add(outcome)
            progress(outcome)

    workers = [asyncio.ensure_future(worker()) for _ in range(parallel)]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return report(results.outcomes[p.id] for p in problems if p.id in results.outcomes)


def _whole(pipeline: Doors, total: Budget | None) -> Mapping[str, float]:
    limits = {} if total is None else total.limits()
    if "seconds" in limits:
        raise UsageError("The total counts what problems use: tokens, calls, usd, not seconds.")
    if "cost_usd" in limits:
        priced(pipeline.engines)
    return limits


def _used_up(limits: Mapping[str, float], outcomes: Iterable[Outcome]) -> bool:
    spent = sum((outcome.usage for outcome in outcomes), Usage())
    return any(getattr(spent, name) >= limit for name, limit in limits.items())


async def _solve(
    pipeline: Doors, problem: Problem, seed: int, observers: Sequence[Observer], store: Runs | None
) -> Outcome:
    began, run = perf_counter(), ""
    result, error = Result(None, "", complete=False), ""

    def named(event: Event) -> None:
        nonlocal run
        run = event.run if isinstance(event, RunStarted) else run

    try:
        seed = derive(seed, "eval", problem.id)
        result = await pipeline.asolve(problem.task, seed=seed, observers=[*observers, named], store=store)
        error = _lost(result)
    except UsageError as mistake:
        raise UsageError(f"Problem {problem.id} (line {problem.line}): {mistake}") from None
    except Exception as fault:  # one problem's fault must not lose the others
        error = f"{type(fault).__name__}: {fault}"
    seconds = perf_counter() - began
    right, any_right = await asyncio.to_thread(_judged, problem, result)  # unit tests take their time
    return Outcome(
        id=problem.id,
        correct=right,
        any_correct=any_right,
        answer=result.answer,
        gold=problem.answer,
        n_candidates=len(result.candidates),
        complete=result.complete,
        seconds=seconds,
        usage=result.usage,
        stopped=str(result.diagnostics.get("stopped", "")),
        error=error,
        run=run,
    )


def _lost(result: Result) -> str:
    """The failed call for which there is no answer, if that is why: it says nothing of the strategy, and may
    not fail the next time."""
    stopped = str(result.diagnostics.get("stopped", ""))
    failed = any(str(failure) in stopped for failure in result.diagnostics.get("failures", ()))
    return stopped if result.answer is None and failed else ""


def _judged(problem: Problem, result: Result) -> tuple[bool, bool]:
    """Whether the answer is right, and whether any candidate's is."""

    def right(found: Result | Candidate) -> bool:
        return found.answer is not None and judge(problem.task, problem.answer, found.answer, found.text)

    correct = right(result)
    return correct, correct or any(map(right, result.candidates))


def report(outcomes: Iterable[Outcome]) -> Report:
    """The figures over some outcomes."""
    rows = list(outcomes)
    return Report(
        n=len(rows),
        correct=sum(row.correct for row in rows),
        any_correct=sum(row.any_correct for row in rows),
        errors=sum(bool(row.error) for row in rows),
        incomplete=sum(not row.complete and not row.error for row in rows),
        seconds=sum(row.seconds for row in rows),
        candidates=sum(row.n_candidates for row in rows),
        usage=sum((row.usage for row in rows), Usage()),
        unread=sum(map(_unread, rows)),
        error=_commonest(row.error for row in rows),
        stopped=_commonest(row.stopped for row in rows if not row.error),
    )


def _unread(row: Outcome) -> bool:
    """Whether the policy may read another kind of answer than the right one is: a number, say, for words, or
    all of a text that holds the right answer."""
    if row.error or not row.complete or not row.gold or row.correct:
        return False
    if number(row.gold) is None and (row.answer is None or number(str(row.answer)) is not None):
        return True
    said, gold = canon(str(row.answer)).casefold(), canon(row.gold).casefold()
    return len(said) > _PROSE and re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", said) is not None


_PROSE = 12  # characters, and so no answer to be counted


def _commonest(words: Iterable[str]) -> str:
    [(word, _)] = Counter(filter(None, words)).most_common(1) or [("", 0)]
    return word
