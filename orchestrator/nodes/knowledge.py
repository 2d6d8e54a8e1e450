"""`recall` and `remember`: what earlier runs found out."""

import re
from dataclasses import dataclass
from hashlib import sha256

from ...memory.gate import GATE, THRESHOLDS, Gate, remember
from ...memory.untrusted import quoted
from ...serving.entries import Entry, Evidence
from ...serving.flow import Flow, Note, Recall
from ..services import Services
from .base import Update, Visit


@dataclass(frozen=True)
class RecallNode:
    """Look the question up in the memory."""

    services: Services
    k: int

    def visit(self, at: Visit) -> Flow[Update]:
        """Adds what was found to the notes."""
        [found] = yield [Recall(at.task.question, self.k)]
        entries = [match.entry for match in found] if isinstance(found, tuple) else []
        return {
            "notes": [*(at.state.get("notes") or []), *(quoted(entry.text) for entry in entries)],
            "recalled": [*(at.state.get("recalled") or []), *(entry.name for entry in entries)],
        }


@dataclass(frozen=True)
class RememberNode:
    """Store question and answer through the write gate, and whether what was recalled has helped."""

    services: Services
    always: bool

    def visit(self, at: Visit) -> Flow[Update]:
        """Stores nothing without an answer, or if it was not verified. What was recalled is given credit only
        where the answer was judged."""
        verified = at.state.get("verified")
        entries = (answered(at),) if at.answer and (self.always or verified) else ()
        judged = verified is not None
        credit = {name: bool(verified) for name in at.state.get("recalled") or ()} if judged else {}
        gate = Gate({**THRESHOLDS, "": 0.0}) if self.always else GATE
        verdicts = yield from remember(entries, gate=gate, credit=credit, reason="answer of a run")
        for each in verdicts:
            yield [Note("remembered", {"entry": each.name, "what": each.action, "why": each.reason})]
        return {}


def answered(at: Visit) -> Entry:
    """Question and answer as an entry: of one question there is one, the last."""
    question = at.task.question
    words = re.findall(r"\w+", question.casefold())[:6]
    name = "-".join([*words, sha256(question.encode("utf-8", "replace")).hexdigest()[:8]])[-80:]
    verifier = at.state.get("verifier", "") if at.state.get("verified") else ""
    sure = at.state.get("confidence", 1.0) if at.state.get("verified") else 0.0
    read = tuple(at.state.get("recalled") or ())
    evidence = Evidence(at.state.get("run", ""), question[:200], verifier, sure, read)
    data = {"question": question, "answer": at.answer}
    return Entry(name, f"{question} Answer: {at.answer}", "answer", data, evidence=(evidence,))
