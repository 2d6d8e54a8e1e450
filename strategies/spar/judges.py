"""Who says whether an answer follows its prompt, and what is wrong with it.

| judge    | valid when                 | value V                                 | critique              |
|----------|----------------------------|-----------------------------------------|-----------------------|
| `votes`  | V > gate                   | n₁ / (n₁ + n₀) of a model's yes and no  | a majority sample     |
| `checks` | every check is met         | share met                               | a line for each unmet |
| `hybrid` | both: checks first         | ½ · share below 1, else ½ + ½ · V_votes | of who found fault    |
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ...serving.flow import Completion, Failure, Flow, Generate, Prompt, Sampling
from ...serving.seeds import derive
from ..base import Policy, State, Task, unscored
from ..conversation import told
from ..rewards.checks import findings, validate
from ..rewards.ifeval import Finding


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of one answer. `yes` and `no` count the votes, where there were any; `unmet` are the
    ids of unmet checks."""

    valid: bool
    value: float
    critique: str
    yes: int = 0
    no: int = 0
    unmet: tuple[str, ...] = ()


Judged: TypeAlias = Judgement | Failure


class Judge(Protocol):
    """Judges finished answers; the same answer and seed get the same judgement."""

    def judge(self, states: Sequence[State], *, seed: int) -> Flow[list[Judged]]:
        """One judgement for each state, in order; a Failure where none could be had."""
        ...


def label(text: str) -> int:
    """What a judging sample says: 1 for yes, 0 for no, -1 for neither. Only the first whole word Yes or No
    after the last marker counts.

    >>> label("Final Judgement: Not met, so No"), label("Yes. Final Judgement"), label("Final judgment: Yes")
    (0, -1, 1)
    """
    *_, after = _MARKER.split(text)
    found = _WORD.search(after) if _MARKER.search(text) else None
    return -1 if found is None else int(found[1].casefold() == "yes")


_MARKER = re.compile(r"final judge?ment", re.IGNORECASE)
_WORD = re.compile(r"\b(Yes|No|YES|NO)\b")


@dataclass(frozen=True, kw_only=True)
class Votes:
    """`n` samples of the role `model`, drawn again while they are tied, `rounds` times in all."""

    n: int
    rounds: int
    gate: float
    sampling: Sampling
    model: str

    def judge(self, states: Sequence[State], *, seed: int) -> Flow[list[Judged]]:
        """All answers in one batch, and those that are tied in another."""
        judged: list[Judged] = [TIED] * len(states)
        waiting = list(range(len(states)))
        for r in range(self.rounds):
            if not waiting:
                break
            replies = yield [self._ask(states[i], derive(seed, "votes", r)) for i in waiting]
            for i, reply in zip(waiting, replies, strict=True):
                judged[i] = unscored(reply) if isinstance(reply, Failure) else self._count(reply)
            waiting = [i for i in waiting if judged[i] is TIED]
        return judged

    def _ask(self, state: State, seed: int) -> Generate:
        here = derive(seed, told(state.task), state.text)
        return Generate(asked(state.task, state.text), self.n, self.sampling, here, model=self.model)

    def _count(self, samples: Sequence[Completion]) -> Judged:
        labels = [label(sample.content) for sample in samples]
        yes, no = labels.count(1), labels.count(0)
        if yes == no:
            return TIED
        critique = samples[labels.index(int(yes > no))].content.strip()
        value = yes / (yes + no)
        return Judgement(value > self.gate, value, critique, yes, no)


TIED = Failure("reward", "the judge's votes were tied every time they were asked for")


@dataclass(frozen=True, kw_only=True)
class ByChecks:
    """The checks of the task, without any model. A task without checks is a UsageError."""

    policy: Policy

    def judge(self, states: Sequence[State], *, seed: int) -> Flow[list[Judged]]:
        """Asks for the tool `python` only if there are unit tests."""
        for state in states:
            validate(state.task)
        rows = yield from findings(states, self.policy)
        pairs = zip(states, rows, strict=True)
        return [row if isinstance(row, Failure) else _checked(state.task, row) for state, row in pairs]


def _checked(task: Task, found: Sequence[Finding]) -> Judgement:
    unmet = [(check.id, each) for check, each in zip(task.checks, found, strict=True) if not each.ok]
    if not unmet:
        return Judgement(True, 1.0, "Every constraint is met.\nFinal Judgement: Yes")
    lines = [f"- not met ({id}): {each.critique}" for id, each in unmet]
    critique = "\n".join([*lines, "Final Judgement: No"])
    value = 1 - len(unmet) / len(found)
    return Judgement(False, value, critique, unmet=tuple(id for id, _ in unmet))


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """The checks first; whom they find no fault with, the votes judge too."""

    checks: ByChecks
    votes: Votes

    def judge(self, states: Sequence[State], *, seed: int) -> Flow[list[Judged]]:
        """Below ½ for whatever breaks a check, above for the rest."""
        judged = yield from self.checks.judge(states, seed=seed)
        passed = [i for i, each in enumerate(judged) if isinstance(each, Judgement) and each.valid]
        votes = yield from self.votes.judge([states[i] for i in passed], seed=seed)
        halved = [each if isinstance(each, Failure) else _lower(each) for each in judged]
        for i, vote in zip(passed, votes, strict=True):
            halved[i] = vote if isinstance(vote, Failure) else _upper(vote)
        return halved


def _lower(found: Judgement) -> Judged:
    return Judgement(False, 0.5 * found.value, found.critique, unmet=found.unmet)


def _upper(vote: Judgement) -> Judged:
    return Judgement(vote.valid, 0.5 + 0.5 * vote.value, vote.critique, vote.yes, vote.no)


# ---------------------------------------------------------------- prompt


def asked(task: Task, answer: str) -> Prompt:
    """What a judge is asked about an answer; the refiner's conversation begins with it, word by word."""
    words = {"prompt": told(task), "output": answer.strip()}
    return Prompt.user(re.sub(r"\{(prompt|output)\}", lambda place: words[place[1]], JUDGE))


JUDGE = (
    "You are an expert in following instructions. Judge whether the output below does exactly what the "
    "prompt asks, every constraint in it included, and list the constraints that are not met.\n\n"
    'Prompt: "{prompt}"\n\nOutput: "{output}"\n\n'
    "Reply in two parts. First a step-by-step verification of the constraints, one by one. Then a line that "
    'begins with "Final Judgement:" and says only Yes, if all of them are met, or No.'
)
