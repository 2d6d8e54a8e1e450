"""Rewriting an answer by its critique: the judge's conversation, gone on with.

    user: prompt and answer, judge it     assistant: the critique     user: rewrite it
    assistant: a reflection, then [[start]] the rewritten answer [[end]]

Or plainly, for models too small for this: one request with prompt, answer and critique, and the whole reply
is the rewritten answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...serving.flow import Failure, Flow, Generate, Message, Prompt, Sampling
from ..base import Step, Task
from ..conversation import told
from .judges import asked

START, END = "[[start]]", "[[end]]"


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rewritten answer as a step, and all that the refiner said."""

    step: Step
    said: str


@dataclass(frozen=True, slots=True)
class Draft:
    """An answer that is to be rewritten `n` times; `seeds` hold one for each attempt."""

    task: Task
    answer: str
    critique: str
    n: int
    seeds: Sequence[int]


@dataclass
class _Row:
    draft: Draft
    rewrites: list[Rewrite] = field(default_factory=list)
    failure: Failure | None = None

    @property
    def missing(self) -> int:
        return 0 if self.failure else self.draft.n - len(self.rewrites)


@dataclass(frozen=True, kw_only=True)
class Refiner:
    """Asks the role `model`. Rewrites without their marks are asked for again, `attempts` times in all.
    `reflect`: by the conversation with a reflection, else plainly."""

    attempts: int
    reflect: bool
    sampling: Sampling
    model: str

    def rewrite(self, drafts: Sequence[Draft]) -> Flow[list[list[Rewrite | Failure]]]:
        """`n` rewrites or failures for each draft: one batch for each attempt."""
        rows = [_Row(draft) for draft in drafts]
        for attempt in range(self.attempts):
            open = [row for row in rows if row.missing]
            if not open:
                break
            replies = yield [self._ask(row.draft, row.missing, attempt) for row in open]
            for row, reply in zip(open, replies, strict=True):
                self._take(row, reply)
        return [
            [*row.rewrites, *[row.failure or UNMARKED] * (row.draft.n - len(row.rewrites))] for row in rows
        ]

    def _ask(self, draft: Draft, n: int, attempt: int) -> Generate:
        form = messages if self.reflect else plainly
        prompt = Prompt(form(draft.task, draft.answer, draft.critique))
        return Generate(prompt, n, self.sampling, draft.seeds[attempt], model=self.model)

    def _take(self, row: _Row, reply: Any) -> None:
        if isinstance(reply, Failure):
            row.failure = reply
            return
        for sample in reply:
            answer = rewritten(sample.text) if self.reflect else sample.text.strip()
            if answer:
                cut = sample.finish == "length"
                n_tokens = sample.n_tokens or len(sample.ids)
                step = Step(answer, n_tokens=n_tokens, kind="version", last=True, cut=cut)
                row.rewrites.append(Rewrite(step, sample.text))


UNMARKED = Failure("engine", f"the refiner wrote no answer between {START} and {END}")


def rewritten(said: str) -> str:
    """The answer between the last marks, stripped; empty where there is none.

    >>> rewritten("I see [[start]].\\n[[start]]\\nAll of it.\\n[[end]]\\nDone.")
    'All of it.'
    """
    _, start, after = said.rpartition(START)
    body, end, _ = after.partition(END)
    return body.strip() if start and end else ""


def messages(task: Task, answer: str, critique: str) -> tuple[Message, ...]:
    """The refiner's conversation; it begins as the judge's does."""
    return (*asked(task, answer).messages, Message("assistant", critique), Message("user", REFINE))


def plainly(task: Task, answer: str, critique: str) -> tuple[Message, ...]:
    """The same in one request."""
    words = {"prompt": told(task), "output": answer.strip(), "critique": _DECISION.sub("", critique).strip()}
    text = re.sub(r"\{(prompt|output|critique)\}", lambda place: words[place[1]], PLAINLY)
    return (Message("user", text),)


_DECISION = re.compile(r"^.*final judge?ment.*$", re.IGNORECASE | re.MULTILINE)

# ---------------------------------------------------------------- prompts

REFINE = (
    "By your judgement, rewrite the output so that every constraint of the prompt is met, and change as "
    "little else as you can. First reflect on what has to change. Then write the rewritten output, all of it "
    f"and nothing else, between {START} and {END}."
)
PLAINLY = (
    "An earlier answer to the request below:\n{output}\n\nWhat is wrong with it:\n{critique}\n\n"
    "Answer the request anew, with that put right, and write nothing else. The request:\n{prompt}"
)
