"""What length and markers say of a solution among its siblings, as the weight of its vote.

    z = (x − mean) / max(sd, 10⁻⁶)   within the pool of one question,  x = ln tokens, or a rate of markers
    s = b_l z_l + b_h z_h + b_t z_t − b_d z_d                          large: long, doubtful, wordless
    w = exp(−s);  0 for a solution that was cut short, unless all were

Source: Think Deep, Think Fast, arXiv 2504.14047, for the signal (correct chains of reasoning models are
shorter and hedge less). Deviates: the rule and its weights are our own, since the paper's could not be read.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil, exp, log
from statistics import fmean, pstdev
from typing import NamedTuple

from .markers import Lexicon
from .voting import Poll, poll


class Features(NamedTuple):
    """Of one solution. `length` is ln of its tokens, the others are markers per 100 words."""

    length: float
    hedging: float = 0.0
    thinking: float = 0.0
    discourse: float = 0.0
    truncated: bool = False


@dataclass(frozen=True)
class Coefficients:
    """b: how much a standard deviation of each feature tells against a solution; `discourse` for it."""

    length: float = 0.5
    hedging: float = 0.25
    thinking: float = 0.25
    discourse: float = 0.1


DEFAULT = Coefficients()


def features(text: str, n_tokens: int, *, truncated: bool, lexicon: Lexicon) -> Features:
    """Those of a text."""
    marks = lexicon.marks(text)
    return Features(log(max(1, n_tokens)), marks.hedging, marks.thinking, marks.discourse, truncated)


def standardised(values: Sequence[float]) -> list[float]:
    """z-scores; all 0 where the values are equal.

    >>> standardised([1.0, 3.0]), standardised([2.0, 2.0])
    ([-1.0, 1.0], [0.0, 0.0])
    """
    mean, sd = fmean(values), max(pstdev(values), 1e-6)
    return [0.0 if abs(x - mean) < 1e-9 else (x - mean) / sd for x in values]


def z_scores(pool: Sequence[Features]) -> list[tuple[float, float, float, float]]:
    """The four features of each solution, standardised."""
    columns = [standardised([row[i] for row in pool]) for i in range(4)]
    return list(zip(*columns, strict=True))


def suspicion(pool: Sequence[Features], b: Coefficients) -> list[float]:
    """s of each solution."""
    signed = (b.length, b.hedging, b.thinking, -b.discourse)
    return [sum(c * z for c, z in zip(signed, row, strict=True)) for row in z_scores(pool)]


def vote_weights(pool: Sequence[Features], b: Coefficients) -> list[float]:
    """w of each solution."""
    return _whole_first(pool, [exp(-s) for s in suspicion(pool, b)])


def reweighted(
    answers: Sequence[Hashable | None], pool: Sequence[Features], b: Coefficients, use: str, keep: float
) -> Poll:
    """The vote under one of the uses of `ReweightedVote`, "calibrated" aside; ties in the answers' order."""
    s = suspicion(pool, b)
    if use == "ties":
        return poll(answers, lengths=s)
    if use == "weights":
        return poll(answers, vote_weights(pool, b))
    n = 1 if use == "best" else ceil(keep * len(pool))
    able = [i for i, answer in enumerate(answers) if answer is not None]
    kept = set(sorted(able, key=lambda i: (pool[i].truncated, s[i]))[:n])
    return poll([answer if i in kept else None for i, answer in enumerate(answers)], lengths=s)


def _whole_first(pool: Sequence[Features], weights: Sequence[float]) -> list[float]:
    if all(row.truncated for row in pool):
        return list(weights)
    return [0.0 if row.truncated else w for row, w in zip(pool, weights, strict=True)]
