"""Self-consistency: draw solutions, take the most frequent answer, stop once the vote is decided.

No reward is needed, only answers that can be compared. How soon it stops is the rule's choice:

    fixed      after N
    exact      when the runner-up cannot catch up any more: never changes the answer
    beta       when P(θ > ½) ≥ `confidence`,  θ ~ Beta(v₁ + 1, v₂ + 1)
    share      when the leader has `agreement` of at least two votes; batches double: 2, 4, 8, …

Source: Self-Consistency Improves Chain of Thought Reasoning, arXiv 2203.11171; Let's Sample Step by Step
(adaptive consistency), arXiv 2305.11860; the doubling batches are those of its_hub 1.2.0.
"""

from dataclasses import dataclass
from typing import Any, Literal

from ..serving.errors import SearchEnded, UsageError
from ..serving.flow import Flow, Note
from .base import Policy, Result, Task
from .search import Search
from .voting import Poll, p_leader, poll


@dataclass(frozen=True, kw_only=True)
class SelfConsistency:
    """At most N solutions, drawn `batch` at a time (fixed: all at once). Cost: N generations at most.

    If not one of the N has an answer N more are drawn, `attempts` times in all.
    """

    policy: Policy
    n: int = 8
    rule: Literal["fixed", "exact", "beta", "share"] = "exact"
    batch: int = 4
    confidence: float = 0.95
    agreement: float = 0.75
    attempts: int = 2

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch < 1 or self.attempts < 1:
            raise UsageError(
                f"n, batch and attempts must be at least 1, got {self.n}, {self.batch}, {self.attempts}."
            )
        if self.rule not in ("fixed", "exact", "beta", "share"):
            raise UsageError(f"rule must be one of fixed, exact, beta, share, got {self.rule!r}.")
        for name, share in {"confidence": self.confidence, "agreement": self.agreement}.items():
            if not 0.5 < share <= 1.0:
                raise UsageError(f"{name} must be above 0.5 and at most 1, got {share}. Write {name}=0.9.")

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Draw until the vote is decided."""
        search = Search(task, self.policy, None, seed)
        stopped = None
        try:
            for _ in range(self.attempts):
                yield from self.draw(search)
                if self.votes(search).winner is not None:
                    break
            yield [Note("vote", self.told(search))]
        except SearchEnded as end:
            stopped = end
        votes = self.votes(search)
        backers = [n for n in search.terminals if self.policy.answer(n.state) == votes.winner]
        best = backers[0] if backers else (yield from search.finalise(search.root if stopped else None))
        return search.result(best, stopped=stopped, **self.told(search))

    def draw(self, search: Search) -> Flow[None]:
        """One batch after another, until the vote is decided or N are drawn."""
        drawn = 0
        while drawn < self.n and not self.decided(self.votes(search), self.n - drawn):
            n = min(self.next_batch(drawn), self.n - drawn)
            drawn += n
            yield from search.complete(search.root, n)

    def votes(self, search: Search) -> Poll:
        """The votes so far; ties go to the shorter solutions."""
        pool = search.terminals
        answers = [self.policy.answer(node.state) for node in pool]
        return poll(answers, lengths=[len(node.state.text) for node in pool])

    def told(self, search: Search) -> dict[str, Any]:
        """The votes as plain data, and how many answers share the first place."""
        votes = self.votes(search)
        counted = {str(answer): count for answer, count in votes.votes.items()}
        return {"votes": counted, "tied": len(votes.tied)}

    def next_batch(self, drawn: int) -> int:
        """How many to draw next."""
        if self.rule == "fixed":
            return self.n
        return max(2, drawn) if self.rule == "share" else self.batch

    def decided(self, votes: Poll, left: int) -> bool:
        """Whether drawing `left` more solutions is worth nothing to the rule."""
        v1, v2 = votes.lead
        if self.rule == "exact":
            return v1 > v2 + left
        if self.rule == "beta":
            return p_leader(int(v1), int(v2)) >= self.confidence
        total = sum(votes.votes.values())
        return self.rule == "share" and total >= 2 and v1 / total >= self.agreement
