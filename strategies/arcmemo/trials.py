"""What a task is to ArcMemo: how it is put to the model, and what may be learned of an attempt at it.

A grid puzzle's programs are run on the training pairs; any other task is held to its own checks, if it has
any. Nothing else is known here: no test output, no answer of an evaluation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ...serving.flow import CallTool, Failure, Flow
from ...serving.seeds import derive
from ..base import Policy, State, Task
from ..rewards import checks
from ..rewards.ifeval import Finding
from .puzzle import Puzzle, Ran, call, outputs, program, ran, wrong


@dataclass(frozen=True)
class Verdict:
    """What is known of one attempt. `passed` is None where nothing can be known; `score` is the share of what
    was demanded; `solution` is what a memory would keep of it."""

    passed: bool | None
    score: float | None
    answer: Any
    feedback: str = ""
    solution: str = ""
    verifier: str = ""


class Trial(Protocol):
    """A task, put and judged."""

    @property
    def id(self) -> str:
        """What it is called in a memory."""
        ...

    @property
    def words(self) -> str:
        """The problem, as text."""
        ...

    def asked(self, memory: str, failed: Sequence[tuple[str, str]]) -> Task:
        """The task with what is shown of a memory, and with attempts that failed and what was wrong."""
        ...

    def judged(self, states: Sequence[State]) -> Flow[list[Verdict]]:
        """One verdict for each finished attempt."""
        ...


def trial(task: Task, policy: Policy) -> Trial:
    """The task as a grid puzzle if it is one, else as it is. Its id is `metadata["id"]`, else its question's
    beginning."""
    puzzle = Puzzle.parse(task.question)
    if puzzle is not None:
        named = task.metadata.get("id") or f"puzzle {derive(0, puzzle.text):016x}"
        return GridTrial(str(named), puzzle.text, task, puzzle)
    words = " ".join(task.question.split())
    return PlainTrial(str(task.metadata.get("id") or words[:80]), task.question, task, policy)


@dataclass(frozen=True)
class GridTrial:
    """Programs, each run on every training pair and every test input; the pairs alone decide."""

    id: str
    words: str
    task: Task
    puzzle: Puzzle

    def asked(self, memory: str, failed: Sequence[tuple[str, str]]) -> Task:
        """The puzzle, what to write, the memory, what failed."""
        parts = [f"{self.words}\n\n{WRITE_A_PROGRAM}", memory]
        parts += [f"{ATTEMPT}\n\n{text}\n\n{FOUND}\n\n{told}" for text, told in failed]
        question = "\n\n".join(filter(None, (*parts, RECONSIDER if failed else "")))
        return replace(self.task, question=question, messages=())

    def judged(self, states: Sequence[State]) -> Flow[list[Verdict]]:
        """A call of the sandbox for each program and input."""
        codes = [program(state.text) for state in states]
        inputs = [*(given for given, _ in self.puzzle.train), *self.puzzle.test]
        calls: list[CallTool] = [call(code, given) for code in codes if code for given in inputs]
        replies = iter((yield calls) if calls else ())
        verdicts = []
        for code in codes:
            if not code:
                verdicts.append(Verdict(False, 0.0, None, NO_PROGRAM))
                continue
            found = [ran(code, given, next(replies)) for given in inputs]
            verdicts.append(self._verdict(code, found))
        return verdicts

    def _verdict(self, code: str, found: Sequence[Ran]) -> Verdict:
        pairs = self.puzzle.train
        told = [wrong(n, pair[1], each) for n, (pair, each) in enumerate(zip(pairs, found, strict=False), 1)]
        right = told.count("")
        tests = [each.grid for each in found[len(pairs) :]]
        answer = outputs(tests) if any(tests) else None
        feedback = "\n\n".join(filter(None, told))
        return Verdict(right == len(pairs), right / len(pairs), answer, feedback, code, "tests")


@dataclass(frozen=True)
class PlainTrial:
    """An answer, held to the checks of its task."""

    id: str
    words: str
    task: Task
    policy: Policy

    def asked(self, memory: str, failed: Sequence[tuple[str, str]]) -> Task:
        """The question after the memory, which so is a prefix that many share."""
        parts = [memory, self.words]
        parts += [f"{ATTEMPT}\n\n{text}\n\n{FOUND}\n\n{told}" for text, told in failed]
        if failed:
            parts.append(RECONSIDER)
        return replace(self.task, question="\n\n".join(filter(None, parts)))

    def judged(self, states: Sequence[State]) -> Flow[list[Verdict]]:
        """What the checks say; without any, an attempt is neither right nor wrong."""
        answers = [self.policy.answer(state) for state in states]
        if not self.task.checks:
            return [
                Verdict(None, None, answer, "", state.text)
                for answer, state in zip(answers, states, strict=True)
            ]
        checks.validate(self.task)
        found = yield from checks.findings(states, self.policy)
        verdicts = []
        for answer, state, rows in zip(answers, states, found, strict=True):
            if isinstance(rows, Failure):
                verdicts.append(Verdict(None, None, answer, rows.message, state.text))
                continue
            pairs = list(zip(self.task.checks, rows, strict=True))
            unmet = [_unmet(check.id, row) for check, row in pairs if not row.ok]
            share = 1 - len(unmet) / len(rows)
            kind = "gold" if any(check.id in _TELLING for check in self.task.checks) else "tests"
            verdicts.append(Verdict(not unmet, share, answer, "\n".join(unmet), state.text, kind))
        return verdicts


_TELLING = ("numeric", "equals", "choice")  # checks that hold the answer, which is not to be told


def _unmet(check: str, row: Finding) -> str:
    if check in _TELLING:
        return f"The answer is not right: {row.observed}."
    return f"Wanted: {row.required}. Found: {row.observed}."


# ---------------------------------------------------------------- prompts

WRITE_A_PROGRAM = """\
One rule turns each input into its output. Find it, and write it as a Python function

def transform(input_grid):

that takes a grid as a list of rows of integers and returns the output grid in the same form. Write the \
rule in a few sentences first, then the whole program in one ```python block."""

ATTEMPT = "# An attempt that failed"

FOUND = "What was found when it was tried:"

RECONSIDER = """\
Look again: either the rule is another one, or the code does not do what the rule says. Say which it is, \
and then write the whole solution anew."""

NO_PROGRAM = "There was no block of Python with a function transform in it."
