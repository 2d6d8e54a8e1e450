"""Particle filtering with look-ahead: resample by what a particle may become, not only by what it is.

Before resampling, a few trial steps are drawn from every particle and scored; their mean potential ψ
modulates the resampling weights, so that a particle whose next steps look poor is dropped in time. The
trial steps are thrown away and ψ is divided out again: an auxiliary particle filter, unbiased for any ψ.

    q ∝ W · ψ,   ψ_i = (1/L) Σ_l G(x_i ⊕ trial step l)          w_i ← w_i / (N q_i)

Source: "Entropic Particle Filtering", arXiv 2510.05825 (look-ahead modulation), after Pitt and Shephard,
"Filtering via Simulation: Auxiliary Particle Filters". Deviates: reconstructed from the abstract; its_hub
1.2.0 leaves it out. ψ is kept above 1e-7, since a particle never drawn could not be weighted back.
"""

import math
from dataclasses import dataclass, field
from random import Random

from ..serving.errors import demand
from ..serving.flow import Flow
from .particle_filter import ParticleFilter
from .resampling import log_mean_exp, normalise, scheme
from .search import Node, Search
from .smc import R_MIN, Population, Potential, Resample, Resampler, resampled


@dataclass(frozen=True, kw_only=True)
class LookaheadFilter(ParticleFilter):
    """A `ParticleFilter` that draws `trials` more steps from each particle before each resampling; cost:
    1 + `trials` times the filter's."""

    trials: int = 1

    def __post_init__(self) -> None:
        ParticleFilter.__post_init__(self)
        demand(self.trials >= 1, "trials", self.trials, "write at least 1")
        demand(
            self.potential != "reference", "potential", self.potential, "write 'product', which has a target"
        )

    def resampler(self) -> Resampler:
        """Resampling by weight and prospect."""
        return LookaheadResample(
            self.resampling, self.threshold, self.trials, self.weighting(), self.max_steps
        )


@dataclass(frozen=True, slots=True)
class LookaheadResample(Resample):
    """Draw from q ∝ W · ψ instead of W."""

    trials: int = 1
    potential: Potential = field(default_factory=Potential)
    max_steps: int = 40

    def __call__(self, search: Search, population: Population, t: int, rng: Random) -> Flow[Population]:
        """Where the weights have become too uneven: look ahead, draw, divide ψ out again."""
        n = len(population.nodes)
        if population.ess[-1] >= self.threshold * n:
            return population
        log_psi = yield from self.prospects(search, population)
        log_W = population.log_W
        log_q = normalise([w + log_psi.get(x, 0.0) for w, x in zip(log_W, population.nodes, strict=True)])
        ancestors = scheme(self.scheme)(log_q, rng, n)
        return (yield from resampled(population, ancestors, log_W, log_q))

    def prospects(self, search: Search, population: Population) -> Flow[dict[Node, float]]:
        """log ψ of each node that can go on."""
        nodes = list({population.nodes[i]: None for i in population.active(self.max_steps)})
        drawn = yield from search.expand(nodes, [self.trials] * len(nodes))
        lowest = math.log(R_MIN)
        return {
            node: max(lowest, log_mean_exp([self.potential.log_g(child) for child in children]))
            if children
            else lowest
            for node, children in zip(nodes, drawn, strict=True)
        }
