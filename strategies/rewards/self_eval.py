"""The model's own doubt: the probability that it calls a partial solution correct.

    r(s) = e^{l_y} / (e^{l_y} + e^{l_n}),    l_y = log p(" Yes" | question, s),  l_n = log p(" No" | …)

Both likelihoods are exact, so the same text gets the same score, and a score costs two short calls that
share a prompt. Source: P(True) of arXiv 2207.05221. Small models judge poorly (arXiv 2502.07191; the embedded
model tells right from wrong products no better than chance): measure before you believe a search.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...serving.base import Capability
from ...serving.errors import UsageError
from ...serving.flow import Failure, Flow, LogLikelihood, LogProb, Prompt
from ..base import Score, State, unscored
from ..conversation import told

QUESTION = (
    "Question:\n{question}\n\nSolution so far:\n{solution}\n\n"
    "Is everything in this solution correct so far? Answer Yes or No."
)


@dataclass(frozen=True, kw_only=True)
class SelfEval:
    """Scores by P(Yes). `question` is the judging prompt, with `{question}` and `{solution}` in it; `model`
    is the role that judges, played by the policy's model where no other has it."""

    question: str = QUESTION
    model: str = "reward"

    def __post_init__(self) -> None:
        for place in ("{question}", "{solution}"):
            if place not in self.question:
                raise UsageError(
                    f"The judging prompt of self_eval lacks {place}. Write it where that text belongs."
                )

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """What the judging engine must be able to do."""
        return {self.model: frozenset({"logprob"})}

    def score(self, states: Sequence[State]) -> Flow[list[Score]]:
        """P(Yes) for each state, all asked in one batch."""
        if not states:
            return []
        prompts = [Prompt.user(self._asked(state)) for state in states]
        batch = [
            LogProb(Prompt(prompt.messages, "Answer:"), word, model=self.model)
            for prompt in prompts
            for word in (" Yes", " No")
        ]
        replies = yield batch
        return [_p_yes(yes, no) for yes, no in zip(replies[::2], replies[1::2], strict=True)]

    def _asked(self, state: State) -> str:
        before, _, after = self.question.partition("{solution}")
        asked = told(state.task)
        return before.replace("{question}", asked) + state.text.strip() + after.replace("{question}", asked)


def _p_yes(yes: LogLikelihood | Failure, no: LogLikelihood | Failure) -> Score:
    for reply in (yes, no):
        if isinstance(reply, Failure):
            return unscored(reply)
    assert isinstance(yes, LogLikelihood) and isinstance(no, LogLikelihood)
    odds = yes.total - no.total
    if math.isnan(odds):  # also −∞ − −∞: the model can say neither
        return Failure("reward", "the model gives neither Yes nor No a probability")
    return 1.0 / (1.0 + math.exp(-odds)) if odds > -700.0 else 0.0
