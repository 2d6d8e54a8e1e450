"""Who says whether an attempt is right, and how sure that is: y, the verifier's kind, and its confidence c.

| verify        | kind                     | y                                   | c                |
|---------------|--------------------------|-------------------------------------|------------------|
| `checks`      | `gold` or `executable`   | all checks of the task are met      | 1                |
| `consistency` | `consistency`            | it is the answer of most samples    | their share      |
| `judge`       | `judge`                  | the judge's value is at least ½     | max(v, 1 − v)    |
| `none`        | –                        | nobody says                         | 0                |

A task without checks has nobody to ask under `checks`.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...serving.base import Capability
from ...serving.flow import Failure, Flow
from ...serving.seeds import derive
from ..base import Policy, Result, State, Step, Task
from ..rewards.checks import findings, validate
from ..rewards.judge import Judge
from ..voting import poll

Verify = Literal["checks", "consistency", "judge", "none"]
GOLD = frozenset({"numeric", "equals", "choice"})
"""Checks that compare with an answer that is known."""


@dataclass(frozen=True)
class Verdict:
    """y, kind and c; y is None where nobody could say."""

    y: int | None = None
    kind: str = ""
    c: float = 0.0


@dataclass(slots=True)
class Verifier:
    """The verifier of one problem. Samples for `consistency` are drawn once, and serve every attempt."""

    verify: Verify
    votes: int
    policy: Policy
    task: Task
    seed: int
    _drawn: list[Hashable | None] = field(default_factory=list)

    @property
    def there(self) -> bool:
        """Whether there is anybody to ask."""
        return self.verify in ("consistency", "judge") or (self.verify == "checks" and bool(self.task.checks))

    def judge(self, result: Result) -> Flow[Verdict]:
        """What is said of an attempt. No answer is wrong, whoever is asked."""
        if not self.there:
            return Verdict()
        if self.verify == "checks":
            return (yield from self._by_checks(result))
        if result.answer is None:
            return Verdict(0, self.verify, 1.0)
        if self.verify == "consistency":
            return (yield from self._by_votes(result))
        [value] = yield from Judge().score([_finished(self.task, result)])
        if isinstance(value, Failure):
            return Verdict()
        return Verdict(int(value >= 0.5), "judge", max(value, 1 - value))

    def _by_checks(self, result: Result) -> Flow[Verdict]:
        validate(self.task)
        kind = "gold" if all(check.id in GOLD for check in self.task.checks) else "executable"
        [found] = yield from findings([_finished(self.task, result)], _Told(result.answer))
        if isinstance(found, Failure):
            return Verdict()
        return Verdict(int(all(each.ok for each in found)), kind, 1.0)

    def _by_votes(self, result: Result) -> Flow[Verdict]:
        if not self._drawn:
            root = State(self.task, lineage=derive(self.seed, "votes"))
            states = yield from self.policy.complete(root, self.votes, seed=self.seed)
            self._drawn = [self.policy.answer(s) if isinstance(s, State) else None for s in states]
        vote = poll(self._drawn)
        if vote.winner is None:
            return Verdict()
        share = vote.votes[vote.winner] / len(self._drawn)
        return Verdict(int(result.answer == vote.winner), "consistency", share)


def requires(verify: Verify) -> Mapping[str, frozenset[Capability]]:
    """What a verifier needs of engines."""
    return {"reward": frozenset({"generate"})} if verify == "judge" else {}


class _Told(Policy):
    """Reads every solution as the answer that its strategy gave."""

    def __init__(self, answer: Hashable | None) -> None:
        self._answer = answer

    def propose(self, states: Sequence[State], counts: Sequence[int], seeds: Sequence[int]) -> Any:
        """Draws nothing."""
        raise AssertionError("nothing is drawn from a finished attempt")

    def terminal(self, state: State) -> bool:
        """Always."""
        return True

    def answer(self, state: State) -> Hashable | None:
        """As it was given."""
        return self._answer


def _finished(task: Task, result: Result) -> State:
    return State(task).extend(Step(result.text, last=True))
