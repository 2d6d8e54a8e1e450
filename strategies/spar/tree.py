"""The tree of versions: rewrites and judgements in batches, what each cost, and which is best.

The store is that of all searches; a version is a node whose step stands in the place of its parent's text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...serving.flow import Failure, Flow, Note
from ...serving.seeds import derive
from ..search import Node, Search
from .judges import TIED, Judge, Judgement
from .refiner import UNMARKED, Draft, Refiner, Rewrite
from .similarity import similarity


@dataclass
class Tree:
    """One search's versions. `left` judged versions may still be had."""

    search: Search
    judge: Judge
    confirm: Judge | None
    refiner: Refiner
    left: int
    judged: dict[Node, Judgement] = field(default_factory=dict)
    said: dict[Node, str] = field(default_factory=dict)  # all that the refiner said
    confirmed: dict[Node, float] = field(default_factory=dict)  # V of the second judgement
    level: dict[Node, int] = field(default_factory=dict)  # rewrites since the draft
    root: Node | None = None  # the draft that is rewritten
    winner: Node | None = None
    fault: str = ""  # of the last call that failed
    _known: dict[str, Judgement] = field(default_factory=dict)

    # ------------------------------------------------------------ flows

    def assess(self, nodes: Sequence[Node]) -> Flow[list[Node]]:
        """Judge versions, each distinct text once; those that no judgement could be had of are left out."""
        texts = {node.state.text: node.state for node in nodes}
        new = [state for text, state in texts.items() if text not in self._known]
        if new:
            seed = derive(self.search.seed, "judge")
            rows = yield from self.judge.judge(new, seed=seed)
            for state, row in zip(new, rows, strict=True):
                if isinstance(row, Failure):
                    self.search.checked(row)
                    self.fault = self.fault if row is TIED else row.message
                else:
                    self._known[state.text] = row
            self.search.counts.reward_passes += len(new)
        known = [node for node in nodes if node.state.text in self._known]
        notes = [self._enter(node, self._known[node.state.text]) for node in known]
        scores = {str(node.id): node.score for node in known}
        if notes or new:
            yield [*notes, Note("scores", {"scores": scores}, reward_passes=len(new))]
        yield from self.search.prune([node for node in nodes if node not in self.judged])
        self._go_on()
        return known

    def grow(self, nodes: Sequence[Node], branch: int) -> Flow[list[Node]]:
        """Up to `branch` judged rewrites of each node. Only a judged one counts; what fails is dropped."""
        slots = [node for node in nodes for _ in range(branch)]
        children: list[Node] = []
        while slots and self.left:
            now, slots = slots[: self.left], slots[self.left :]
            fresh = yield from self._rewrite({node: now.count(node) for node in dict.fromkeys(now)})
            judged = yield from self.assess(fresh)
            self.left -= len(judged)
            children += judged
        return children

    def accept(self, nodes: Sequence[Node]) -> Flow[Node | None]:
        """The best valid version, once a second judgement confirms it, if one is wanted."""
        for node in sorted(nodes, key=lambda node: -self.judged[node].value):
            if not self.judged[node].valid or (self.confirm and not (yield from self._confirm(node))):
                continue
            yield [Note("accept", {"node": node.id, "value": self.judged[node].value})]
            self.winner = node
            return node
        return None

    def _rewrite(self, counts: dict[Node, int]) -> Flow[list[Node]]:
        drafts = [self._draft(node, n) for node, n in counts.items()]
        yield [Note("expand", {"nodes": [node.id for node in counts]})]
        rows = yield from self.refiner.rewrite(drafts)
        fresh: list[Node] = []
        for node, row in zip(counts, rows, strict=True):
            steps = [each.step if isinstance(each, Rewrite) else each for each in row]
            children = yield from self.search.record(node, steps, score=False)
            written = [each for each in row if isinstance(each, Rewrite)]
            for child, rewrite in zip(children, written, strict=True):
                self.said[child], self.level[child] = rewrite.said, self.level[node] + 1
            fresh += children
            failed = [each for each in row if not isinstance(each, Rewrite) and each is not UNMARKED]
            self.fault = failed[-1].message if failed else self.fault
        self._go_on()
        return fresh

    def _go_on(self) -> None:
        """Raise what has cut a batch short, if anything has."""
        if self.search.ended is not None:
            raise self.search.ended

    def _draft(self, node: Node, n: int) -> Draft:
        seed = derive(self.search.seed, node.state.lineage, "refine", node.draws)
        seeds = [derive(seed, attempt) for attempt in range(self.refiner.attempts)]
        return Draft(self.search.task, node.state.text, self.judged[node].critique, n, seeds)

    def _confirm(self, node: Node) -> Flow[bool]:
        """Whether fresh votes accept a version too; otherwise it counts as invalid from now on."""
        assert self.confirm is not None
        before = self.judged[node]
        [again] = yield from self.confirm.judge([node.state], seed=derive(self.search.seed, "confirm"))
        self.search.counts.reward_passes += 1
        if isinstance(again, Failure):
            again = Judgement(False, 0.5, before.critique)  # as many for as against it
        self.confirmed[node] = again.value
        facts = {"node": node.id, "before": before.value, "value": again.value, "valid": again.valid}
        yield [Note("confirm", facts, reward_passes=1)]
        if not again.valid:
            yield [self._enter(node, again), Note("scores", {"scores": {str(node.id): again.value}})]
        return again.valid

    def _enter(self, node: Node, found: Judgement) -> Note:
        self.judged[node] = found
        node.score = found.value
        self.level.setdefault(node, 0)
        facts = {"node": node.id, "valid": found.valid, "value": found.value, "critique": found.critique}
        return Note("judgement", {**facts, "yes": found.yes, "no": found.no, "unmet": list(found.unmet)})

    # ------------------------------------------------------------ reading

    def best(self) -> Node | None:
        """Valid ones first, then by value; among equals the one most like the draft, the shallower, the
        earlier."""
        if self.winner is not None:
            return self.winner

        def rank(node: Node) -> tuple[bool, bool, float, float, int, int]:
            found = self.judged[node]
            alike = self.likeness(node)
            answered = self.search.answered(node)
            return found.valid, answered, found.value, alike, -self.level[node], -node.id

        if self.judged:
            return max(self.judged, key=rank)
        return self.search.best(self.search.terminals)

    def likeness(self, node: Node) -> float:
        """How much of the draft that is rewritten is left."""
        return 1.0 if self.root is None else similarity(self.root.state.text, node.state.text)

    def facts(self) -> dict[str, Any]:
        """What a result tells of the versions, as JSON; records are made of it (`records.py`)."""
        best = self.best()
        found = None if best is None else self.judged.get(best)
        return {
            "valid": None if found is None else found.valid,
            "value": None if found is None else found.value,
            "unmet": [] if found is None else list(found.unmet),
            "judged": sum(self.level[node] > 0 for node in self.judged),
            "similarity": None if best is None else self.likeness(best),
            "root": None if self.root is None else self.root.id,
            "winner": None if self.winner is None else self.winner.id,
            "versions": [self._row(node) for node in self.judged],
        }

    def _row(self, node: Node) -> dict[str, Any]:
        found, level = self.judged[node], self.level[node]
        return {
            "node": node.id,
            "parent": node.parent.id if level and node.parent is not None else None,
            "depth": level,
            "answer": node.state.text,
            "valid": found.valid,
            "value": found.value,
            "critique": found.critique,
            "yes": found.yes,
            "no": found.no,
            "unmet": list(found.unmet),
            "confirmed": self.confirmed.get(node),
            "said": self.said.get(node, ""),
        }
