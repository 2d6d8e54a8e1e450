"""`recall` and `remember`: what earlier runs found out."""

from dataclasses import dataclass

from ...serving.flow import Flow, Recall, Remember
from ..services import Services
from .base import Update, Visit


@dataclass(frozen=True)
class RecallNode:
    """Look the question up in the memory."""

    services: Services
    k: int

    def visit(self, at: Visit) -> Flow[Update]:
        """Adds what was found to the hints."""
        [found] = yield [Recall(at.task.question, self.k)]
        entries = list(found) if isinstance(found, tuple) else []
        return {"hints": [*(at.state.get("hints") or []), *entries]}


@dataclass(frozen=True)
class RememberNode:
    """Store question and answer."""

    services: Services
    always: bool

    def visit(self, at: Visit) -> Flow[Update]:
        """Stores nothing without an answer, or if it was not verified."""
        if at.answer and (self.always or at.state.get("verified")):
            yield [Remember(f"{at.task.question} Answer: {at.answer}")]
        return {}
