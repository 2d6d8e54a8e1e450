r"""Verifiable demands on an answer: nothing is judged, everything is checked.

| id           | kwargs                       | met when                                              |
|--------------|------------------------------|-------------------------------------------------------|
| `numeric`    | value, tolerance = 0         | the answer is that number, give or take               |
| `equals`     | value                        | the answer has the same canonical form                |
| `choice`     | value                        | the answer is that choice, by letter or words         |
| `regex`      | pattern                      | the pattern is found in the whole text (`patterns`)   |
| `unit_tests` | tests, entry_point?, prefix? | the code in the text passes the tests (tool `python`) |
| 25 of IFEval | see `ifeval.INSTRUCTIONS`    | the text does what the instruction asks               |

`unit_tests`: the code is the last fenced block that defines `entry_point` (without one: anything), else the
last, else all of the text; `prefix` stands before it unless it defines that itself; then `tests` runs, and
`check(entry_point)` if `tests` defines it (HumanEval).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...serving.errors import UnknownName, UsageError
from ...serving.flow import CallTool, Failure, Flow, ToolResult
from ...serving.seeds import derive
from ..answers import canon, extract, number
from ..base import Check, Policy, Score, State, Task, unscored
from . import ifeval, patterns
from .ifeval import Finding

_WANTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "numeric": (("value",), ("tolerance",)),
    "equals": (("value",), ()),
    "choice": (("value",), ()),
    "regex": (("pattern",), ()),
    "unit_tests": (("tests",), ("entry_point", "prefix")),
}
"""Id → arguments it needs, arguments it may have."""

CHECKS: tuple[str, ...] = (*_WANTS, *ifeval.INSTRUCTIONS)
"""All ids."""


@dataclass(frozen=True, kw_only=True)
class Checks:
    """The share of the task's checks that a finished solution meets, or with `all_or_nothing` 1 only for all
    of them. A partial solution gets 1: no step of it has been doubted yet. `loose` reads IFEval's checks
    loosely. A task without checks is a UsageError."""

    policy: Policy
    all_or_nothing: bool = False
    loose: bool = False

    def score(self, states: Sequence[State]) -> Flow[list[Score]]:
        """One score for each state; asks for the tool `python`, in one batch, if there are unit tests."""
        for task in {id(state.task): state.task for state in states}.values():
            validate(task)
        finished = [state for state in states if self.policy.terminal(state)]
        found = yield from findings(finished, self.policy, loose=self.loose)
        shares = dict(zip(finished, map(self._share, found), strict=True))
        return [shares.get(state, 1.0) for state in states]

    def _share(self, found: list[Finding] | Failure) -> Score:
        if isinstance(found, Failure):
            return found
        met = sum(finding.ok for finding in found)
        return float(met == len(found)) if self.all_or_nothing else met / len(found)


def findings(
    states: Sequence[State], policy: Policy, *, loose: bool = False
) -> Flow[list[list[Finding] | Failure]]:
    """What the checks of its task have to say of each finished solution, check by check; a Failure where unit
    tests could not be run."""
    calls = [(state, check) for state in states for check in state.task.checks if _is_code(check)]
    batch = [CallTool("python", {"code": program(check, state.text)}) for state, check in calls]
    replies = (yield batch) if batch else ()
    tested = {
        (state, id(check)): _tested(reply, check, state.text)
        for (state, check), reply in zip(calls, replies, strict=True)
    }
    found: list[list[Finding] | Failure] = []
    for state in states:
        answer = policy.answer(state)
        rows = [
            tested[state, id(check)]
            if _is_code(check)
            else finding(check, state.task, answer, state.text, loose=loose)
            for check in state.task.checks
        ]
        failed = next((row for row in rows if isinstance(row, Failure)), None)
        found.append(failed or [row for row in rows if isinstance(row, Finding)])
    return found


def passes(task: Task, answer: Any, text: str) -> bool:
    """Whether a finished solution meets all checks of the task. Runs unit tests itself and waits for them."""
    validate(task)
    for check in task.checks:
        if _is_code(check):
            from ...tools.python import run_python

            found = _passed(run_python(program(check, text)), check, text)
            if found is not True:
                return False
        elif not finding(check, task, answer, text).ok:
            return False
    return True


def finding(check: Check, task: Task, answer: Any, text: str, *, loose: bool = False) -> Finding:
    """What one check, unit tests aside, has to say of a valid task's solution; `answer` is canonical."""
    if check.id in ifeval.INSTRUCTIONS:
        return ifeval.check(check.id, check.kwargs, text, loose=loose)
    if check.id == "regex":
        pattern = check.kwargs["pattern"]
        met = patterns.search(pattern, text)
        return Finding(met, f"something like {pattern!r}", "it" if met else "nothing like it")
    value, given = str(check.kwargs["value"]), "" if answer is None else str(answer)
    if check.id == "numeric":
        met = _near(given, value, str(check.kwargs.get("tolerance", 0)))
    elif check.id == "choice":
        met = answer is not None and _letter(given, task) == _letter(value, task)
    else:
        met = answer is not None and canon(given) == canon(value)
    return Finding(met, f"the answer {value}", given or "no answer")


def validate(task: Task) -> None:
    """Raises UsageError unless the task has checks, and all of them are known and complete."""
    if not task.checks:
        raise UsageError(
            "The task has no checks, so nothing can be checked. Give it some, such as "
            "Task(question, checks=(Check('numeric', {'value': 56}),)), or take another reward."
        )
    for check in task.checks:
        if check.id in ifeval.INSTRUCTIONS:
            ifeval.instructed(check.id, check.kwargs)
        elif check.id in _WANTS:
            _validate_own(check)
        else:
            raise UnknownName("check", check.id, CHECKS)


def _validate_own(check: Check) -> None:
    needed, optional = _WANTS[check.id]
    takes = ", ".join((*needed, *optional))
    for name in needed:
        if name not in check.kwargs:
            raise UsageError(f"The check {check.id!r} lacks {name!r}. It takes: {takes}.")
    for name, value in check.kwargs.items():
        if name not in (*needed, *optional):
            raise UsageError(f"The check {check.id!r} does not take {name!r}. It takes: {takes}.")
        if check.id == "numeric" and number(str(value)) is None:
            raise UsageError(f"{name!r} of the check 'numeric' must be a number, got {value!r}.")
        if check.id in ("regex", "unit_tests") and not (isinstance(value, str) and value.strip()):
            raise UsageError(f"{name!r} of the check {check.id!r} must be a text, got {value!r}.")
    if check.id == "regex":
        patterns.compiled(check.kwargs["pattern"])
    if check.id == "unit_tests" and not check.kwargs.get("entry_point", "f").isidentifier():
        raise UsageError(f"'entry_point' must be a function's name, got {check.kwargs['entry_point']!r}.")


def _near(given: str, value: str, tolerance: str) -> bool:
    a, b, t = number(given), number(value), number(tolerance)
    return a is not None and b is not None and t is not None and abs(a - b) <= t


def _letter(text: str, task: Task) -> str:
    return extract("choice", text, task.choices) or canon(text)


# ---------------------------------------------------------------- unit tests

_FENCE = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def program(check: Check, text: str) -> str:
    """The solution's code, the tests, and a last line that only a run through all of them prints."""
    tests, entry, prefix = (check.kwargs.get(key, "") for key in ("tests", "entry_point", "prefix"))
    any_name = r"\w+"
    defines = re.compile(rf"^(?:async\s+)?(?:def|class)\s+{entry or any_name}\b", re.MULTILINE)
    fenced = _FENCE.findall(text)
    code: str = ([block for block in fenced if defines.search(block)] or fenced or [text])[-1]
    if prefix and not defines.search(code):
        code = prefix + code
    call = f"check({entry})\n" if entry and re.search(r"^def check\(", tests, re.MULTILINE) else ""
    return f"{code}\n\n{tests}\n\n{call}print({_mark(check, text)!r})\n"


def _passed(reply: ToolResult | Failure, check: Check, text: str) -> bool | Failure:
    """True or false if the program ran, a Failure if it did not."""
    from ...tools.python import ENDED

    if isinstance(reply, Failure):
        return unscored(reply)
    last = reply.text.rstrip().rpartition("\n")[2]
    if reply.ok or last.startswith(ENDED):
        return reply.ok and last == _mark(check, text)
    return Failure("reward", f"unit tests could not be run (do the tools include python?): {reply.text}")


def _tested(reply: ToolResult | Failure, check: Check, text: str) -> Finding | Failure:
    from ...tools.python import ENDED

    if isinstance(reply, Failure):
        return unscored(reply)
    passed = _passed(reply, check, text)
    if isinstance(passed, Failure):
        return passed
    told = [line for line in reply.text.splitlines() if line.strip() and not line.startswith(ENDED)]
    return Finding(passed, "code that passes its tests", told[-1][:200] if told else "nothing printed")


def _mark(check: Check, text: str) -> str:
    """A word no solution can know beforehand, so that leaving early does not pass."""
    return f"passed {derive(0, str(check.kwargs.get('tests')), text):x}"


def _is_code(check: Check) -> bool:
    return check.id == "unit_tests"
