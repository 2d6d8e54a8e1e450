"""Particle filtering: let N partial solutions compete, step by step, for the right to be continued.

The language model proposes a step for each particle, a process reward judges the new prefix, and
particles are resampled in proportion to their weights. Unlike beam search nothing is cut for certain,
so an early misjudgement can be survived. The mean weight estimates how likely a solution passes all
tests: a measure of the problem's difficulty.

    x_i ~ p(step | x_i),   w_i ← w_i · G_t(x_i),   W = w / Σw,   ESS = 1 / ΣW²
    ESS < κN:  Ẑ ← Ẑ · mean(w),  ancestors ~ W,  w ← 1            π(x) ∝ p(x) Π_t G_t(x)

Source: Rollout Roulette: A Probabilistic Inference Approach to Inference-Time Scaling of LLMs using
Particle-Based Monte Carlo Methods, arXiv 2502.01618. Deviates: weights are carried, finished particles
have G = 1, nothing is resampled once all have finished; hence E[Ẑ] = Z and E[Ẑ Σ W f] = Z E_π[f].
Normalised weights alone are biased of order 1/N: the paper's theorem about them does not hold.

`potential="reference"` gives the published code's weights instead: w_i = odds(r_i)^(1/T_w) of the last
score at every step, finished particles included; it has no fixed target and no evidence, and goes with
`resampling="multinomial"`. its_hub 1.2.0 resamples once more after the last step; here the final weights
are kept, and that step is one more multinomial draw from `Result.candidates`.
"""

from dataclasses import dataclass

from ..serving.errors import demand
from ..serving.flow import Flow
from .base import Policy, Result, Reward, Task
from .pool import Select, check_select, conclude, why_stopped
from .search import Search
from .smc import Phi, Population, Potential, PotentialKind, Resample, Resampler, sweep


@dataclass(frozen=True, kw_only=True)
class ParticleFilter:
    """N particles; cost: at most N proposals a step, one reward pass for each distinct new prefix.

    `select`: how the answer is chosen from the final weights W. "vote" sums W over equal answers and
    falls back to "argmax_score" where no answer is defined; "argmax_score" is the published choice;
    "orm" asks `outcome`, a reward for complete answers.
    `threshold`: κ; the paper resamples at every step (1.01), 0.5 does when half the sample is lost.
    """

    policy: Policy
    reward: Reward
    particles: int = 8
    potential: PotentialKind = "product"
    phi: Phi = "id"
    weight_temperature: float = 1.0
    end_weight_temperature: float | None = None  # linear from the former over `annealing_steps`
    annealing_steps: int = 10
    resampling: str = "systematic"
    threshold: float = 1.01
    select: Select = "vote"
    outcome: Reward | None = None
    max_steps: int = 40  # of the published code

    def __post_init__(self) -> None:
        demand(self.particles >= 1, "particles", self.particles, "write at least 1, such as 8")
        demand(self.max_steps >= 1, "max_steps", self.max_steps, "write at least 1, such as 40")
        check_select(self.select, self.outcome)
        self.weighting()
        self.resampler()

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Filter, then choose among the final particles by their weights."""
        search = Search(task, self.policy, self.reward, seed)
        population = yield from self.filter(search)
        log_z = None if self.potential == "reference" else population.log_evidence
        return (
            yield from conclude(
                search,
                population.weighted,
                select=self.select,
                outcome=self.outcome,
                stopped=why_stopped(search, [population]),
                log_evidence=log_z,
                **population.diagnostics,
            )
        )

    def filter(self, search: Search) -> Flow[Population]:
        """The final population, weights and evidence."""
        start = Population.start(search.root, self.particles)
        return sweep(
            search,
            start,
            potential=self.weighting(),
            resample=self.resampler(),
            max_steps=self.max_steps,
            seed=search.seed,
        )

    def weighting(self) -> Potential:
        """G_t."""
        ends = self.end_weight_temperature, self.annealing_steps
        return Potential(self.potential, self.phi, self.weight_temperature, *ends)

    def resampler(self) -> Resampler:
        """When and how to resample."""
        return Resample(self.resampling, self.threshold)
