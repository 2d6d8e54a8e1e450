"""Agreement: how many of the finished solutions scored together give the same answer.

    r(s) = |{s' : a(s') = a(s)}| / |{s' : s' has an answer}|

Deterministic, and free, but a score of the batch: it changes with what it is scored with, and a search keeps
the first score of each distinct text and counts each distinct text once. So it suits best-of-n with worked
solutions; for one-line answers vote instead (`self_consistency`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...serving.flow import Failure, Flow
from ..base import Policy, Score, State


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Scores finished solutions by how many answer alike; one without an answer gets 0, and a partial
    solution, which has none yet, a Failure."""

    policy: Policy

    def score(self, states: Sequence[State]) -> Flow[list[Score]]:
        """One score for each state; asks nothing."""
        yield from ()
        finished = [self.policy.terminal(state) for state in states]
        answers = [
            self.policy.answer(state) if done else None for state, done in zip(states, finished, strict=True)
        ]
        votes = Counter(answer for answer in answers if answer is not None)
        total = votes.total()
        unknown = Failure("reward", "agreement scores finished solutions only: use it with best_of_n")
        return [
            unknown if not done else votes[answer] / total if answer is not None else 0.0
            for answer, done in zip(answers, finished, strict=True)
        ]
