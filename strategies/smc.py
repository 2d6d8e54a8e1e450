"""Sequential Monte Carlo over reasoning steps: the one sweep that all particle methods share.

A population of N partial solutions is carried through: every unfinished particle gets one proposed
step, its weight is multiplied by the potential G_t of its new prefix, and particles are resampled in
proportion to their weights. Weights and the evidence estimate are kept in log space.

    w_i ← w_i · G_t(x_i)              Ẑ ← Ẑ · mean(w), w_j ← W_a / q_a    for ancestors a ~ q

With q = W the second line is ordinary resampling, w = 1. Any other q keeps E[Ẑ Σ W f(x)] = Z E_π[f],
since what the draw distorts the new weight takes back.

Source: Rollout Roulette, arXiv 2502.01618. Deviates: finished particles keep their weight (G = 1) and
nothing is resampled once all have finished, so that Ẑ and Ẑ Σ W f are unbiased.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from ..serving.errors import SearchEnded, demand
from ..serving.flow import Flow, Note, Request
from ..serving.seeds import derive
from .base import stalled
from .resampling import degenerate, ess, log_mean_exp, multinomial, normalise, scheme
from .search import Node, Search

T = TypeVar("T")
PotentialKind: TypeAlias = Literal["product", "telescoping", "reference"]
Phi: TypeAlias = Literal["id", "odds"]

R_MIN = 1e-7  # scores are kept off 0 and 1 where their odds or ratio is taken; value of the published code


# ---------------------------------------------------------------- potentials


@dataclass(frozen=True, slots=True)
class Potential:
    """G_t of a prefix from its score r_t; φ is `id` (r) or `odds` (r/(1−r)), to the power 1/T_w.

    | kind          | G_t               | target π ∝                                           |
    |---------------|-------------------|------------------------------------------------------|
    | `product`     | φ(r_t)            | p · Π φ(r_t)                                         |
    | `telescoping` | φ(r_t)/φ(r_{t−1}) | p · φ(r_T): scores that already judge the whole      |
    | `reference`   | none              | none: w_i = odds(r_i) of the last score, every step  |

    T_w goes from `temperature` to `end_temperature` in equal steps over `annealing_steps` steps.
    """

    kind: PotentialKind = "product"
    phi: Phi = "id"
    temperature: float = 1.0
    end_temperature: float | None = None
    annealing_steps: int = 10

    def __post_init__(self) -> None:
        demand(self.kind in ("product", "telescoping", "reference"), "potential", self.kind, _POTENTIALS)
        demand(self.phi in ("id", "odds"), "phi", self.phi, "write 'id' for r or 'odds' for r/(1−r)")
        for value in (self.temperature, self.end_temperature):
            good = value is None or value > 0
            demand(good, "weight_temperature", value, "write a number above 0, such as 1.0")
        demand(self.annealing_steps >= 1, "annealing_steps", self.annealing_steps, "write at least 1")

    def log_weights(
        self, log_w: Sequence[float], before: Sequence[Node], after: Sequence[Node]
    ) -> list[float]:
        """The weights after a step: log w + log G of the particles that moved, others as they were."""
        if self.kind == "reference":
            return [self.log_phi(node) for node in after]
        return [
            w if new is old else w + self.log_g(new) for w, old, new in zip(log_w, before, after, strict=True)
        ]

    def log_g(self, node: Node) -> float:
        """log G_t of the prefix that ends at `node`."""
        if self.kind == "telescoping" and node.parent is not None:
            return self.log_phi(node) - self.log_phi(node.parent)
        return self.log_phi(node)

    def log_likelihood(self, node: Node) -> float:
        """L = Σ_t log G_t along the path to `node`."""
        return sum(self.log_g(prefix) for prefix in node.path()[1:])

    def log_phi(self, node: Node) -> float:
        """log φ(r)^(1/T_w); 0 at the root, where nothing has been judged."""
        if node.depth == 0:
            return 0.0
        r = 0.0 if node.score is None else node.score
        if self.phi == "odds" or self.kind == "reference":
            r = min(max(r, R_MIN), 1.0 - R_MIN)
            return math.log(r / (1.0 - r)) / self._temperature(node.depth)
        if self.kind == "telescoping" and not node.terminal:
            r = max(r, R_MIN)  # so that a prefix scored 0 can still recover
        return math.log(r) / self._temperature(node.depth) if r > 0.0 else -math.inf

    def _temperature(self, t: int) -> float:
        if self.end_temperature is None:
            return self.temperature
        progress = min(1.0, (t - 1) / self.annealing_steps)
        return self.temperature + (self.end_temperature - self.temperature) * progress


# ---------------------------------------------------------------- the population


@dataclass(frozen=True, slots=True)
class Population:
    """N particles: nodes of the store, log-weights, and what the run has shown so far.

    `pinned` is the path of a conditional sweep's reference, root first; it sits in the last slot.
    """

    nodes: tuple[Node, ...]
    log_w: tuple[float, ...]
    failed: tuple[bool, ...]  # no step could be drawn: finished with G = 0
    pinned: tuple[Node, ...] = ()
    log_z: float = 0.0  # log Ẑ up to the last resampling
    ess: tuple[float, ...] = ()  # after each step
    ancestors: tuple[int, ...] = ()  # distinct ones, at each resampling
    degenerate: bool = False  # all weights were zero at some point
    stopped: SearchEnded | None = None

    @classmethod
    def start(cls, root: Node, n: int, pinned: Sequence[Node] = ()) -> "Population":
        """`n` particles at the root with weight 1."""
        return cls((root,) * n, (0.0,) * n, (False,) * n, tuple(pinned))

    @property
    def log_evidence(self) -> float:
        """log Ẑ, the mean weight included."""
        return self.log_z + log_mean_exp(self.log_w)

    @property
    def log_W(self) -> list[float]:
        """Normalised log-weights; where all weights are zero, uniform over particles that did not fail."""
        if degenerate(self.log_w) and not all(self.failed):
            return normalise([-math.inf if failed else 0.0 for failed in self.failed])
        return normalise(self.log_w)

    @property
    def weighted(self) -> list[tuple[Node, float]]:
        """Each particle with its normalised weight W."""
        return [(node, math.exp(w)) for node, w in zip(self.nodes, self.log_W, strict=True)]

    @property
    def diagnostics(self) -> dict[str, Any]:
        """What a result should tell about the run."""
        return {
            "ess": list(self.ess),
            "distinct_ancestors": list(self.ancestors),
            "resamples": len(self.ancestors),
            "degenerate": self.degenerate,
        }

    def active(self, max_steps: int) -> list[int]:
        """Slots of the particles that have not finished."""
        return [i for i, node in enumerate(self.nodes) if not self.failed[i] and not ended(node, max_steps)]

    def offspring(
        self, ancestors: Sequence[int], log_W: Sequence[float], log_q: Sequence[float]
    ) -> "Population":
        """The next generation: copies of the ancestors drawn from q, each with weight W_a / q_a."""
        return replace(
            self,
            nodes=tuple(self.nodes[a] for a in ancestors),
            log_w=tuple(0.0 if log_W[a] == log_q[a] else log_W[a] - log_q[a] for a in ancestors),
            failed=tuple(self.failed[a] for a in ancestors),
            log_z=self.log_evidence,
            ancestors=(*self.ancestors, len(set(ancestors))),
        )

    def draw(self, rng: Random) -> Node | None:
        """One particle with probability W; None if every particle failed."""
        if all(self.failed):
            return None
        return self.nodes[multinomial(self.log_W, rng, 1)[0]]


def ended(node: Node, max_steps: int) -> bool:
    """Finished, at the step cap, or three empty steps in a row."""
    return node.terminal or node.depth >= max_steps or stalled(node.state)


# ---------------------------------------------------------------- the sweep


class Resampler(Protocol):
    """Decides after step `t` whether and how to resample; returns the population to go on with."""

    def __call__(self, search: Search, population: Population, t: int, rng: Random) -> Flow[Population]:
        """The population after resampling, or the same one."""
        ...


def sweep(
    search: Search,
    population: Population,
    *,
    potential: Potential,
    resample: Resampler,
    max_steps: int,
    seed: int,
) -> Flow[Population]:
    """Propagate, weigh, resample, until every particle has finished; no resampling after that.

    Ended from outside, it returns the population of the last complete step, with `stopped` set.
    """
    t = 0
    try:
        while active := population.active(max_steps):
            t += 1
            before = population.nodes
            population = yield from propagate(search, population, active)
            log_w = potential.log_weights(population.log_w, before, population.nodes)
            log_w = [-math.inf if failed else w for w, failed in zip(log_w, population.failed, strict=True)]
            population = replace(
                population,
                log_w=tuple(log_w),
                ess=(*population.ess, ess(log_w)),
                degenerate=population.degenerate or degenerate(log_w),
            )
            if population.active(max_steps):
                population = yield from resample(search, population, t, Random(derive(seed, "resample", t)))
    except SearchEnded as end:
        return replace(population, stopped=end)
    return population


def propagate(search: Search, population: Population, active: Sequence[int]) -> Flow[Population]:
    """One step for every active particle. Particles at the same node share one request, n = their count."""
    nodes, failed = list(population.nodes), list(population.failed)
    slots: dict[Node, list[int]] = {}
    for i in active:
        if population.pinned and i == len(nodes) - 1:
            nodes[i] = population.pinned[nodes[i].depth + 1]
        else:
            slots.setdefault(nodes[i], []).append(i)
    if slots:
        drawn = yield from search.expand(list(slots), [len(own) for own in slots.values()])
        for own, children in zip(slots.values(), drawn, strict=True):
            for i, child in zip(own, children, strict=False):
                nodes[i] = child
            for i in own[len(children) :]:
                failed[i] = True
    return replace(population, nodes=tuple(nodes), failed=tuple(failed))


# ---------------------------------------------------------------- resampling steps


@dataclass(frozen=True, slots=True)
class Resample:
    """Resample if ESS < κN: κ = 1.01 always, 0.5 when half the sample is lost, 0 never."""

    scheme: str = "systematic"
    threshold: float = 1.01

    def __post_init__(self) -> None:
        scheme(self.scheme)
        demand(self.threshold >= 0, "threshold", self.threshold, "write 0 for never, 0.5, or 1.01 for always")

    def __call__(self, search: Search, population: Population, t: int, rng: Random) -> Flow[Population]:
        """Draw N ancestors from q (here W) where the weights have become too uneven."""
        n = len(population.nodes)
        if population.ess[-1] >= self.threshold * n:
            return population
        log_W = population.log_W
        log_q = self.proposal(log_W, population.ess[-1], t)
        ancestors = scheme(self.scheme)(log_q, rng, n)
        return (yield from resampled(population, ancestors, self.counted(log_W, log_q), log_q))

    def proposal(self, log_W: list[float], ess: float, t: int) -> list[float]:
        """log q, from which ancestors are drawn."""
        return log_W

    def counted(self, log_W: list[float], log_q: list[float]) -> list[float]:
        """The weights the offspring are given credit for."""
        return log_W


@dataclass(frozen=True, slots=True)
class ConditionalResample:
    """Every step: the reference survives in its slot, free slots choose among all N, multinomially."""

    def __call__(self, search: Search, population: Population, t: int, rng: Random) -> Flow[Population]:
        """Draw ancestors of the free slots; slot N keeps the reference."""
        n = len(population.nodes)
        log_W = population.log_W
        if not population.pinned:
            return (yield from resampled(population, multinomial(log_W, rng, n), log_W, log_W))
        ancestors = [*multinomial(log_W, rng, n - 1), n - 1]
        return (yield from resampled(population, ancestors, log_W, log_W))


def resampled(
    population: Population, ancestors: Sequence[int], log_W: Sequence[float], log_q: Sequence[float]
) -> Flow[Population]:
    """The offspring of `ancestors`, with a note in the trace."""
    after = population.offspring(ancestors, log_W, log_q)
    facts = {
        "nodes": [node.id for node in population.nodes],
        "ancestors": list(ancestors),
        "ess": population.ess[-1],
        "log_evidence": finite(after.log_z),
    }
    yield [Note("resample", facts)]
    return after


# ---------------------------------------------------------------- helpers


def together(flows: Sequence[Flow[T]]) -> Flow[list[T]]:
    """Run flows in lockstep, each round one batch of everyone's requests.

    Unlike `Fork` it fixes the order of events, so the flows may share a node store. What is thrown in
    reaches every flow that has not ended.
    """
    results: dict[int, T] = {}
    waiting: dict[int, Sequence[Request]] = {}
    replies: dict[int, Any] = dict.fromkeys(range(len(flows)))  # None starts a flow
    while True:
        for k, reply in replies.items():
            try:
                ended = isinstance(reply, SearchEnded)
                waiting[k] = flows[k].throw(reply) if ended else flows[k].send(reply)
            except StopIteration as end:
                waiting.pop(k, None)
                results[k] = end.value
        if not waiting:
            return [results[k] for k in range(len(flows))]
        replies = yield from _ask(waiting)


def _ask(waiting: Mapping[int, Sequence[Request]]) -> Flow[dict[int, Any]]:
    """The replies to each flow's batch; if the search is ended, that for each flow."""
    try:
        replies = iter((yield [request for batch in waiting.values() for request in batch]))
    except SearchEnded as end:
        return dict.fromkeys(waiting, end)
    return {k: list(islice(replies, len(batch))) for k, batch in waiting.items()}


def finite(x: float) -> float | None:
    """The number, or None for −∞, which JSON lacks."""
    return x if math.isfinite(x) else None


_POTENTIALS = "write 'product', 'telescoping' (for scores that judge the whole prefix) or 'reference'"
