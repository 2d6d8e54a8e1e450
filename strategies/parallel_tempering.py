"""Parallel tempering: several particle Gibbs chains, from tolerant to strict, that exchange references.

A chain of high weight temperature hardly listens to the reward and roams; the coldest one obeys it.
After each sweep neighbours may swap their references, so that a good solution found by a roaming chain
reaches the strict one. The language model's terms cancel in the acceptance ratio.

    chain k targets p · Π G^(1/T_k),  T_1 > … > T_M         L(x) = Σ_t log G_t(x)
    A = min(1, exp[(1/T_k − 1/T_{k+1}) · (L(x_{k+1}) − L(x_k))])

Source: Rollout Roulette, arXiv 2502.01618, appendix; swaps after Swendsen and Wang. Deviates: A is the
closed form of the paper's ratio; the paper ran only several chains of one iteration.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from ..serving.errors import SearchEnded, demand
from ..serving.flow import Flow, Note
from ..serving.seeds import derive
from .base import Policy, Result, Reward, Task
from .particle_gibbs import check_chain, draw_reference, pooled
from .pool import Select, check_select, conclude, why_stopped
from .search import Node, Search
from .smc import ConditionalResample, Phi, Population, Potential, PotentialKind, sweep, together

Path = tuple[Node, ...]


@dataclass(frozen=True, kw_only=True)
class ParallelTempering:
    """M chains (one for each temperature, hottest first) of `iterations` sweeps with N particles each.

    Cost: M·N·`iterations` generations at most; the chains' requests share batches. The answer is chosen
    from the coldest chain's particles after the first `burn_in` sweeps.
    """

    policy: Policy
    reward: Reward
    temperatures: tuple[float, ...] = (4.0, 2.0, 1.0)
    particles: int = 4
    iterations: int = 4
    burn_in: int = 0
    potential: PotentialKind = "product"
    phi: Phi = "id"
    select: Select = "vote"
    outcome: Reward | None = None
    max_steps: int = 40

    def __post_init__(self) -> None:
        ladder = self.temperatures
        falling = len(ladder) >= 2 and all(a > b > 0 for a, b in pairwise(ladder))
        demand(falling, "temperatures", ladder, "write two or more falling ones, such as (4.0, 2.0, 1.0)")
        check_chain(self.particles, self.iterations, self.burn_in, self.max_steps, self.potential)
        check_select(self.select, self.outcome)
        Potential(self.potential, self.phi)

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Run all chains in lockstep, then choose from the coldest one's particles."""
        search = Search(task, self.policy, self.reward, seed)
        history: list[list[Population]] = []
        swaps: list[bool] = []
        stopped: SearchEnded | str | None = None
        try:
            yield from self.run(search, history, swaps)
        except SearchEnded as end:
            stopped = end
        coldest = [populations[-1] for populations in history]
        return (
            yield from conclude(
                search,
                pooled(coldest, self.burn_in),
                select=self.select,
                outcome=self.outcome,
                stopped=stopped or why_stopped(search, [p for populations in history for p in populations]),
                log_evidence=coldest[0].log_evidence,
                iterations=len(history),
                swap_rate=sum(swaps) / max(1, len(swaps)),
                sweeps=[population.diagnostics for population in coldest],
            )
        )

    def run(self, search: Search, history: list[list[Population]], swaps: list[bool]) -> Flow[None]:
        """All iterations; every chain's populations and all swaps are recorded in the lists given."""
        references: list[Path] = [()] * len(self.temperatures)
        for m in range(self.iterations):
            populations = yield from self.sweeps(search, references, seed=derive(search.seed, "sweep", m))
            history.append(populations)
            if any(population.stopped for population in populations):
                return
            references = [
                draw_reference(population, derive(search.seed, "reference", m, k))
                for k, population in enumerate(populations)
            ]
            references, accepted = self.swap(references, Random(derive(search.seed, "swap", m)))
            swaps += accepted
            yield [Note("swap", {"accepted": accepted, "references": [x[-1].id for x in references if x]})]

    def sweeps(self, search: Search, references: list[Path], *, seed: int) -> Flow[list[Population]]:
        """One conditional sweep of every chain, in lockstep."""
        chains = [
            sweep(
                search,
                Population.start(search.root, self.particles, reference),
                potential=Potential(self.potential, self.phi, temperature),
                resample=ConditionalResample(),
                max_steps=self.max_steps,
                seed=derive(seed, "chain", k),
            )
            for k, (temperature, reference) in enumerate(zip(self.temperatures, references, strict=True))
        ]
        return together(chains)

    def swap(self, references: list[Path], rng: Random) -> tuple[list[Path], list[bool]]:
        """Offer each pair of neighbours, hottest first, an exchange of references."""
        after, swaps = list(references), []
        for k in range(len(after) - 1):
            hot, cold = after[k], after[k + 1]
            log_a = self.log_ratio(k, hot, cold) if hot and cold else -math.inf
            swaps.append(math.log(1.0 - rng.random()) < log_a)
            if swaps[-1]:
                after[k], after[k + 1] = cold, hot
        return after, swaps

    def log_ratio(self, k: int, hot: Path, cold: Path) -> float:
        """(1/T_k − 1/T_{k+1}) · (L(x_{k+1}) − L(x_k)); −∞ where neither solution is possible."""
        potential = Potential(self.potential, self.phi)
        gain = potential.log_likelihood(cold[-1]) - potential.log_likelihood(hot[-1])
        if math.isnan(gain):
            return -math.inf
        return (1.0 / self.temperatures[k] - 1.0 / self.temperatures[k + 1]) * gain
