r"""MAXS: before each step look a few steps ahead along every candidate, and commit to what stays likely.

M candidate steps are drawn, each is followed N steps ahead with the same policy, and log-probabilities alone
decide: how likely what follows is, how even, how smooth (`foresight.py`). Once candidates cannot be told
apart any more, look-ahead is switched off and the rest is written plainly. Tool calls are steps like others.

    F_i = mean log p of the look-ahead,    A = F_i − F_{i−1}
    R = (1−α−β) Norm(e^{A/τ}) + α Norm(e^{−V_step/τ}) + β Norm(e^{−V_slope/τ})
    commit argmax R, or s ~ softmax(R/τ);    Var(R) ≤ δ: no more look-ahead

Source: MAXS: Meta-Adaptive Exploration with LLM Agents, arXiv 2601.09259; what it leaves open as in
Φ-Decoding, arXiv 2503.13288. Deviates: argmax, since softmax(R/τ) draws almost uniformly; where look-ahead
stops, the best candidate is kept with its look-ahead (`reuse_lookahead=False` discards all, as published);
nothing is looked for behind identical candidates; one with effects outside is cut there, and run once it is
committed to.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any, Literal

from ..serving.base import Capability
from ..serving.errors import RewardUnavailable, SearchEnded, UsageError, demand
from ..serving.flow import Flow, Note
from ..serving.seeds import derive
from .acting import CALL, RESULT, Acting, waits
from .base import Policy, Result, Task
from .foresight import Foresight, Glimpse, Judged, Signal, judge, norm, variance
from .glimp_router import GlimpRouter
from .policy import StepPolicy
from .search import Node, Search


@dataclass(frozen=True, kw_only=True)
class MAXS:
    """K = `beams`, M = `candidates` for each of them, N = `lookahead` steps; at most `max_steps` decisions.

    The policy must give log-probs; it is asked for them. Cost: at most C(1 + N) proposals a decision, C = KM,
    in 1 + N batches, and 1 a step after look-ahead has stopped. `delta`: below 0 it never stops; what suits
    depends on the model, and `abduce maxs calibrate` finds it. `paths_per_candidate` look-ahead paths of each
    candidate are averaged. The model sees `observation_chars` of a tool's result.
    """

    policy: Policy
    beams: int = 1  # these defaults are the paper's
    candidates: int = 4
    lookahead: int = 4
    alpha: float = 0.3
    beta: float = 0.2
    tau: float = 0.6
    delta: float = 0.002
    max_steps: int = 13
    select: Literal["argmax", "sample"] = "argmax"
    foresight: Foresight = "mean_logprob"
    reuse_lookahead: bool = True
    paths_per_candidate: int = 1
    observation_chars: int = 1000

    def __post_init__(self) -> None:
        least = {"beams": 1, "candidates": 1, "lookahead": 0, "max_steps": 1, "paths_per_candidate": 1}
        for name, low in (least | {"observation_chars": 1}).items():
            demand(getattr(self, name) >= low, name, getattr(self, name), f"write at least {low}")
        demand(self.tau > 0, "tau", self.tau, "write a number above 0, such as 0.6")
        weights = self.alpha, self.beta
        demand(
            min(weights) >= 0 and sum(weights) <= 1,
            "alpha and beta",
            weights,
            "they share 1 with the advantage",
        )
        demand(self.select in ("argmax", "sample"), "select", self.select, "write 'argmax' or 'sample'")
        demand(
            self.foresight in ("mean_logprob", "prob"),
            "foresight",
            self.foresight,
            "write 'mean_logprob' or 'prob'",
        )

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """Log-probs of every step, whoever writes it."""
        return {role: frozenset({"logprobs"}) for role in self.policy.requires}

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Decide step by step until a beam has finished."""
        search = Search(task, self.agent(task), None, seed)
        run = Progress([Beam(search.root)])
        stopped = None
        try:
            yield from self.explore(search, run)
        except SearchEnded as end:
            stopped = end
        best = yield from self.finished(search, run)
        pool = {beam.node: None for beam in run.beams if beam.node.terminal} | {best: None}
        candidates = [search.candidate(node) for node in pool if node.terminal]
        return search.result(best, stopped=stopped, pool=candidates, **run.facts())

    def agent(self, task: Task) -> Policy:
        """The policy with log-probs, and with the task's tools if it has any. Raises UsageError for a policy
        that cannot call them."""
        policy = _with_logprobs(self.policy.policy if isinstance(self.policy, Acting) else self.policy)
        if not task.specs:
            return policy
        if not isinstance(policy, StepPolicy):
            kind = type(policy).__name__
            raise UsageError(
                f"{kind} cannot call tools. Give maxs a policy such as cot, or the task no tools."
            )
        return Acting(policy=policy, observation_chars=self.observation_chars)

    # ------------------------------------------------------------ the algorithm

    def explore(self, search: Search, run: "Progress") -> Flow[None]:
        """Decide, or once look-ahead is off go on plainly, until a beam is finished or nothing is drawn."""
        while run.steps < self.max_steps and not any(beam.node.terminal for beam in run.beams):
            alive = yield from (self.go_on if run.halted else self.decide)(search, run)
            if not alive:
                return

    def go_on(self, search: Search, run: "Progress") -> Flow[bool]:
        """One step for each beam."""
        drawn = yield from search.expand([beam.node for beam in run.beams], [1] * len(run.beams), score=False)
        going = [(beam, row[0]) for beam, row in zip(run.beams, drawn, strict=True) if row]
        ends = yield from observed(search, [node for _, node in going], speculative=False)
        run.beams = [Beam(end, beam.F) for (beam, _), end in zip(going, ends, strict=True)] or run.beams
        return bool(going)

    def decide(self, search: Search, run: "Progress") -> Flow[bool]:
        """Draw candidates, look ahead, judge, commit."""
        first = len(search.nodes)
        candidates = yield from self.drawn(search, run.beams)
        if not candidates:
            return False
        if len({(c.node.state.text, c.node.state.step.last) for c in candidates if c.node.state.step}) == 1:
            chosen = candidates[: self.beams]  # nothing to choose from
            yield [Note("maxs", {"step": run.steps, "identical": len(candidates)})]
            run.beams = yield from self.committed(search, chosen, [c.beam.F for c in chosen])
        else:
            yield from self.look_ahead(search, candidates)
            yield from self.judged(search, run, candidates)
        kept = {node for beam in run.beams for node in beam.node.path()}
        yield from search.prune(node for node in search.nodes[first:] if node not in kept)
        return True

    def drawn(self, search: Search, beams: Sequence["Beam"]) -> Flow[list["Candidate"]]:
        """M candidates for each beam, with the results of what they call."""
        rows = yield from search.expand([b.node for b in beams], [self.candidates] * len(beams), score=False)
        pairs = [(beam, node) for beam, row in zip(beams, rows, strict=True) for node in row]
        speaking = [(beam, node) for beam, node in pairs if node.depth > 1 or node.state.text]
        pairs = speaking or pairs  # a solution does not begin with its end
        ends = yield from observed(search, [node for _, node in pairs], speculative=True)
        paths = range(self.paths_per_candidate)
        return [
            Candidate(beam, node, end, [Path(end) for _ in paths])
            for (beam, node), end in zip(pairs, ends, strict=True)
        ]

    def look_ahead(self, search: Search, candidates: Sequence["Candidate"]) -> Flow[None]:
        """N steps along every path, one batch for each depth, as far as it goes."""
        paths = [path for candidate in candidates for path in candidate.paths]
        for _ in range(self.lookahead):
            paths = [path for path in paths if not (path.end.terminal or waits(path.end.state))]
            if not paths:
                return
            drawn = yield from search.expand([path.end for path in paths], [1] * len(paths), score=False)
            paths = [path for path, row in zip(paths, drawn, strict=True) if row]
            nodes = [row[0] for row in drawn if row]
            ends = yield from observed(search, nodes, speculative=True)
            for path, node, end in zip(paths, nodes, ends, strict=True):
                path.steps.append(node)
                path.end = end

    def judged(self, search: Search, run: "Progress", candidates: Sequence["Candidate"]) -> Flow[None]:
        """R of the candidates, whether it still tells them apart, and the choice."""
        signals = [candidate.signal(self.foresight) for candidate in candidates]
        before = [candidate.beam.F for candidate in candidates]
        found = judge(signals, before, alpha=self.alpha, beta=self.beta, tau=self.tau)
        spread = variance(found.R)
        run.record(candidates, found, spread)
        for candidate, R in zip(candidates, found.R, strict=True):
            candidate.node.score = R
        yield [Note("scores", {"scores": {str(c.node.id): c.node.score for c in candidates}})]
        yield [Note("maxs", told(run.steps, candidates, signals, found, spread))]
        F = [b if signal.F is None else signal.F for signal, b in zip(signals, before, strict=True)]
        if spread <= self.delta:
            run.halted = True
            if not self.reuse_lookahead:
                return
            best = max(range(len(candidates)), key=lambda c: found.R[c])
            path = candidates[best].paths[0]
            [end] = yield from observed(search, [path.end], speculative=False)
            run.beams = [Beam(end, F[best])]
            return
        chosen = self.chosen(found.R, Random(derive(search.seed, "maxs", run.steps)))
        run.beams = yield from self.committed(search, [candidates[c] for c in chosen], [F[c] for c in chosen])

    def chosen(self, R: Sequence[float], rng: Random) -> list[int]:
        """The K candidates of largest R, or K drawn in proportion to exp(R/τ) without replacement."""
        left = sorted(range(len(R)), key=lambda c: -R[c])
        if self.select == "argmax":
            return left[: self.beams]
        taken: list[int] = []
        while left and len(taken) < self.beams:
            [c] = rng.choices(left, norm([R[c] for c in left], self.tau))
            left.remove(c)
            taken.append(c)
        return taken

    def committed(
        self, search: Search, chosen: Sequence["Candidate"], F: Sequence[float]
    ) -> Flow[list["Beam"]]:
        """Beams that end with these candidates. What they call is run now, if it has not been."""
        ends = yield from observed(search, [candidate.end for candidate in chosen], speculative=False)
        return [Beam(end, f) for end, f in zip(ends, F, strict=True)]

    def finished(self, search: Search, run: "Progress") -> Flow[Node]:
        """The finished beam of best F; if a limit left none, a finished look-ahead; else a forced answer."""
        ended = [beam for beam in run.beams if beam.node.terminal]
        if ended:
            best = max(ended, key=lambda beam: (search.answered(beam.node), beam.F)).node
        elif search.terminals and run.steps < self.max_steps:  # a limit
            best = max(search.terminals, key=lambda node: (search.answered(node), _mean(node)))
        else:
            best = max(run.beams, key=lambda beam: beam.F).node
        if not search.answered(best):
            best = yield from search.forced(best)
        return best


# ---------------------------------------------------------------- what a run has to remember


@dataclass(frozen=True, slots=True)
class Beam:
    """Where a solution stands, and the F of its last step: 0 at the root, as in Φ-Decoding."""

    node: Node
    F: float = 0.0


@dataclass(slots=True)
class Path:
    """One look-ahead path: the policy's steps on it, and where it goes on."""

    end: Node
    steps: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A step that a beam may take; `end` is behind the results of its calls."""

    beam: Beam
    node: Node
    end: Node
    paths: list[Path]

    def signal(self, kind: Foresight) -> Signal:
        """What the look-ahead says; where there is none, the step itself."""
        ahead = [glimpse(path.steps) for path in self.paths]
        return Signal.of(*(ahead if any(each.g for each in ahead) else [glimpse([self.node])]), kind=kind)

    @property
    def calls(self) -> list[str]:
        """The tools it calls, its look-ahead included, each once."""
        return sorted({call for node in _drawn(self) if (call := _called(node))})


@dataclass(slots=True)
class Progress:
    """The beams, whether look-ahead is off, and what each decision has shown."""

    beams: list[Beam]
    halted: bool = False
    variances: list[float] = field(default_factory=list)
    tool_advantage: list[float | None] = field(default_factory=list)
    n_ahead: int = 0  # look-ahead steps drawn

    @property
    def steps(self) -> int:
        """Steps of the policy's that are committed to."""
        return sum(not step.kind.startswith(RESULT) for step in self.beams[0].node.state.steps)

    def record(self, candidates: Sequence[Candidate], found: Judged, spread: float) -> None:
        """A decision."""
        acting = [R for candidate, R in zip(candidates, found.R, strict=True) if _called(candidate.node)]
        others = [R for candidate, R in zip(candidates, found.R, strict=True) if not _called(candidate.node)]
        both = acting and others
        gain = sum(acting) / len(acting) - sum(others) / len(others) if both else None
        self.variances.append(spread)
        self.tool_advantage.append(gain)
        self.n_ahead += sum(len(path.steps) for candidate in candidates for path in candidate.paths)

    def facts(self) -> dict[str, Any]:
        """For the result's diagnostics. `variances`: Var(R) of each decision that needed one."""
        return {
            "halted": self.halted,
            "variances": self.variances,
            "tool_advantage": self.tool_advantage,
            "n_ahead": self.n_ahead,
        }


def told(
    step: int, candidates: Sequence[Candidate], signals: Sequence[Signal], found: Judged, spread: float
) -> dict[str, Any]:
    """A decision as the trace tells of it."""
    rows = [
        {
            "node": candidate.node.id,
            **asdict(signal),
            **{name: column[c] for name, column in asdict(found).items()},
            "N": [len(path.steps) for path in candidate.paths],
            "tokens": sum(node.state.step.n_tokens for node in _drawn(candidate) if node.state.step),
            "calls": candidate.calls,
        }
        for c, (candidate, signal) in enumerate(zip(candidates, signals, strict=True))
    ]
    return {"step": step, "variance": spread, "candidates": rows}


def glimpse(nodes: Sequence[Node]) -> Glimpse:
    """g_n along nodes; a step without a token says nothing. Raises RewardUnavailable where log-probs lack."""
    g, n_tokens = [], []
    for node in nodes:
        step = node.state.step
        if step is None or (step.logp is None and not step.text):
            continue
        if step.logp is None:
            raise RewardUnavailable("the policy gives no log-probabilities of its steps")
        n = len(step.ids) or step.n_tokens
        g.append(step.logp / max(1, n))
        n_tokens.append(max(1, n))
    return Glimpse(tuple(g), tuple(n_tokens))


def observed(search: Search, nodes: Sequence[Node], *, speculative: bool) -> Flow[list[Node]]:
    """The nodes behind the results of what these call; as they are where nothing is called."""
    if not isinstance(search.policy, Acting):
        return list(nodes)
    rows = yield from search.policy.observe([node.state for node in nodes], speculative=speculative)
    ends = []
    for node, row in zip(nodes, rows, strict=True):
        grown = (yield from search.graft(node, row, score=False)) if row else [node]
        ends.append(grown[-1])
    return ends


def _drawn(candidate: Candidate) -> list[Node]:
    return [candidate.node, *(node for path in candidate.paths for node in path.steps)]


def _called(node: Node) -> str:
    """The tool that a step calls; nothing where it is text."""
    kind = node.state.step.kind if node.state.step else ""
    return kind.removeprefix(CALL) if kind.startswith(CALL) else ""


def _mean(node: Node) -> float:
    """The mean log-probability of all tokens that have one."""
    known = [step for step in node.state.steps if step.logp is not None]
    n = sum(step.n_tokens for step in known)
    return sum(step.logp or 0.0 for step in known) / n if n else -math.inf


def _with_logprobs(policy: Policy) -> Policy:
    """The policy, asking for the log-probs of what it draws."""
    if isinstance(policy, StepPolicy):
        return replace(policy, logprobs=True)
    if isinstance(policy, GlimpRouter):
        return replace(policy, policy=replace(policy.policy, logprobs=True))
    return policy
