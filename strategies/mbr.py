"""Minimum Bayes risk: the candidate that all evidence agrees with most.

    y* = argmax_{y ∈ Y} 1/(|E| − 1) Σ_{e ∈ E, e ≠ y} U(y, e),   Y the candidates, E ⊇ Y the evidence

With U = 1[same answer] it is majority voting. Duplicates stay in: they carry mass.

Source: Minimum Bayes-risk decoding, Kumar and Byrne, NAACL 2004; chrF, Popović, WMT 2015.
"""

import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence


def expected(own: Sequence[Sequence[float]], foreign: Sequence[Sequence[float]] = ()) -> list[float]:
    """The expected utility of each candidate. `own[i][j]` is U(yᵢ, yⱼ), the diagonal is not read;
    `foreign[i]` are those against evidence that is no candidate.

    >>> same = [[float(a == b) for b in "77375"] for a in "77375"]
    >>> expected(same)
    [0.5, 0.5, 0.0, 0.5, 0.0]
    """
    totals = []
    for i, row in enumerate(own):
        beside = sum(foreign[i]) if foreign else 0.0
        n = len(row) - 1 + (len(foreign[i]) if foreign else 0)
        totals.append((sum(u for j, u in enumerate(row) if j != i) + beside) / n if n else 0.0)
    return totals


def same(answer: Hashable | None, evidence: Hashable | None) -> float:
    """1 for equal answers; no answer agrees with nothing."""
    return float(answer is not None and answer == evidence)


def chrf(text: str, evidence: str, *, n: int = 6, beta: float = 2.0) -> float:
    """Character n-gram F-score, mean over orders 1 to n; needs no words, so it serves any script.

    >>> chrf("the cat", "the cat"), chrf("abc", "xyz"), round(chrf("the cat sat", "the cat sits"), 2)
    (1.0, 0.0, 0.61)
    """
    said, known = _plain(text), _plain(evidence)
    scores = []
    for order in range(1, n + 1):
        ours, theirs = _grams(said, order), _grams(known, order)
        if not ours and not theirs:
            break
        both = (ours & theirs).total()
        if not both:
            scores.append(0.0)
            continue
        precision, recall = both / ours.total(), both / theirs.total()
        scores.append((1 + beta**2) * precision * recall / (beta**2 * precision + recall))
    return sum(scores) / len(scores) if scores else float(said == known)


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).split())


def _grams(text: str, order: int) -> Counter[str]:
    return Counter(text[i : i + order] for i in range(len(text) - order + 1))
