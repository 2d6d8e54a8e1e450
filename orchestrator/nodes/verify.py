"""`verify`: five ways to look whether an answer is right.

Each sets `verified` and, where something is wrong, `why`. Nothing that could be verified leaves it None.
"""

import re
from dataclasses import dataclass

from ...serving.flow import CallTool, Failure, Flow, Generate, Prompt, Sampling, ToolResult
from ...serving.seeds import derive
from ...strategies.answers import canon
from ...strategies.base import Policy, Reward, State, scores_of
from ..services import Services
from .base import Update, Visit, filled, said


def found(good: bool | None, why: str = "", *, by: str = "", sure: float = 1.0) -> Update:
    """The state after a verification."""
    return {"verified": good, "why": "" if good else why, "verifier": by, "confidence": sure}


@dataclass(frozen=True)
class VerifyByReward:
    """Right if the reward gives at least `at_least`; also for the task's own checks, as a reward."""

    services: Services
    reward: Reward
    at_least: float
    by: str = "reward"

    def visit(self, at: Visit) -> Flow[Update]:
        """One score."""
        [score] = yield from scores_of(self.reward, [at.solution])
        if isinstance(score, Failure):
            return found(None, score.message)
        less = f"It was given {score:.2f}, less than {self.at_least:g}."
        return found(score >= self.at_least, less, by=self.by, sure=min(max(score, 0.0), 1.0))


@dataclass(frozen=True)
class VerifyByCalculator:
    """Right if every calculation in the text is."""

    services: Services

    def visit(self, at: Visit) -> Flow[Update]:
        """One call of the calculator for each calculation."""
        told = equations(at.state.get("text", ""))
        if not told:
            return found(None, "There is no calculation to check.")
        results = yield [CallTool("calculator", {"expression": left}) for left, _ in told]
        for (left, right), result in zip(told, results, strict=True):
            if isinstance(result, ToolResult) and result.ok and canon(result.text) != canon(right):
                return found(False, f"{left} is {result.text}, not {right}.", by="calculator")
        checked = any(isinstance(result, ToolResult) and result.ok for result in results)
        return found(True if checked else None, "No calculation could be checked.", by="calculator")


def equations(text: str) -> list[tuple[str, str]]:
    """Calculations as they are told: left and right side.

    >>> equations("First 6 x 7 = 42, then 42 + 1,000 = 1,042. So x = 3.")
    [('6 * 7', '42'), ('42 + 1000', '1042')]
    """
    found = []
    for match in _EQUATION.finditer(text):
        left, right = (match[side].replace(",", "") for side in ("left", "right"))
        left = re.sub(r"[x×·]", "*", left).replace("÷", "/").replace("−", "-")
        found.append((" ".join(left.split()), right))
    return found


_N = r"\d[\d,]{0,30}(?:\.\d{1,30})?"
_LEFT = rf"(?<![\w.])(?P<left>{_N}(?: ?[-+*/x×·÷−] ?{_N}){{1,20}})"
_RIGHT = r"(?P<right>-?\d(?:[\d,]{0,30}\d)?(?:\.\d{1,30})?)"
_EQUATION = re.compile(rf"{_LEFT} ?= ?{_RIGHT}")


@dataclass(frozen=True)
class VerifyByPython:
    """Right if a program that the model writes for the question, without seeing the answer, prints it."""

    services: Services

    def visit(self, at: Visit) -> Flow[Update]:
        """One generation, one call of the tool."""
        prompt = Prompt.user(filled(PROGRAM, at.words))
        [reply] = yield [Generate(prompt, sampling=Sampling(temperature=0, max_tokens=400))]
        code = _CODE.search(said(reply))
        if code is None:
            return found(None, "No program was written.")
        [ran] = yield [CallTool("python", {"code": code[1]})]
        if not isinstance(ran, ToolResult) or not ran.ok:
            return found(None, "The program did not run.")
        printed = ran.text.strip().rpartition("\n")[2]
        wrong = f"A program for it gives {printed[:80]}."
        return found(canon(printed) == canon(at.answer), wrong, by="python")


_CODE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class VerifyByAgreement:
    """Right if a second solution, drawn independently, has the same answer."""

    services: Services
    policy: Policy

    def visit(self, at: Visit) -> Flow[Update]:
        """One more solution."""
        [other] = yield from self.policy.complete(State(at.informed), 1, seed=derive(at.seed, "second"))
        if isinstance(other, Failure):
            return found(None, other.message)
        answer = self.policy.answer(other)
        if answer is None:
            return found(None, "A second solution has no answer.")
        wrong = f"A second solution answers {answer}."
        return found(canon(str(answer)) == canon(at.answer), wrong, by="agreement")


# ---------------------------------------------------------------- prompts

PROGRAM = (
    "Write a Python program that computes the answer to this question and prints the answer only. "
    "Write one block of code and nothing else.\n\nQuestion:\n{question}"
)
