"""Entropy of a model's next token, H = − Σ pᵥ ln pᵥ in nats: exact, or from below by the best log-probs.

The mean over the tokens of a solution tells how sure the model was while it wrote.
"""

import math
from collections.abc import Iterable, Sequence


def exact(logits: Sequence[float]) -> float:
    """Entropy of softmax(logits).

    >>> round(exact([2.0] * 8) / math.log(8), 9), exact([0.0, -1e9, -1e9])
    (1.0, 0.0)
    """
    best = max(logits)
    weights = [math.exp(x - best) for x in logits]
    total = math.fsum(weights)
    return max(0.0, math.log(total) - math.fsum(w * math.log(w) for w in weights if w) / total)


def of_the_best(top_logprobs: Sequence[float]) -> float:
    """A lower bound from the best log-probs: all other tokens count as one event.

    >>> round(of_the_best([math.log(0.5), math.log(0.25)]) / math.log(2), 9)
    1.5
    """
    shares = [math.exp(x) for x in top_logprobs]
    rest = max(0.0, 1.0 - math.fsum(shares))
    return max(0.0, -math.fsum(p * math.log(p) for p in (*shares, rest) if p))


def mean(tops: Iterable[Sequence[float]]) -> float | None:
    """Mean of the lower bounds over the tokens of a text; None where nothing is known of any."""
    known = [of_the_best(top) for top in tops if top]
    return math.fsum(known) / len(known) if known else None
