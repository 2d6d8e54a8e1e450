"""Which of many tools a question needs: a short list is cheaper, and confuses a small model less.

Similarity of the question to descriptions misses what is needed on the way: to write to somebody, their
address must be looked up. So the tools of earlier, similar questions vote:

    p(tool) = Σ_j s_j · 1[tool ∈ T_j] / Σ_j s_j,   s_j = max(0, cos(question, question_j))²

over the 20 nearest, and those above 0.25 are kept, with all tools that they require. Nothing found means all.

Source: Tool RAG of TinyAgent, arXiv 2409.00608. Deviates: neighbours vote over words (TF-IDF) where the paper
trains a DeBERTa classifier; `logistic.py`, or any other scorer, can take its place.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from ..serving.errors import UsageError
from ..serving.flow import ToolSpec

Scorer: TypeAlias = Callable[[str], Mapping[str, float]]
"""From a question to how sure it is of each tool, from 0 to 1."""

NEIGHBOURS = 20
THRESHOLD = 0.25  # at 0.35 the lesser part of a question that has two is often lost

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Example:
    """A question, the tools it needed, and if it is to be shown to the planner, its plan."""

    question: str
    tools: frozenset[str]
    plan: str = ""


class Retriever:
    """Chooses among `tools` by stored `examples`, or by a `scorer` of one's own."""

    def __init__(
        self,
        tools: Sequence[ToolSpec],
        examples: Sequence[Example] = (),
        *,
        scorer: Scorer | None = None,
        threshold: float = THRESHOLD,
    ) -> None:
        if not 0 < threshold <= 1:
            raise UsageError(f"threshold must be above 0 and at most 1, got {threshold}.")
        self._tools = {tool.name: tool for tool in tools}
        self._examples = tuple(examples)
        self._index = Index([example.question for example in examples])
        self._scorer = scorer or self._votes
        self._threshold = threshold

    def choose(self, question: str, *, widened: int = 0) -> list[ToolSpec]:
        """The tools for a question, in their own order. `widened` once halves the threshold, twice takes all:
        for a planner that found no suitable tool."""
        if widened > 1:
            return list(self._tools.values())
        sure = {name: p for name, p in self._scorer(question).items() if name in self._tools}
        least = self._threshold / 2**widened if max(sure.values(), default=0.0) > self._threshold else -1.0
        chosen = closure({name for name, p in sure.items() if p > least}, self._tools)
        return [tool for name, tool in self._tools.items() if least < 0 or name in chosen]

    def shown(self, question: str, tools: Iterable[ToolSpec], k: int = 6) -> list[Example]:
        """The nearest examples whose plan needs these tools only, nearest first; if too few, of any tools."""
        names = {tool.name for tool in tools}
        near = [self._examples[i] for i, _ in self._index.nearest(question, len(self._examples))]
        planned = [example for example in near if example.plan]
        fitting = [example for example in planned if example.tools <= names]
        return (fitting if len(fitting) >= k else planned)[:k]

    def _votes(self, question: str) -> Mapping[str, float]:
        weights = [(i, max(0.0, s) ** 2) for i, s in self._index.nearest(question, NEIGHBOURS)]
        total = sum(weight for _, weight in weights)
        votes: dict[str, float] = {}
        for i, weight in weights:
            for name in self._examples[i].tools:
                votes[name] = votes.get(name, 0.0) + weight
        return {name: vote / total for name, vote in votes.items()} if total > 0 else {}


def closure(names: Iterable[str], tools: Mapping[str, ToolSpec]) -> set[str]:
    """These tools with all that they require, however far."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in tools and name not in found:
            found.add(name)
            waiting += tools[name].requires
    return found


class Index:
    """Texts by the cosine of their TF-IDF vectors: words, and pairs of words that follow each other."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(_terms(text)) for text in texts]
        in_texts = Counter(term for count in counts for term in count)
        self._n = len(texts)
        self._idf = {term: math.log((1 + self._n) / (1 + n)) + 1 for term, n in in_texts.items()}
        self._postings: dict[str, list[tuple[int, float]]] = {}
        for i, count in enumerate(counts):
            for term, weight in self._weighed(count).items():
                self._postings.setdefault(term, []).append((i, weight))

    def nearest(self, text: str, k: int) -> list[tuple[int, float]]:
        """The `k` most similar texts with their cosine, those that share nothing left out; the first of
        equals first."""
        scores: dict[int, float] = {}
        for term, weight in self.vector(text).items():
            for i, other in self._postings.get(term, ()):
                scores[i] = scores.get(i, 0.0) + weight * other
        return sorted(scores.items(), key=lambda row: (-row[1], row[0]))[:k]

    def vector(self, text: str) -> dict[str, float]:
        """The weights of a text's terms, of length 1."""
        return self._weighed(Counter(_terms(text)))

    def _weighed(self, count: Counter[str]) -> dict[str, float]:
        raw = {term: n * self._idf.get(term, 1 + math.log(1 + self._n)) for term, n in count.items()}
        length = math.sqrt(sum(weight * weight for weight in raw.values())) or 1.0
        return {term: weight / length for term, weight in raw.items()}


def _terms(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return [*words, *(f"{a} {b}" for a, b in pairwise(words))]
