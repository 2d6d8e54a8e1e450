"""The node store, and the three flows every search is made of: `expand`, `score`, `complete`.

    search = Search(task, policy, reward, seed)
    children = yield from search.expand([search.root], [4])     # propose, record, score, trace
    return search.result(best)

Accounting is exact: every proposal drawn, every token, and one reward pass for each *distinct* text of a
store (asking again is free). Source of the interface: A*-Decoding, arXiv 2505.13672, and Rollout
Roulette, arXiv 2502.01618, put on one footing.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..serving.errors import RewardUnavailable, SearchEnded
from ..serving.flow import Failure, Flow, Note
from ..serving.seeds import derive
from .base import Candidate, Outcome, Policy, Proposal, Result, Reward, Score, State, Step, Task, scores_of

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
    children: "list[Node]" = field(default_factory=list)

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
    ended: SearchEnded | None = None  # what cut a batch or the finalisation short, if anything
    first_id: int = 0  # of the root; searches that one run keeps apart number their nodes apart
    _scores: dict[tuple[str, bool], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        root = State(self.task, lineage=derive(self.seed, "root"))
        self.nodes.append(Node(self.first_id, None, root, self.policy.terminal(root), score=1.0))

    @property
    def root(self) -> Node:
        """The empty solution."""
        return self.nodes[0]

    @property
    def terminals(self) -> list[Node]:
        """All finished solutions, in order of discovery."""
        return [node for node in self.nodes if node.terminal]

    @property
    def open(self) -> list[Node]:
        """All unfinished solutions that nothing was drawn from and that were not given up."""
        return [node for node in self.nodes if not (node.terminal or node.children or node.pruned)]

    # ------------------------------------------------------------ flows

    def expand(
        self, nodes: Sequence[Node], counts: Sequence[int], *, unique: bool = False, score: bool = True
    ) -> Flow[list[list[Node]]]:
        """Draw `counts[i]` children of `nodes[i]`, all in one batch, and score them in another.

        With `unique`, a child that repeats a sibling word for word is dropped. Failed draws are
        counted and left out, so a node may get fewer children than asked for, or none.
        """
        first, seeds = self._reserve(nodes, counts)
        drawn = yield from self.policy.propose([node.state for node in nodes], counts, seeds)
        rows = zip(nodes, drawn, first, strict=True)
        children = [self._adopt(node, steps, draw, unique) for node, steps, draw in rows]
        self.counts.expansions += len(nodes)
        self.counts.batches += 1
        yield from self._settle([child for siblings in children for child in siblings], score)
        return children

    def force(self, nodes: Sequence[Node], *, score: bool = True) -> Flow[list[Node]]:
        """Give each node one last step with an answer. The children are terminal."""
        first, seeds = self._reserve(nodes, [1] * len(nodes))
        forced = yield from self.policy.force([node.state for node in nodes], seeds)
        rows = zip(nodes, forced, first, strict=True)
        children = [child for node, step, draw in rows for child in self._adopt(node, [step], draw)]
        for child in children:
            child.terminal = True
        yield from self._settle(children, score)
        return children

    def complete(self, node: Node, n: int, *, score: bool = True) -> Flow[list[Node]]:
        """`n` independent finished solutions from `node`, each running at its own pace."""
        [first], _ = self._reserve([node], [n])
        ended = yield from self.policy.complete(node.state, n, seed=self.seed, first_draw=first)
        return (yield from self.take(node, ended, score=score))

    def take(self, node: Node, ended: Sequence[Outcome], *, score: bool = True) -> Flow[list[Node]]:
        """The nodes of finished solutions from `node` that a policy's `complete` drew; counted as drawn."""
        fresh: list[Node] = []
        leaves: list[Node] = []
        for outcome in ended:
            if isinstance(outcome, Failure):
                self.counts.proposals += 1
                self._fail(outcome)
                continue
            path = self._adopt_path(node, outcome)
            fresh += path
            leaves.append(path[-1])
        yield from self._settle(fresh, score=False)
        if score:
            yield from self.score(leaves)
        return leaves

    def record(self, node: Node, proposals: Sequence[Proposal], *, score: bool = True) -> Flow[list[Node]]:
        """The children of `node` from steps that a strategy drew by requests of its own; counted as drawn."""
        [first], _ = self._reserve([node], [len(proposals)])
        children = self._adopt(node, proposals, first)
        self.counts.batches += 1
        yield from self._settle(children, score)
        return children

    def graft(self, node: Node, steps: Sequence[Step], *, score: bool = True) -> Flow[list[Node]]:
        """The nodes after `node` along steps that were drawn elsewhere; no proposals are counted."""
        nodes = []
        for step in steps:
            [draw], _ = self._reserve([node], [1])
            node = self._insert(node, node.state.extend(step, draw))
            nodes.append(node)
        yield from self._settle(nodes, score)
        return nodes

    def score(self, nodes: Iterable[Node]) -> Flow[None]:
        """Score the nodes that have no score yet: one reward pass for each distinct text, finished or not.

        A score outside [0, 1] is clipped and counted; a state that cannot be scored gets 0, the reason
        goes into the diagnostics. Raises RewardUnavailable if nothing could be scored at all.
        """
        if self.reward is None:
            return
        waiting = [(node, (node.state.text, node.terminal)) for node in nodes if node.score is None]
        new = {says: node.state for node, says in waiting if says not in self._scores}
        if new:
            scores = yield from scores_of(self.reward, list(new.values()))
            for says, score in zip(new, scores, strict=True):
                self._scores[says] = self.checked(score)
            self.counts.reward_passes += len(new)
        for node, says in waiting:
            node.score = self._scores[says]
        if waiting:
            scored = {str(node.id): node.score for node, _ in waiting}
            yield [Note("scores", {"scores": scored}, reward_passes=len(new))]
        if self.counts.failed_scores and self.counts.failed_scores == self.counts.reward_passes:
            raise RewardUnavailable(f"no state could be scored: {self.failures[-1]}")

    def prune(self, nodes: Iterable[Node]) -> Flow[None]:
        """Give nodes up: they stay in the store, and the trace tells them apart."""
        given_up = [node for node in nodes if not node.pruned]
        for node in given_up:
            node.pruned = True
        if given_up:
            yield [Note("prune", {"nodes": [node.id for node in given_up]})]

    def finalise(self, node: Node | None) -> Flow[Node | None]:
        """How a search ends: its best finished solution; if it has none, `node` is completed, or an answer
        forced from it, with what the budget has kept back. If that is not enough, `node` as it is."""
        if self.terminals or node is None:
            return self.best(self.terminals)
        try:
            leaves = yield from self.complete(node, 1, score=False)
            node = leaves[0] if leaves else node
        except SearchEnded as end:
            self.ended = end
        if not self.answered(node):
            node = yield from self.forced(node)
        return node

    def forced(self, node: Node) -> Flow[Node]:
        """The end of `node` with an answer forced from it; `node` itself where that fails."""
        try:
            leaves = yield from self.force([node], score=False)
        except SearchEnded as end:
            self.ended = end
            return node
        return leaves[0] if leaves else node

    # ------------------------------------------------------------ results

    def best(
        self, nodes: Iterable[Node], value: Callable[[Node], float | None] = attrgetter("score")
    ) -> Node | None:
        """The node of highest value, those with an answer first; the first of equals."""

        def rank(node: Node) -> tuple[bool, float]:
            worth = value(node)
            return self.answered(node), -math.inf if worth is None else worth

        return max(nodes, key=rank, default=None)

    def answered(self, node: Node) -> bool:
        """Whether a node is finished and has an answer; what a prefix seems to answer does not count."""
        return node.terminal and self.policy.answer(node.state) is not None

    def absorb(self, other: "Search") -> None:
        """Take over the nodes and accounts of a search for the same task that ran by itself."""
        for node in other.nodes[1:]:
            if node.parent is other.root:
                node.parent = self.root
                self.root.children.append(node)
            self.nodes.append(node)
        for f in fields(Counts):
            setattr(self.counts, f.name, getattr(self.counts, f.name) + getattr(other.counts, f.name))
        self.failures += [reason for reason in other.failures if reason not in self.failures]
        self.ended = self.ended or other.ended

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
        stopped = stopped or self.ended
        facts: dict[str, Any] = {**asdict(self.counts), "nodes": len(self.nodes), **diagnostics}
        if best is not None:
            facts["path"] = [node.id for node in best.path()]
            if best.state.step is not None and best.state.step.cut:
                facts["cut"] = True  # the answer ran into its length limit
            if not best.terminal and stopped is None:
                stopped = ": ".join(["no finished solution was found", *self.failures[-1:]])
        elif stopped is None:
            stopped = self.failures[-1] if self.failures else "no solution was found"
        if stopped is not None:
            facts["stopped"] = str(stopped)
        if self.failures:
            facts["failures"] = list(self.failures)
        answer = self.policy.answer(best.state) if best is not None and best.terminal else None
        kind = getattr(self.policy, "answer_kind", None)
        if stopped is None and answer is None and kind is not None and not self.task.in_one_piece:
            facts["unanswered"] = UNREAD.format(kind=kind)
        return Result(
            answer=answer,
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

    def _reserve(self, nodes: Sequence[Node], counts: Sequence[int]) -> tuple[list[int], list[int]]:
        """Number the draws before they are asked for, so that flows in lockstep never draw the same: the
        number of each node's first draw, and its seed."""
        first = []
        for node, n in zip(nodes, counts, strict=True):
            first.append(node.draws)
            node.draws += n
        rows = zip(nodes, first, strict=True)
        return first, [derive(self.seed, node.state.lineage, draw) for node, draw in rows]

    def _adopt(
        self, parent: Node, proposals: Sequence[Proposal], first_draw: int, unique: bool = False
    ) -> list[Node]:
        earlier = [child.state.step for child in parent.children if child.state.step] if unique else []
        seen = {(step.text, step.last) for step in earlier}
        children = []
        for draw, proposal in enumerate(proposals, first_draw):
            self.counts.proposals += 1
            if isinstance(proposal, Failure):
                self._fail(proposal)
                continue
            self.counts.tokens += proposal.n_tokens
            if unique:
                if (proposal.text, proposal.last) in seen:
                    self.counts.duplicates += 1
                    continue
                seen.add((proposal.text, proposal.last))
            children.append(self._insert(parent, parent.state.extend(proposal, draw)))
        return children

    def _adopt_path(self, root: Node, leaf: State) -> list[Node]:
        """Insert the states between `root` and `leaf`, the leaf last."""
        chain = [leaf]
        while chain[-1].parent is not None and chain[-1].parent is not root.state:
            chain.append(chain[-1].parent)
        nodes: list[Node] = []
        for state in reversed(chain):
            if nodes:
                root.draws += 1  # those of the first are reserved
            root = self._insert(root, state)
            nodes.append(root)
            self.counts.proposals += 1
            self.counts.tokens += state.step.n_tokens if state.step else 0
        return nodes

    def _insert(self, parent: Node, state: State) -> Node:
        node = Node(self.first_id + len(self.nodes), parent, state, self.policy.terminal(state))
        parent.children.append(node)
        self.nodes.append(node)
        return node

    def _settle(self, fresh: Sequence[Node], score: bool) -> Flow[None]:
        if fresh:
            yield [Note("nodes", {"nodes": [_row(node) for node in fresh]})]
        if score:
            yield from self.score(fresh)

    def checked(self, score: Score) -> float:
        """A reward's answer as a number in [0, 1]; what is none is counted and told."""
        if isinstance(score, Failure) or math.isnan(score):
            self.counts.failed_scores += 1
            nan = Failure("reward", "the reward returned NaN")
            self._fail(score if isinstance(score, Failure) else nan, proposal=False)
            return 0.0
        if not 0.0 <= score <= 1.0:
            self.counts.clipped_scores += 1
            return min(1.0, max(0.0, score))
        return score

    def _fail(self, failure: Failure, proposal: bool = True) -> None:
        self.counts.failed_proposals += proposal
        if failure.kind == "budget":  # the rest of its batch was affordable
            self.ended = SearchEnded(failure.message)
        if failure.message not in self.failures:
            self.failures.append(failure.message)


def _row(node: Node) -> Mapping[str, Any]:
    step = node.state.step
    return {
        "id": node.id,
        "parent": None if node.parent is None else node.parent.id,
        "depth": node.depth,
        "text": step.text if step else "",
        "logp": step.logp if step else None,
        "score": node.score,
        "terminal": node.terminal,
    }


UNREAD = (
    "the policy reads answers of the kind '{kind}', and there is none. The policy cot reads numbers, words "
    "whatever stands after 'answer is', math formulas, choice letters, plain the whole text"
)
