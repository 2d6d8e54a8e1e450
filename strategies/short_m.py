"""short-m@k: start k solutions, stop all when the first m have ended, and let these m vote.

Of several chains of thought on one question the shorter are likelier right, and the shorter are also there
first. The k solutions are written side by side, a step at a time, the shortest always next; so the first m
that end are the m shortest, on any engine and whatever its timing, and the others are never written on.

    y* = argmax_a Σ_{i ∈ the m shortest of k} 1[a_i = a],   ties to the shorter

Source: Don't Overthink it. Preferring Shorter Thinking Chains, arXiv 2505.17813. Deviates: length is that of
the whole solution in tokens, not of its thinking part in seconds; one without an answer has no vote.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..serving.errors import SearchEnded, UsageError
from ..serving.flow import Flow, Note
from .base import Policy, Result, Task
from .search import Node, Search
from .voting import Poll, poll


@dataclass(frozen=True, kw_only=True)
class ShortM:
    """The `m` shortest of `k` solutions. Cost: of each of the k at most one step more than the m-th shortest
    has tokens, in requests of one step each; with a policy whose step is a whole solution nothing is saved.
    """

    policy: Policy
    k: int = 8
    m: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.m <= self.k:
            raise UsageError(f"m must be from 1 to k={self.k}, got {self.m}. Write m=3, k=8.")

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Write all until m have ended, then vote."""
        search = Search(task, self.policy, None, seed)
        stopped = None
        try:
            [chains] = yield from search.expand([search.root], [self.k])
            while longer := self.next_of(chains):
                grown = yield from search.expand(longer, [1] * len(longer))
                after = dict(zip(longer, grown, strict=True))
                chains = [end for chain in chains for end in after.get(chain, [chain])]
            given_up = [chain for chain in chains if not chain.terminal]
            yield from search.prune(given_up)
            yield [Note("vote", {"shortest": [node.id for node in self.ended(chains)]})]
        except SearchEnded as end:
            stopped = end
        shortest = self.ended(search.terminals)
        votes = self.votes(shortest)
        best = next((n for n in shortest if self.policy.answer(n.state) == votes.winner), None)
        if votes.winner is None:
            longest = max(search.open, key=lambda node: node.state.n_tokens, default=None)
            best = yield from search.finalise(longest if stopped else None)
        counted = {str(answer): count for answer, count in votes.votes.items()}
        pool = [search.candidate(node) for node in shortest]
        return search.result(best, stopped=stopped, pool=pool or None, votes=counted, tied=len(votes.tied))

    def next_of(self, chains: Sequence[Node]) -> list[Node]:
        """The chains to write on: the unfinished ones that may still be among the m shortest."""
        ended = self.ended(chains)
        bound = ended[-1].state.n_tokens if len(ended) == self.m else float("inf")
        able = [chain for chain in chains if not chain.terminal and chain.state.n_tokens < bound]
        least = min((chain.state.n_tokens for chain in able), default=0)
        return [chain for chain in able if chain.state.n_tokens <= least + _ABREAST]

    def ended(self, chains: Sequence[Node]) -> list[Node]:
        """The m shortest of those that have ended, the shortest first."""
        ended = [chain for chain in chains if chain.terminal]
        return sorted(ended, key=lambda node: node.state.n_tokens)[: self.m]

    def votes(self, shortest: Sequence[Node]) -> Poll:
        """Their votes; ties go to the shorter."""
        answers = [self.policy.answer(node.state) for node in shortest]
        return poll(answers, lengths=[node.state.n_tokens for node in shortest])


_ABREAST = 32  # tokens by which chains of one batch may differ: a step of ordinary length
