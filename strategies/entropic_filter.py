"""Entropic particle filtering: resample less greedily early on, while the reward is still overconfident.

Where early weights have collapsed on a few particles (ESS/N < ½ in the first half of the run), ancestors
are drawn from flattened weights q ∝ W^(1/T), T ≥ 1, so that more lines survive. What the draw distorts
the offspring's weights take back, so the target and E[Ẑ] = Z stay as they were.

    ρ = t/T_max      ess:      T = max(1, (N/ESS)(1 − ρ))            w_i ← w_i / (N q_i)
                     entropy:  T = max(1, 1/(H + (1 − H)ρ))          H = −Σ W log W / log N
                     base:     T = max(1, 2 − ρ)

Source: formulas of its_hub 1.2.0; motivation "Entropic Particle Filtering", arXiv 2510.05825. Deviates:
the published code leaves the weights uncorrected, which changes the target; `corrected=False` does that,
and with `potential="reference"` it is the published method.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..serving.errors import demand
from .particle_filter import ParticleFilter
from .resampling import normalise
from .smc import Resample, Resampler

Anneal: TypeAlias = Literal["ess", "entropy", "base"]


@dataclass(frozen=True, kw_only=True)
class EntropicFilter(ParticleFilter):
    """A `ParticleFilter` with annealed resampling; ρ is measured against `max_steps`.

    Annealing takes place where ESS/N < `collapse` and ρ < `early`, the published values.
    """

    anneal: Anneal = "ess"
    collapse: float = 0.5
    early: float = 0.5
    corrected: bool = True

    def __post_init__(self) -> None:
        ParticleFilter.__post_init__(self)
        demand(self.anneal in ("ess", "entropy", "base"), "anneal", self.anneal, "write ess, entropy or base")
        demand(0 <= self.collapse <= 1, "collapse", self.collapse, "write a share of N such as 0.5")
        demand(0 <= self.early <= 1, "early", self.early, "write a share of max_steps such as 0.5")
        carried = self.potential != "reference" or not self.corrected
        demand(carried, "corrected", True, "potential='reference' carries no weights; write corrected=False")

    def resampler(self) -> Resampler:
        """Annealed resampling."""
        return AnnealedResample(
            self.resampling,
            self.threshold,
            self.anneal,
            self.collapse,
            self.early,
            self.max_steps,
            self.corrected,
        )


@dataclass(frozen=True, slots=True)
class AnnealedResample(Resample):
    """Draw from q ∝ W^(1/T) instead of W."""

    anneal: Anneal = "ess"
    collapse: float = 0.5
    early: float = 0.5
    max_steps: int = 40
    corrected: bool = True

    def proposal(self, log_W: list[float], ess: float, t: int) -> list[float]:
        """log q."""
        temperature = self.temperature(log_W, ess, t / self.max_steps)
        return log_W if temperature == 1.0 else normalise([x / temperature for x in log_W])

    def counted(self, log_W: list[float], log_q: list[float]) -> list[float]:
        """W, or q itself where the distortion is left uncorrected."""
        return log_W if self.corrected else log_q

    def temperature(self, log_W: list[float], ess: float, progress: float) -> float:
        """T of the annealing formula; 1 where the weights are even enough or the run is advanced."""
        n = len(log_W)
        if n == 1 or ess == 0.0 or ess / n >= self.collapse or progress >= self.early:
            return 1.0
        if self.anneal == "ess":
            return max(1.0, n / ess * (1.0 - progress))
        if self.anneal == "entropy":
            h = -sum(math.exp(x) * x for x in log_W if x > -math.inf) / math.log(n)
            return max(1.0, 1.0 / (h + (1.0 - h) * progress))
        return max(1.0, 2.0 - progress)
