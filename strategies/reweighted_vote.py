"""Re-weighted vote: a majority in which long and doubtful solutions count for less.

Right solutions of reasoning models are shorter than wrong ones to the same question, and hedge less. That is
enough to break ties and, where it has been shown to hold, to weigh votes. It is a claim about reasoning
models: calibrate it on your model (`abduce vote calibrate`), or leave it at breaking ties.

    y* = argmax_a Σ_i w_i 1[a_i = a],  w_i = exp(−b_l z_l − b_h z_h − b_t z_t + b_d z_d)   (`vote_weights.py`)

Source: Think Deep, Think Fast: Investigating Efficiency of Verifier-free Inference-time-scaling Methods,
arXiv 2504.14047. Deviates: lexicon, rule, weights and guard are our own, since the paper's could not be read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..serving.errors import SearchEnded, UsageError
from ..serving.flow import Flow, Note
from .base import Policy, Result, Task
from .languages import detect
from .markers import Lexicon, lexicon
from .search import Node, Search
from .vote_calibration import Calibration, by_chance
from .vote_weights import DEFAULT, Coefficients, Features, features, reweighted
from .voting import Poll, poll


@dataclass(frozen=True, kw_only=True)
class ReweightedVote:
    """N = `n` solutions, one vote. Cost: N generations; no reward, no further call.

    `use`: "ties" leaves the majority as it is and only breaks its ties; "weights" weighs each vote; "filter"
    lets the `keep` least suspicious vote; "best" takes the least suspicious one, which needs no answers that
    can be counted; "calibrated" weighs by the P(right) of a fit. `calibration` is what
    `abduce vote calibrate` printed: where it shows that re-weighting loses, or on too few solutions, the vote
    falls back to "ties" (`guard` in the diagnostics says why). `markers` are phrases by class in place of the
    built-in ones of the question's language. If not one of the N has an answer N more are drawn, `attempts`
    times in all.
    """

    policy: Policy
    n: int = 8
    use: Literal["ties", "weights", "filter", "best", "calibrated"] = "ties"
    b: Coefficients = DEFAULT
    keep: float = 0.5
    calibration: Calibration | None = None
    markers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    attempts: int = 2

    def __post_init__(self) -> None:
        if self.n < 1 or self.attempts < 1:
            raise UsageError(f"n and attempts must be at least 1, got {self.n} and {self.attempts}.")
        uses = ("ties", "weights", "filter", "best", "calibrated")
        if self.use not in uses:
            raise UsageError(f"use must be one of {', '.join(uses)}, got {self.use!r}.")
        if not 0 < self.keep <= 1:
            raise UsageError(f"keep must be above 0 and at most 1, got {self.keep}. Write keep=0.5.")
        if self.use == "calibrated" and self.calibration is None:
            raise UsageError(
                "use='calibrated' needs a calibration. Print one with: abduce vote calibrate PROBLEMS"
            )
        Lexicon(self.markers)

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Draw, look at lengths and words, vote."""
        search = Search(task, self.policy, None, seed)
        stopped = None
        try:
            for _ in range(self.attempts):
                pool = yield from search.complete(search.root, self.n)
                if any(self.policy.answer(node.state) is not None for node in pool):
                    break
        except SearchEnded as end:
            stopped = end
        votes, facts = self.vote(search)
        if search.terminals and stopped is None:
            yield [Note("vote", facts)]
        backers = [n for n in search.terminals if self.policy.answer(n.state) == votes.winner]
        best = backers[0] if backers else (yield from search.finalise(search.root if stopped else None))
        return search.result(best, stopped=stopped, **facts)

    def vote(self, search: Search) -> tuple[Poll, dict[str, Any]]:
        """The vote over all solutions, and what is told of it."""
        pool = search.terminals
        if not pool:
            return Poll(None, {}, ()), {}
        answers = [self.policy.answer(node.state) for node in pool]
        seen = self.features(search.task, pool)
        use, why = self.guarded()
        if use == "calibrated" and self.calibration is not None:
            votes = by_chance(self.calibration.fit, answers, seen)
        else:
            votes = reweighted(answers, seen, self.b, use, self.keep)
        counted = {str(answer): round(count, 6) for answer, count in votes.votes.items()}
        majority = poll(answers, lengths=[len(node.state.text) for node in pool]).winner
        facts: dict[str, Any] = {"votes": counted, "tied": len(votes.tied), "use": use}
        facts["majority"] = None if majority is None else str(majority)
        facts["features"] = [list(row) for row in seen]
        return votes, facts | ({"guard": why} if why else {})

    def guarded(self) -> tuple[str, str]:
        """The use that is safe, and why it is not the one asked for, or not known to be."""
        if self.use == "ties":
            return "ties", ""
        if self.calibration is None:
            return self.use, "not calibrated"
        why = self.calibration.refuses(self.use)
        return ("ties" if why else self.use), why

    def features(self, task: Task, pool: Sequence[Node]) -> list[Features]:
        """Those of each solution."""
        words = Lexicon(self.markers) if self.markers else lexicon(detect(task.question).language)
        return [
            features(
                node.state.text,
                node.state.n_tokens,
                truncated=node.state.step is not None and node.state.step.cut,
                lexicon=words,
            )
            for node in pool
        ]
