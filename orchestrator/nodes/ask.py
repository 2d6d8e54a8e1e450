"""`ask`: a question to the human."""

from dataclasses import dataclass
from typing import Literal

from ...serving.flow import Ask, Flow
from ..services import Services
from .base import Update, Visit, filled
from .verify import found


@dataclass(frozen=True)
class AskNode:
    """Ask, and use what is said as a hint, as the verdict on the answer, or as the answer."""

    services: Services
    question: str
    choices: tuple[str, ...]
    use: Literal["hint", "verdict", "answer"]

    def visit(self, at: Visit) -> Flow[Update]:
        """Sets `said`; nothing else changes if the human could not be asked."""
        choices = self.choices or (("yes", "no") if self.use == "verdict" else ())
        [reply] = yield [Ask(filled(self.question, at.words), choices)]
        if not isinstance(reply, str):
            return {"said": None}
        if self.use == "verdict":
            good = reply.strip().casefold() in _YES
            told = found(good, f"The human said: {reply}", by="user")
            return {"said": reply, **told}
        if self.use == "answer":
            return {"said": reply, "answer": reply, "text": reply, "complete": True}
        return {"said": reply, "hints": [*(at.state.get("hints") or []), reply]}


_YES = {"yes", "y", "true", "right", "correct", "ok"}
