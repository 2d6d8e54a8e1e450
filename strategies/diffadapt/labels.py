"""From rollouts to labels: how often a question is solved, how unsure the model is, what each way would cost.

a(x) = mean correct,  e(x) = mean of the samples' mean token entropies,  both of the normal way
label   normal if a ≥ α and e ≤ β,  hard if a < γ,  else easy        γ ≤ α: the first two never meet
oracle  the cheapest of the ways that succeed most often
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import fmean
from typing import Any

from ...serving.errors import UsageError

BINS = 10
LAMBDA = 0.2  # of the utility
_DIP = 0.05  # both ends of a U lie so much, as a share, above its lowest bin


@dataclass(frozen=True)
class Rollout:
    """One solution of a question: whether it is right, its tokens, its mean token entropy in nats."""

    correct: bool
    n_tokens: int
    entropy: float | None = None


@dataclass(frozen=True)
class Question:
    """What is known of a training question: features, and solutions by mode. `level` is its given difficulty,
    from 1 up, 0 where none is given."""

    features: tuple[float, ...]
    runs: Mapping[str, Sequence[Rollout]] = field(default_factory=dict)
    level: int = 0

    def accuracy(self, mode: str = "normal") -> float:
        """Share of the mode's solutions that are right."""
        return fmean(run.correct for run in self.runs[mode])

    def tokens(self, mode: str = "normal") -> float:
        """Mean tokens of the mode's solutions."""
        return fmean(run.n_tokens for run in self.runs[mode])

    @property
    def entropy(self) -> float:
        """Mean over the normal solutions whose entropy is known."""
        known = [run.entropy for run in self.runs["normal"] if run.entropy is not None]
        return fmean(known) if known else 0.0


@dataclass(frozen=True)
class Thresholds:
    """α, β and γ of the label rule. Raises UsageError unless γ ≤ α."""

    alpha: float = 0.6
    beta: float = 0.5
    gamma: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= self.alpha <= 1:
            raise UsageError(
                f"gamma must not exceed alpha, both in [0, 1], got {self.gamma} and {self.alpha}."
            )

    def label(self, accuracy: float, entropy: float) -> str:
        """The class of a question.

        >>> [Thresholds(0.6, 1.0, 0.3).label(a, e) for a, e in [(0.6, 1.0), (0.3, 1.0), (0.29, 0)]]
        ['normal', 'easy', 'hard']
        """
        if accuracy >= self.alpha and entropy <= self.beta:
            return "normal"
        return "hard" if accuracy < self.gamma else "easy"

    def of(self, question: Question) -> str:
        """The class of a question, from its rollouts."""
        return self.label(question.accuracy(), question.entropy)


def plurality(answers: Sequence[Any]) -> list[bool]:
    """Pseudo-correctness without a known answer: whether each is its question's most frequent answer, the
    first of equals. No answer is never right.

    >>> plurality(["4", "5", "4", None])
    [True, False, True, False]
    """
    known = [answer for answer in answers if answer is not None]
    winner = max(dict.fromkeys(known), key=known.count, default=None)
    return [answer is not None and answer == winner for answer in answers]


def oracle(question: Question, modes: Sequence[str]) -> str:
    """The cheapest mode among those with the highest success rate; the first of equals."""
    best = max(question.accuracy(mode) for mode in modes)
    return min((m for m in modes if question.accuracy(m) == best), key=question.tokens)


def utility(questions: Sequence[Question], chosen: Sequence[str], most_tokens: int) -> float:
    """U(π) = mean of accuracy − λ · tokens / Max under the modes chosen."""
    rows = zip(questions, chosen, strict=True)
    return fmean(q.accuracy(mode) - LAMBDA * q.tokens(mode) / most_tokens for q, mode in rows)


# ---------------------------------------------------------------- thresholds


def bins(questions: Sequence[Question]) -> list[dict[str, float]]:
    """Mean accuracy and entropy by difficulty, the easiest first: by given level, else in ten bins by a."""
    if any(question.level for question in questions):
        groups = [
            [q for q in questions if q.level == level] for level in sorted({q.level for q in questions})
        ]
    else:
        by = sorted(questions, key=lambda q: -q.accuracy())
        n = min(BINS, len(by))
        groups = [by[i * len(by) // n : (i + 1) * len(by) // n] for i in range(n)]
    return [
        {
            "n": len(group),
            "accuracy": fmean(q.accuracy() for q in group),
            "entropy": fmean(q.entropy for q in group),
        }
        for group in groups
    ]


def u_shaped(table: Sequence[Mapping[str, float]]) -> bool:
    """Whether entropy is lowest in the middle. If not, the rule for easy questions has no ground."""
    entropies = [row["entropy"] for row in table]
    lowest = min(range(len(entropies)), key=entropies.__getitem__)
    ends = min(entropies[0], entropies[-1])
    return 0 < lowest < len(entropies) - 1 and ends >= (1 + _DIP) * entropies[lowest]


def default_thresholds(questions: Sequence[Question]) -> Thresholds:
    """β is the middle between the smallest and the largest entropy of a bin; α and γ are fixed."""
    entropies = [row["entropy"] for row in bins(questions)]
    return Thresholds(beta=(min(entropies) + max(entropies)) / 2)


def best_thresholds(
    train: Sequence[Question], validation: Sequence[Question], worth: Callable[[list[str]], float]
) -> Thresholds:
    """Those of a grid whose labels, taken as choices on the validation questions, are worth most; the default
    where none is better. β runs over quantiles of the training entropies."""
    by_entropy = sorted(question.entropy for question in train)
    betas = [by_entropy[int(share * (len(by_entropy) - 1))] for share in (0.3, 0.4, 0.5, 0.6, 0.7)]
    grid = product((0.5, 0.6, 0.7, 0.8, 0.9), betas, (0.1, 0.2, 0.3, 0.4))
    tried = [default_thresholds(train), *(Thresholds(*row) for row in grid)]
    return max(tried, key=lambda each: worth([each.of(question) for question in validation]))
