"""Particle Gibbs: repeat the particle filter, each time around one solution kept from the last.

The first iteration is a particle filter; one of its final particles, drawn by weight, becomes the
reference. Every further iteration is a conditional filter: the reference takes part with its own
prefixes and weights, cannot be lost, and may be forked by the others; then a new reference is drawn.
The sequence of references leaves π invariant for any N ≥ 2, so more iterations mean less bias.

    free slots:  a ~ W over all N particles         slot N:  the reference, with G_t of its own prefix
    PGAS:        slot N's ancestor ~ w^i · p(x_ref[t:] | x^i) · Π_{s≥t} G_s(x^i ⊕ x_ref[t:s])

Source: Rollout Roulette, arXiv 2502.01618, after Andrieu, Doucet and Holenstein (particle MCMC) and
Lindsten, Jordan and Schön (ancestor sampling, arXiv 1401.0604). Deviates from the published code: the
reference is drawn before any resampling and weighted at each step by its score at that step; with the
code's weighting the chain does not keep π.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol, runtime_checkable

from ..serving.base import Capability
from ..serving.errors import MissingCapability, demand
from ..serving.flow import Failure, Flow
from ..serving.seeds import derive
from .base import Policy, Result, Reward, Score, State, Step, Task
from .pool import Select, check_select, conclude, why_stopped
from .resampling import degenerate, multinomial
from .search import Node, Search
from .smc import (
    ConditionalResample,
    Phi,
    Population,
    Potential,
    PotentialKind,
    Resampler,
    ended,
    resampled,
    sweep,
)


@runtime_checkable
class Scores(Protocol):
    """A policy that can tell how likely given steps are; ancestor sampling needs one."""

    def logp(self, states: Sequence[State], continuations: Sequence[Sequence[Step]]) -> Flow[list[Score]]:
        """log p(continuations[i] | states[i]) under the distribution that `propose` draws from; −∞ where
        it cannot occur, a `Failure` where it could not be found out."""
        ...


@dataclass(frozen=True, kw_only=True)
class ParticleGibbs:
    """`iterations` sweeps of N particles; cost: N·`iterations` generations at most.

    The answer is chosen from all particles of the sweeps after the first `burn_in`, each sweep counting
    the same. `log_evidence` in the diagnostics is the first sweep's: only that one is unbiased.
    `ancestor_sampling` re-draws the reference's past at each step, which moves the chain faster; it
    needs a policy that `Scores`, and scores N·(steps left) more prefixes a step.
    """

    policy: Policy
    reward: Reward
    particles: int = 8
    iterations: int = 4
    burn_in: int = 0
    ancestor_sampling: bool = False
    potential: PotentialKind = "product"
    phi: Phi = "id"
    weight_temperature: float = 1.0
    select: Select = "vote"
    outcome: Reward | None = None
    max_steps: int = 40

    def __post_init__(self) -> None:
        check_chain(self.particles, self.iterations, self.burn_in, self.max_steps, self.potential)
        check_select(self.select, self.outcome)
        self.weighting()
        self.resampler()

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """Ancestor sampling scores given continuations, where the policy draws from an engine at all."""
        needed = self.ancestor_sampling and self.policy.requires
        return {"policy": frozenset({"logprob"})} if needed else {}

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Run the chain, then choose from the pooled particles."""
        search = Search(task, self.policy, self.reward, seed)
        sweeps: list[Population] = []
        reference: tuple[Node, ...] = ()
        moves = 0
        for m in range(self.iterations):
            population = yield from self.sweep(search, reference, seed=derive(seed, "sweep", m))
            sweeps.append(population)
            if population.stopped is not None:
                break
            drawn = draw_reference(population, derive(seed, "reference", m))
            moves += m > 0 and drawn != reference
            reference = drawn
        return (
            yield from conclude(
                search,
                pooled(sweeps, self.burn_in),
                select=self.select,
                outcome=self.outcome,
                stopped=why_stopped(search, sweeps),
                log_evidence=sweeps[0].log_evidence,
                iterations=len(sweeps),
                moves=moves,
                sweeps=[population.diagnostics for population in sweeps],
            )
        )

    def sweep(self, search: Search, reference: Sequence[Node], *, seed: int) -> Flow[Population]:
        """One filter, conditional on the reference's path if there is one."""
        start = Population.start(search.root, self.particles, reference)
        return sweep(
            search,
            start,
            potential=self.weighting(),
            resample=self.resampler(),
            max_steps=self.max_steps,
            seed=seed,
        )

    def weighting(self) -> Potential:
        """G_t."""
        return Potential(self.potential, self.phi, self.weight_temperature)

    def resampler(self) -> Resampler:
        """Conditional multinomial resampling at every step."""
        if not self.ancestor_sampling:
            return ConditionalResample()
        if not isinstance(self.policy, Scores):
            raise MissingCapability(
                f"ancestor_sampling needs a policy with logp(states, continuations), which "
                f"{type(self.policy).__name__} lacks. Write ancestor_sampling=False."
            )
        return AncestorResample(self.policy, self.weighting(), self.max_steps)


@dataclass(frozen=True, slots=True)
class AncestorResample:
    """Conditional resampling in which the reference's past is drawn anew (PGAS)."""

    scores: Scores
    potential: Potential
    max_steps: int

    def __call__(self, search: Search, population: Population, t: int, rng: Random) -> Flow[Population]:
        """Ancestors of the free slots ~ W; that of slot N ~ W · p(rest | x) · Π G, if it has a rest."""
        rest = population.pinned[population.nodes[-1].depth + 1 :]
        if not rest:
            return (yield from ConditionalResample()(search, population, t, rng))
        log_W = population.log_W
        paths = yield from self.pasts(search, population, rest)
        log_v = [
            w + log_p + sum(map(self.potential.log_g, path))
            for w, (log_p, path) in zip(log_W, paths, strict=True)
        ]
        n = len(log_W)
        [a] = [n - 1] if degenerate(log_v) else multinomial(log_v, rng, 1)
        ancestors = [*multinomial(log_W, rng, n - 1), a]
        after = yield from resampled(population, ancestors, log_W, log_W)
        return replace(after, pinned=(*population.nodes[a].path(), *paths[a][1]))

    def pasts(
        self, search: Search, population: Population, rest: Sequence[Node]
    ) -> "Flow[list[tuple[float, Sequence[Node]]]]":
        """For each particle: log p of the reference's rest after it, and the rest's nodes there."""
        steps = [node.state.step for node in rest if node.state.step is not None]
        slots = [i for i in population.active(self.max_steps) if population.log_w[i] > -math.inf]
        states = [population.nodes[i].state for i in slots]
        log_p = yield from self.scores.logp(states, [steps] * len(slots))
        paths: list[tuple[float, Sequence[Node]]] = [(-math.inf, ())] * len(population.nodes)
        for i, known in zip(slots, log_p, strict=True):
            path: Sequence[Node] = rest
            p = -math.inf if isinstance(known, Failure) else known
            if i != len(population.nodes) - 1 and p > -math.inf:
                path = yield from search.graft(population.nodes[i], steps, score=False)
                whole = [ended(node, self.max_steps) for node in path]
                p = p if whole.index(True) == len(whole) - 1 else -math.inf
            paths[i] = p, path
        yield from search.score([node for p, path in paths if p > -math.inf for node in path])
        return paths


def check_chain(
    particles: int, iterations: int, burn_in: int, max_steps: int, potential: PotentialKind
) -> None:
    """Refuse parameters with which no chain of conditional sweeps can run."""
    demand(particles >= 2, "particles", particles, "write at least 2: one is the reference")
    demand(iterations >= 1, "iterations", iterations, "write at least 1, such as 4")
    fits = 0 <= burn_in < iterations
    demand(fits, "burn_in", burn_in, f"write 0 to {iterations - 1}, less than iterations")
    demand(max_steps >= 1, "max_steps", max_steps, "write at least 1, such as 40")
    demand(potential != "reference", "potential", potential, "write 'product', which has a target")


def draw_reference(population: Population, seed: int) -> tuple[Node, ...]:
    """The path of one final particle, drawn with probability W; empty if every particle failed."""
    node = population.draw(Random(seed))
    return () if node is None else tuple(node.path())


def pooled(sweeps: Sequence[Population], burn_in: int) -> list[tuple[Node, float]]:
    """All particles of the complete sweeps after the burn-in, or of what there is instead."""
    complete = [p for p in sweeps if p.stopped is None] or list(sweeps)
    counted = complete[burn_in:] or complete[-1:]
    return [(node, w / len(counted)) for p in counted for node, w in p.weighted]
