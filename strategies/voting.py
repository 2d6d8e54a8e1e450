"""Voting over canonical answers, and when a vote that is still going on is decided.

    majority      argmax_a Σ_i 1[a_i = a]
    weighted      argmax_a Σ_i v_i 1[a_i = a],   v_i = (r_i − min r) / (max r − min r), all 1 if equal
    Beta bound    P(θ > ½) ≥ c,  θ ~ Beta(v₁ + 1, v₂ + 1),  v₁ votes for the leader, v₂ for the runner-up
    exact bound   v₁ > v₂ + (votes still to come): never changes the answer

A solution without an answer has no vote. Ties go to the larger total reward, then to the shorter
solutions on average, then to the answer found first.

Source: arXiv 2502.07191 (the suite's weighted vote), 2203.11171 (self-consistency), 2305.11860 (Beta bound).
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Poll(NamedTuple):
    """The state of a vote. `tied` are the answers that share the first place, the winner first."""

    winner: Hashable | None
    votes: dict[Hashable, float]
    tied: tuple[Hashable, ...]

    @property
    def lead(self) -> tuple[float, float]:
        """Votes of the leader and of the runner-up."""
        first, second, *_ = [*sorted(self.votes.values(), reverse=True), 0.0, 0.0]
        return first, second


def poll(
    answers: Sequence[Hashable | None],
    weights: Sequence[float] | None = None,
    *,
    rewards: Sequence[float] | None = None,
    lengths: Sequence[float] | None = None,
) -> Poll:
    """Count the votes, by default one each; `rewards` and `lengths` decide ties only.

    >>> poll(["A", "A", "B"]).winner
    'A'
    >>> poll(["A", "A", "B"], min_max([0.2, 0.4, 0.9])).winner
    'B'
    """
    weights = weights if weights is not None else [1.0] * len(answers)
    votes: dict[Hashable, float] = {}
    backers: dict[Hashable, list[int]] = {}
    for i, (answer, weight) in enumerate(zip(answers, weights, strict=True)):
        if answer is not None:
            votes[answer] = votes.get(answer, 0.0) + weight
            backers.setdefault(answer, []).append(i)
    if not votes:
        return Poll(None, {}, ())
    top = max(votes.values())
    tied = [answer for answer, count in votes.items() if count >= top - 1e-12]

    def rank(answer: Hashable) -> tuple[float, float, int]:
        own = backers[answer]
        reward = sum(rewards[i] for i in own) if rewards is not None else 0.0
        length = sum(lengths[i] for i in own) / len(own) if lengths is not None else 0.0
        return -reward, length, own[0]

    tied.sort(key=rank)
    return Poll(tied[0], votes, tuple(tied))


def weighted_vote(answers: Sequence[Hashable | None], weights: Sequence[float]) -> Hashable | None:
    """The answer of largest total weight; None where there is no answer at all."""
    return poll(answers, weights).winner


def min_max(rewards: Sequence[float]) -> list[float]:
    """Rewards stretched to [0, 1]; all 1 where they are equal.

    >>> min_max([2.0, 4.0, 3.0]), min_max([5.0, 5.0])
    ([0.0, 1.0, 0.5], [1.0, 1.0])
    """
    low, high = min(rewards), max(rewards)
    return [(r - low) / (high - low) if high > low else 1.0 for r in rewards]


def p_leader(v1: int, v2: int) -> float:
    """P(θ > ½) for θ ~ Beta(v₁ + 1, v₂ + 1): that the leader would win in the long run.

    For whole numbers it is P(X ≤ v₁), X ~ Binomial(v₁ + v₂ + 1, ½).

    >>> p_leader(0, 0), p_leader(3, 0)
    (0.5, 0.9375)
    """
    n = v1 + v2 + 1
    ways = total = 1
    for k in range(v1):
        ways = (
            ways * (n - k) // (k + 1)
        )  # C(n, k + 1); anew each time it takes seconds for thousands of votes
        total += ways
    return total / (1 << n)
