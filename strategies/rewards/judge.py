"""A language model as judge: it reasons freely, then gives one verdict line, and only that line is read.

    VERDICT: 7

The line must be the reply's last, and hold nothing else. (Reading words anywhere in the text, as
arXiv 2502.07191's code does, lets a long critique that mentions "impossible" move the score.)
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...serving.base import Capability
from ...serving.errors import UsageError
from ...serving.flow import Completion, Failure, Flow, Generate, Message, Prompt, Sampling
from ...serving.seeds import derive
from ..base import Score, State, unscored
from ..conversation import told

INSTRUCTIONS = (
    "Judge a solution, finished or not, to the question below. Check whether every step follows and is "
    "relevant, and whether any answer given is correct.\n\nQuestion:\n{question}\n\nSolution:\n{solution}\n\n"
    "Explain briefly. Then write one last line, exactly of the form 'VERDICT: n', n from 0 (wrong) to "
    "{scale} (entirely correct)."
)
_AGAIN = "Your reply had no verdict. Reply with one line only, exactly of the form 'VERDICT: n'."
_SAMPLING = Sampling(temperature=0.7, max_tokens=512)  # temperature: the suite's, spec of arXiv 2502.07191
_VERDICT = re.compile(r"\**VERDICT:\**\s*(\d{1,4}(?:\.\d{1,4})?)\s*\**")


def verdict(text: str, scale: int) -> float | None:
    """The verdict of a judge's reply, in [0, 1]; None unless its last line is one and in range.

    >>> verdict("Step 2 is off.\\nVERDICT: 7", 10), verdict("VERDICT: 7\\nor so", 10)
    (0.7, None)
    """
    found = _VERDICT.fullmatch(text.rstrip().rpartition("\n")[2].strip())
    value = float(found[1]) / scale if found else 2.0
    return value if value <= 1.0 else None


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Mean verdict of `n_eval` samples, over `scale`. Samples without a verdict are asked for again once;
    a state none of whose samples has one gets a Failure with the last reply's last line.

    The samples' seeds derive from question and solution: the same text gets the same score.
    """

    n_eval: int = 3
    scale: int = 10
    instructions: str = INSTRUCTIONS
    sampling: Sampling = _SAMPLING
    model: str = "reward"

    def __post_init__(self) -> None:
        if self.n_eval < 1 or self.scale < 1:
            raise UsageError(f"n_eval and scale must be at least 1, got {self.n_eval} and {self.scale}.")
        for place in ("{question}", "{solution}"):
            if place not in self.instructions:
                raise UsageError(
                    f"The instructions of the judge lack {place}. Write it where that text belongs."
                )

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """What the judging engine must be able to do."""
        return {self.model: frozenset({"generate"})}

    def score(self, states: Sequence[State]) -> Flow[list[Score]]:
        """Mean verdict of each state: one batch, and one more for the samples without a verdict."""
        if not states:
            return []
        replies = yield [self._asked(state) for state in states]
        given = [self._verdicts(reply) for reply in replies]
        dumb = [i for i, reply in enumerate(replies) if _spoke(reply) and len(given[i]) < self.n_eval]
        again = (
            (yield [self._asked_again(states[i], replies[i], len(given[i])) for i in dumb]) if dumb else ()
        )
        last = list(replies)
        for i, reply in zip(dumb, again, strict=True):
            given[i] += self._verdicts(reply)
            last[i] = reply
        return [
            sum(verdicts) / len(verdicts) if verdicts else _no_verdict(reply)
            for verdicts, reply in zip(given, last, strict=True)
        ]

    def _asked(self, state: State) -> Generate:
        return Generate(
            self._prompt(state), self.n_eval, self.sampling, self._seed(state, "judge"), model=self.model
        )

    def _asked_again(self, state: State, reply: Sequence[Completion], have: int) -> Generate:
        """Go on from the first reply without a verdict, for as many samples as lack one."""
        said = next(sample.content for sample in reply if verdict(sample.content, self.scale) is None)
        turns = (Message("assistant", said), Message("user", _AGAIN))
        prompt = Prompt((*self._prompt(state).messages, *turns))
        n = self.n_eval - have
        return Generate(prompt, n, self.sampling, self._seed(state, "again"), model=self.model)

    def _prompt(self, state: State) -> Prompt:
        values = {"question": told(state.task), "solution": state.text.strip(), "scale": str(self.scale)}
        text = re.sub(r"\{(question|solution|scale)\}", lambda place: values[place[1]], self.instructions)
        return Prompt.user(text)

    def _seed(self, state: State, use: str) -> int:
        return derive(0, use, told(state.task), state.text)

    def _verdicts(self, reply: Any) -> list[float]:
        if not _spoke(reply):
            return []
        given = [verdict(sample.content, self.scale) for sample in reply]
        return [value for value in given if value is not None]


def _spoke(reply: Any) -> bool:
    return not isinstance(reply, Failure) and bool(reply)


def _no_verdict(reply: Any) -> Failure:
    if isinstance(reply, Failure):
        return unscored(reply)
    line = reply[-1].content.rstrip().rpartition("\n")[2][:100] if reply else ""
    return Failure("reward", f"the judge gave no line 'VERDICT: n', asked twice; its last line: {line!r}")
