"""How sure logistic regression on words is of each tool: a scorer for `retrieval.py`, trained on examples.

    p(tool | question) = 1 / (1 + exp(−(b_tool + Σ_term w_{tool,term} · tfidf(term))))

One regression for each tool, over the words and pairs of words of the stored questions; from 0.5 on a tool is
kept. Beside votes of neighbours it learns which words speak for a tool, so a question with two parts keeps
the tools of both; it needs more examples.

Source: Tool RAG of TinyAgent, arXiv 2409.00608, which trains DeBERTa-v3-small with the same loss, binary
cross-entropy over all tools. Deviates: words instead of a transformer; AdaGrad instead of AdamW.
"""

import math
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache

from ..serving.errors import UsageError
from .retrieval import Example, Index

THRESHOLD = 0.5  # as published

_EPOCHS = 12
_RATE = 2.0
_DECAY = 1e-5
_SETTLED = 0.01  # errors below it change nothing


class Logistic:
    """Trained when made, in the same way each time: about a second for 800 examples of 48 tools."""

    def __init__(self, examples: Sequence[Example]) -> None:
        if not any(example.tools for example in examples):
            raise UsageError("There is no example with a tool to learn from. Give examples, or a scorer.")
        self._tools = sorted(set().union(*(example.tools for example in examples)))
        self._index = Index([example.question for example in examples])
        shares = [sum(t in example.tools for example in examples) / len(examples) for t in self._tools]
        self._bias = [math.log((p + 0.01) / (1 - p + 0.01)) for p in shares]
        self._weights: dict[str, list[float]] = {}
        self._squares: dict[str, list[float]] = {}
        rows = [
            (self._index.vector(e.question), [float(t in e.tools) for t in self._tools]) for e in examples
        ]
        draw = random.Random(0)
        for _ in range(_EPOCHS):
            draw.shuffle(rows)
            for vector, labels in rows:
                self._learn(vector, labels)

    def __call__(self, question: str) -> Mapping[str, float]:
        """How sure it is of each tool; of none where no word of the question is known."""
        vector = self._index.vector(question)
        if not any(term in self._weights for term in vector):
            return {}
        return dict(zip(self._tools, self._sure(vector), strict=True))

    def _sure(self, vector: Mapping[str, float]) -> list[float]:
        z = list(self._bias)
        for term, x in vector.items():
            if (weights := self._weights.get(term)) is not None:
                z = [total + x * w for total, w in zip(z, weights, strict=True)]
        return [1 / (1 + math.exp(-max(-30.0, min(30.0, each)))) for each in z]

    def _learn(self, vector: Mapping[str, float], labels: Sequence[float]) -> None:
        sure = self._sure(vector)
        errors = [
            (k, p - y) for k, (p, y) in enumerate(zip(sure, labels, strict=True)) if abs(p - y) > _SETTLED
        ]
        for term, x in vector.items():
            weights = self._weights.setdefault(term, [0.0] * len(self._tools))
            squares = self._squares.setdefault(term, [1e-8] * len(self._tools))
            for k, error in errors:
                gradient = error * x + _DECAY * weights[k]
                squares[k] += gradient * gradient
                weights[k] -= _RATE * x * gradient / math.sqrt(squares[k])


@lru_cache(maxsize=8)
def trained(examples: tuple[Example, ...]) -> Logistic:
    """One for these examples, trained once."""
    return Logistic(examples)
