"""The attempts at one problem: try, look what the examples say, try again knowing it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...memory.concepts.selecting import Selection
from ...memory.concepts.writing import Trace
from ...serving.entries import Evidence
from ...serving.errors import BudgetExhausted, SearchEnded
from ...serving.flow import Failure, Flow, Note
from ...serving.seeds import derive
from ..base import Candidate, Policy, Result, State, Step
from ..search import Node, Search
from .trials import GridTrial, Trial, Verdict

Choose = Callable[[int, str], Flow[Selection]]
"""What is shown of a memory, by a seed and the attempt that failed, if any."""


@dataclass(frozen=True)
class Solved:
    """A result, what was shown of the memory, and the trace to learn from if, by what the solver may see, it
    is right."""

    id: str
    result: Result
    selections: tuple[Selection, ...] = ()
    trace: Trace | None = None
    won: bool = False  # whether an attempt that was shown the selection passed
    alone: bool | None = None  # whether one that was shown nothing did, if there were any
    cut: bool = False  # whether a limit ended it before it was solved or all its attempts were made

    @property
    def selected(self) -> tuple[str, ...]:
        """Names of all that was selected."""
        return tuple(dict.fromkeys(name for each in self.selections for name in each.names))


@dataclass
class Attempts:
    """At most `max_passes` times `samples`, and in each pass `control` more that are shown no memory. A pass
    after the first sees the `feedback_passes` last ones, the best attempt of each."""

    trial: Trial
    policy: Policy
    choose: Choose
    seed: int
    max_passes: int
    samples: int
    feedback_passes: int
    reselect: bool
    control: int = 0
    domain: str = ""
    verdicts: dict[Node, Verdict] = field(default_factory=dict)
    selections: list[Selection] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)  # of each pass, the text and what was wrong
    controls: set[Node] = field(default_factory=set)
    n_passes: int = 0

    def __post_init__(self) -> None:
        self.search = Search(self.trial.asked("", ()), self.policy, None, self.seed)

    def made(self) -> Flow[Solved]:
        """Pass after pass, and the result."""
        stopped: SearchEnded | None = None
        try:
            yield from self._passes()
        except SearchEnded as end:
            stopped = end
        best = max(self.verdicts, key=self._worth, default=None)
        if best is None:
            leaf = yield from self.search.finalise(self.search.root if stopped else None)
            found = self.search.result(leaf, stopped=stopped, **self._facts(None))
            cut = isinstance(stopped, BudgetExhausted)
            return Solved(self.trial.id, self._untried(found), tuple(self.selections), cut=cut)
        verdict = self.verdicts[best]
        pool = [Candidate(v.answer, node.state.text, v.score) for node, v in self.verdicts.items()]
        found = self.search.result(best, stopped=stopped, pool=pool, **self._facts(verdict))
        return Solved(
            self.trial.id,
            replace(found, answer=verdict.answer),
            tuple(self.selections),
            self._trace(best) if verdict.passed else None,
            any(v.passed for node, v in self.verdicts.items() if node not in self.controls),
            any(self.verdicts[node].passed for node in self.controls) if self.controls else None,
            isinstance(stopped, BudgetExhausted) and not verdict.passed,
        )

    def _passes(self) -> Flow[None]:
        selection = yield from self._chosen("")
        while True:
            failed = self.failed[-self.feedback_passes :] if self.feedback_passes else []
            self.n_passes += 1
            fresh = yield from self._drawn(selection.shown, failed, self.samples, "pass")
            if self.control:
                without = yield from self._drawn("", failed, self.control, "control")
                self.controls.update(without)
                fresh += without
            over = self.n_passes >= self.max_passes
            if over or not fresh or any(self.verdicts[node].passed is not False for node in fresh):
                return
            best = max(fresh, key=self._worth)
            self.failed.append((best.state.text.strip(), self.verdicts[best].feedback))
            if self.reselect:
                selection = yield from self._chosen("\n\n".join(self.failed[-1]))

    def _drawn(self, memory: str, failed: Sequence[tuple[str, str]], n: int, what: str) -> Flow[list[Node]]:
        start = State(self.trial.asked(memory, failed), lineage=derive(self.seed, what, self.n_passes))
        outcomes = yield from self.policy.complete(start, n, seed=self.seed)
        steps = [outcome if isinstance(outcome, Failure) else _step(outcome) for outcome in outcomes]
        nodes = yield from self.search.record(self.search.root, steps, score=False)
        states = [outcome for outcome in outcomes if not isinstance(outcome, Failure)]
        verdicts = (yield from self.trial.judged(states)) if states else []
        self.verdicts |= dict(zip(nodes, verdicts, strict=True))
        if known := {str(n.id): v.score for n, v in zip(nodes, verdicts, strict=True) if v.score is not None}:
            yield [Note("scores", {"scores": known})]
        return nodes

    def _chosen(self, tried: str) -> Flow[Selection]:
        found = yield from self.choose(derive(self.seed, "memory", len(self.selections)), tried)
        self.selections.append(found)
        if found.how != "none" or found.tries:
            yield [Note("memory", found.told)]
        return found

    def _worth(self, node: Node) -> tuple[float, bool]:
        verdict = self.verdicts[node]
        return verdict.score or 0.0, verdict.answer is not None

    def _trace(self, best: Node) -> Trace:
        verdict = self.verdicts[best]
        names = dict.fromkeys(name for found in self.selections for name in found.names)
        read = () if best in self.controls else tuple(names)
        evidence = Evidence(source=self.trial.id, verifier=verdict.verifier, confidence=1.0, read=read)
        return Trace(self.trial.id, self.trial.words, verdict.solution, evidence, self.domain)

    def _facts(self, verdict: Verdict | None) -> dict[str, Any]:
        facts: dict[str, Any] = {"passes": self.n_passes, "verified": verdict.passed if verdict else None}
        if self.control:
            rows = [(node in self.controls, verdict.passed) for node, verdict in self.verdicts.items()]
            facts["ablation"] = {
                "with": [passed for control, passed in rows if not control],
                "without": [passed for control, passed in rows if control],
            }
        if any(found.how != "none" or found.tries for found in self.selections):
            facts["memory"] = [found.told for found in self.selections]
        return facts

    def _untried(self, found: Result) -> Result:
        """A result that was not judged: the answer of a puzzle is what its program returned, and none ran."""
        return replace(found, answer=None) if isinstance(self.trial, GridTrial) else found


def _step(outcome: State) -> Step:
    cut = outcome.step is not None and outcome.step.cut
    return Step(outcome.text, outcome.ids, outcome.logp, outcome.n_tokens, last=True, cut=cut)
