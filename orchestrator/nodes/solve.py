"""`solve` and `revise`: a search, from the question or from what was wrong with the last solution."""

from collections.abc import Generator
from dataclasses import dataclass, replace

from ...serving.errors import SearchEnded, UsageError
from ...serving.flow import Flow
from ...strategies.base import Result, Strategy, Task
from ..services import Services
from .base import Update, Visit, filled, outcome


def solved(strategy: Strategy, task: Task, *, seed: int) -> Flow[Result]:
    """What a strategy comes to; a result also where it has nothing to show for its search."""
    flow = strategy.solve(task, seed=seed)
    if not isinstance(flow, Generator):
        raise UsageError(
            f"solve(task, seed=…) of {type(strategy).__name__} must be a flow: a generator that yields "
            "requests and returns a Result. One that asks nothing begins with: yield from ()"
        )
    try:
        result = yield from flow
    except SearchEnded as end:
        return Result(None, "", complete=False, diagnostics={"stopped": str(end)})
    if not isinstance(result, Result):
        raise UsageError(f"{type(strategy).__name__} returned {result!r:.80}, and must return a Result.")
    return result


@dataclass(frozen=True)
class SolveNode:
    """Search for an answer."""

    services: Services
    strategy: Strategy

    def visit(self, at: Visit) -> Flow[Update]:
        """Sets the answer and all that belongs to it."""
        return outcome(at, (yield from solved(self.strategy, at.informed, seed=at.seed)))


@dataclass(frozen=True)
class ReviseNode:
    """Search again, knowing the last solution and what was found wrong with it."""

    services: Services
    strategy: Strategy

    def visit(self, at: Visit) -> Flow[Update]:
        """Sets the answer and all that belongs to it."""
        task = at.informed
        if at.state.get("text"):
            words = at.words | {"question": task.question}
            words["why"] = words["why"] or "It may be wrong."
            task = replace(task, question=filled(REVISE, words))
        return outcome(at, (yield from solved(self.strategy, task, seed=at.seed)))


# ---------------------------------------------------------------- prompts

REVISE = (
    "{question}\n\nAn earlier solution:\n{text}\n\nWhat was found: {why}\n\n"
    "Write the whole solution anew, with what is wrong put right."
)
