"""What a judge that errs does to a search that stops at its first yes: every rewrite is bad here.

    e_n = P(more than half of n votes are wrong),   P(a bad one is accepted among m) = 1 - (1 - e_n e_k)^m

with k confirming votes (e_0 = 1 for none).
"""

from math import comb
from random import Random
from typing import Any

from abduce.serving.flow import Completion, Generate, Note
from abduce.strategies.base import Task
from abduce.strategies.policy import policy
from abduce.strategies.spar import SPaR


def error(n: int, p: float) -> float:
    """Chance that a majority of n votes is wrong, each right with chance p; n is odd."""
    return sum(comb(n, k) * (1 - p) ** k * p ** (n - k) for k in range(n // 2 + 1, n + 1)) if n else 1.0


def expected(p: float, m: int, votes: int = 5, confirm_votes: int = 0) -> float:
    """Chance that a bad rewrite is accepted."""
    return 1 - (1 - error(votes, p) * error(confirm_votes, p)) ** m


def false_accepts(p: float, runs: int, **parameters: Any) -> float:
    """Share of searches below a failing draft that accept a rewrite, all of them bad."""
    found = 0
    for run in range(runs):
        spar = SPaR(policy=policy("plain"), **parameters)
        flow, rng, count = spar.solve(Task("x"), seed=run), Random(run), 0
        try:
            batch = next(flow)
            while True:
                replies: list[Any] = []
                for request in batch:
                    if isinstance(request, Note):
                        replies.append(None)
                        continue
                    assert isinstance(request, Generate)
                    texts, count = _said(request, rng, p, count)
                    replies.append(tuple(Completion(text, n_tokens=1) for text in texts))
                batch = flow.send(replies)
        except StopIteration as end:
            found += end.value.diagnostics["stop"] == "accepted"
    return found / runs


def _said(request: Generate, rng: Random, p: float, count: int) -> tuple[list[str], int]:
    """A draft that all votes reject; rewrites that differ; votes that are right with chance p."""
    said = request.prompt.messages
    if len(said) == 3:
        return [f"[[start]]{count + i}[[end]]" for i in range(request.n)], count + request.n
    if "Final Judgement" not in said[0].content:
        return ["draft"] * request.n, count
    sure = 'Output: "draft"' in said[0].content
    votes = ["No" if sure or rng.random() < p else "Yes" for _ in range(request.n)]
    return [f"Final Judgement: {vote}" for vote in votes], count
