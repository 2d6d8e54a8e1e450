"""The node store, and the three flows every search is made of: `expand`, `score`, `complete`.

    search = Search(task, policy, reward, seed)
    children = yield from search.expand([search.root], [4])     # propose, record, score, trace
    return search.result(best)

Accounting is exact: every proposal drawn, every token, and one reward pass for each *distinct* text
scored (asking again is free). Source of the interface: A*-Decoding, arXiv 2505.13672, and Rollout
Roulette, arXiv 2502.01618, put on one footing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..serving.errors import RewardUnavailable, SearchEnded
from ..serving.flow import Failure, Flow, Note
from ..serving.seeds import derive
from .base import Candidate, Policy, Proposal, Result, Reward, Score, State, Task

if TYPE_CHECKING:
    import networkx


@dataclass(slots=True, eq=False)
class Node:
    """A state in the store. `score` is None until scored; `g` is the cost of the path to it."""

    id: int
    parent: "Node | None"
    state: State
    terminal: bool
    score: float | None = None
    g: float = 0.0
    draws: int = 0  # proposals drawn from it so far
    pruned: bool = False

    @property
    def depth(self) -> int:
        """Steps from the root."""
        return self.state.depth

    def path(self) -> "list[Node]":
        """From the root to this node."""
        found: list[Node] = []
        node: Node | None = self
        while node is not None:
            found.append(node)
            node = node.parent
        return found[::-1]


@dataclass(slots=True)
class Counts:
    """What a search did. `tokens` are generated tokens of all proposals."""

    expansions: int = 0
    proposals: int = 0
    batches: int = 0
    tokens: int = 0
    reward_passes: int = 0
    duplicates: int = 0  # proposals dropped as exact duplicates of a sibling
    failed_proposals: int = 0
    failed_scores: int = 0
    clipped_scores: int = 0  # finite, outside [0, 1]


@dataclass(slots=True)
class Search:
    """All nodes of one search. Node 0 is the root; its score is 1: no step has been doubted yet."""

    task: Task
    policy: Policy
    reward: Reward | None
    seed: int
    nodes: list[Node] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    failures: list[str] = field(default_factory=list)  # distinct reasons, in order of appearance
    _scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        root = State(self.task, lineage=derive(self.seed, "root"))
        self.nodes.append(Node(0, None, root, self.policy.terminal(root), score=1.0))

    @property
    def root(self) -> Node:
        """The empty solution."""
        return self.nodes[0]

    @property
    def terminals(self) -> list[Node]:
        """All finished solutions, in order of discovery."""
        return [node for node in self.nodes if node.terminal]

    # ------------------------------------------------------------ flows

    def expand(
        self, nodes: Sequence[Node], counts: Sequence[int], *, unique: bool = False, score: bool = True
    ) -> Flow[list[list[Node]]]:
        """Draw `counts[i]` children of `nodes[i]`, all in one batch, and score them in another.

        With `unique`, a child that repeats a sibling word for word is dropped. Failed draws are
        counted and left out, so a node may get fewer children than asked for, or none.
        """
        seeds = [derive(self.seed, node.state.lineage, node.draws) for node in nodes]
        drawn = yield from self.policy.propose([node.state for node in nodes], counts, seeds)
        children = [self._adopt(node, steps, unique) for node, steps in zip(nodes, drawn, strict=True)]
        self.counts.expansions += len(nodes)
        self.counts.batches += 1
        yield from self._settle([child for siblings in children for child in siblings], score)
        return children

    def force(self, nodes: Sequence[Node], *, score: bool = True) -> Flow[list[Node]]:
        """Give each node one last step with an answer. The children are terminal."""
        seeds = [derive(self.seed, node.state.lineage, node.draws) for node in nodes]
        forced = yield from self.policy.force([node.state for node in nodes], seeds)
        children = [child for n, step in zip(nodes, forced, strict=True) for child in self._adopt(n, [step])]
        for child in children:
            child.terminal = True
        yield from self._settle(children, score)
        return children

    def complete(self, node: Node, n: int, *, score: bool = True) -> Flow[list[Node]]:
        """`n` independent finished solutions from `node`, each running at its own pace."""
        ended = yield from self.policy.complete(node.state, n, seed=self.seed, first_draw=node.draws)
        node.draws += n
        fresh: list[Node] = []
        leaves: list[Node] = []
        for outcome in ended:
            if isinstance(outcome, Failure):
                self._fail(outcome)
                continue
            path = self._adopt_path(node, outcome)
            fresh += path
            leaves.append(path[-1])
        yield from self._settle(fresh, score=False)
        if score:
            yield from self.score(leaves)
        return leaves

    def score(self, nodes: Iterable[Node]) -> Flow[None]:
        """Score the nodes that have no score yet: one reward pass for each distinct text.

        A score outside [0, 1] is clipped and counted; a state that cannot be scored gets 0, the reason
        goes into the diagnostics. Raises RewardUnavailable if nothing could be scored at all.
        """
        if self.reward is None:
            return
        waiting = [node for node in nodes if node.score is None]
        new = {node.state.text: node.state for node in waiting if node.state.text not in self._scores}
        if new:
            scores = yield from self.reward.score(list(new.values()))
            for text, score in zip(new, scores, strict=True):
                self._scores[text] = self._checked(score)
            self.counts.reward_passes += len(new)
        for node in waiting:
            node.score = self._scores[node.state.text]
        if waiting:
            scored = {str(node.id): node.score for node in waiting}
            yield [Note("scores", {"scores": scored}, reward_passes=len(new))]
        if self.counts.failed_scores and self.counts.failed_scores == self.counts.reward_passes:
            raise RewardUnavailable(f"no state could be scored: {self.failures[-1]}")

    # ------------------------------------------------------------ results

    def candidate(self, node: Node, weight: float | None = None) -> Candidate:
        """A node as part of a result's evidence."""
        return Candidate(self.policy.answer(node.state), node.state.text, node.score, weight)

    def result(
        self,
        best: Node | None,
        *,
        stopped: SearchEnded | str | None = None,
        pool: Sequence[Candidate] | None = None,
        **diagnostics: Any,
    ) -> Result:
        """The run's result: `best` is the chosen node, `pool` defaults to all finished solutions."""
        facts: dict[str, Any] = {**asdict(self.counts), "nodes": len(self.nodes), **diagnostics}
        if best is not None:
            facts["path"] = [node.id for node in best.path()]
            if not best.terminal and stopped is None:
                stopped = "no finished solution was found"
        elif stopped is None:
            stopped = self.failures[-1] if self.failures else "no solution was found"
        if stopped is not None:
            facts["stopped"] = str(stopped)
        if self.failures:
            facts["failures"] = list(self.failures)
        return Result(
            answer=None if best is None else self.policy.answer(best.state),
            text="" if best is None else best.state.text,
            candidates=tuple(map(self.candidate, self.terminals) if pool is None else pool),
            complete=stopped is None,
            diagnostics=facts,
        )

    def to_networkx(self) -> "networkx.DiGraph[int]":
        """The tree as a directed graph: node attributes as in `to_json`, edges parent → child."""
        import networkx

        graph: networkx.DiGraph[int] = networkx.DiGraph()
        for row in self.to_json()["nodes"]:
            graph.add_node(row["id"], **row)
            if row["parent"] is not None:
                graph.add_edge(row["parent"], row["id"])
        return graph

    def to_json(self) -> dict[str, Any]:
        """The tree as plain data: `{"task": str, "nodes": [...], "counts": {...}}`."""
        return {
            "task": self.task.question,
            "nodes": [_row(node) for node in self.nodes],
            "counts": asdict(self.counts),
        }

    # ------------------------------------------------------------ bookkeeping

    def _adopt(self, parent: Node, proposals: Sequence[Proposal], unique: bool = False) -> list[Node]:
        seen: set[str] = set()
        children = []
        for proposal in proposals:
            draw = parent.draws
            parent.draws += 1
            self.counts.proposals += 1
            if isinstance(proposal, Failure):
                self._fail(proposal)
                continue
            self.counts.tokens += proposal.n_tokens
            if unique and proposal.text in seen:
                self.counts.duplicates += 1
                continue
            seen.add(proposal.text)
            children.append(self._insert(parent, parent.state.extend(proposal, draw)))
        return children

    def _adopt_path(self, root: Node, leaf: State) -> list[Node]:
        """Insert the states between `root` and `leaf`, the leaf last."""
        chain = [leaf]
        while chain[-1].parent is not None and chain[-1].parent is not root.state:
            chain.append(chain[-1].parent)
        nodes = []
        for state in reversed(chain):
            root = self._insert(root, state)
            nodes.append(root)
            self.counts.proposals += 1
            self.counts.tokens += state.step.n_tokens if state.step else 0
        return nodes

    def _insert(self, parent: Node, state: State) -> Node:
        node = Node(len(self.nodes), parent, state, self.policy.terminal(state))
        self.nodes.append(node)
        return node

    def _settle(self, fresh: Sequence[Node], score: bool) -> Flow[None]:
        if fresh:
            yield [Note("nodes", {"nodes": [_row(node) for node in fresh]})]
        if score:
            yield from self.score(fresh)

    def _checked(self, score: Score) -> float:
        if isinstance(score, Failure) or math.isnan(score):
            self.counts.failed_scores += 1
            reason = score.message if isinstance(score, Failure) else "the reward returned NaN"
            self._fail(Failure("reward", reason), proposal=False)
            return 0.0
        if not 0.0 <= score <= 1.0:
            self.counts.clipped_scores += 1
            return min(1.0, max(0.0, score))
        return score

    def _fail(self, failure: Failure, proposal: bool = True) -> None:
        self.counts.failed_proposals += proposal
        if failure.message not in self.failures:
            self.failures.append(failure.message)


def _row(node: Node) -> Mapping[str, Any]:
    return {
        "id": node.id,
        "parent": None if node.parent is None else node.parent.id,
        "depth": node.depth,
        "text": node.state.step.text if node.state.step else "",
        "logp": node.state.step.logp if node.state.step else None,
        "score": node.score,
        "terminal": node.terminal,
    }
