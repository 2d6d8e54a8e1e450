"""`branch`: take a question apart and solve the parts at the same time."""

import re
from dataclasses import dataclass, replace
from typing import Literal

from ...serving.flow import Failure, Flow, Fork, Generate, Prompt, Sampling
from ...serving.seeds import derive
from ...strategies.base import Strategy
from ..services import Services
from .base import Update, Visit, filled, said
from .solve import solved


@dataclass(frozen=True)
class BranchNode:
    """One search for each part, each at its own pace."""

    services: Services
    strategy: Strategy
    by: Literal["model", "lines"]
    most: int

    def visit(self, at: Visit) -> Flow[Update]:
        """Adds each part and its answer to the hints."""
        parts = self._lines(at.task.question)
        if self.by == "model":
            prompt = Prompt.user(filled(TAKE_APART, {**at.words, "most": str(self.most)}))
            [reply] = yield [Generate(prompt, sampling=Sampling(temperature=0, max_tokens=40 * self.most))]
            parts = self._lines(said(reply))
        tasks = [replace(at.task, question=part, checks=(), messages=()) for part in parts]
        flows = [solved(self.strategy, t, seed=derive(at.seed, i)) for i, t in enumerate(tasks)]
        [results] = yield [Fork(tuple(flows))]
        found = [
            f"{part} Answer: {result.answer}"
            for part, result in zip(parts, results, strict=True)
            if not isinstance(result, Failure) and result.answer is not None
        ]
        return {"hints": [*(at.state.get("hints") or []), *found]}

    def _lines(self, text: str) -> list[str]:
        lines = (re.sub(r"^\s*(?:[-*•]|\(?\d{1,2}[.)])\s+", "", line).strip() for line in text.splitlines())
        return list(dict.fromkeys(filter(None, lines)))[: self.most]


# ---------------------------------------------------------------- prompts

TAKE_APART = (
    "{question}\n\nDo not answer yet. Write at most {most} smaller questions that help to answer it, "
    "each complete in itself, one on each line."
)
