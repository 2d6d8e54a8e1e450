"""Statistics for the laws of the particle methods: exact targets by enumeration, and tests against them."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from scipy import stats

from abduce.serving.errors import BudgetExhausted
from abduce.serving.flow import Flow, Note
from abduce.serving.seeds import derive
from abduce.strategies.base import Policy, Proposal, Score, State, Step, Task
from abduce.strategies.parallel_tempering import ParallelTempering
from abduce.strategies.particle_filter import ParticleFilter
from abduce.strategies.particle_gibbs import ParticleGibbs, draw_reference
from abduce.strategies.search import Node, Search
from abduce.strategies.smc import (
    ConditionalResample,
    Population,
    Potential,
    Resample,
    Resampler,
    resampled,
    sweep,
)
from abduce.strategies.toys import ToyTree, answers, drain

TASK = Task("toy")


class ExactTree(ToyTree):
    """A toy tree that also tells how likely given steps are (the protocol `Scores`)."""

    def logp(self, states: Sequence[State], continuations: Sequence[Sequence[Step]]) -> Flow[list[Score]]:
        """Exact, from the enumerated children; −∞ for a step that cannot occur."""
        found: list[Score] = []
        for state, steps in zip(states, continuations, strict=True):
            total = 0.0
            for step in steps:
                ways = {} if self.terminal(state) else {s.text: p for s, p in self.children(state)}
                total += math.log(ways[step.text]) if step.text in ways else -math.inf
                state = state.extend(step)
            found.append(total)
        yield [Note("logp")]
        return found

    def force(self, states: Sequence[State], seeds: Sequence[int]) -> Flow[list[Proposal]]:
        """An answer at once."""
        yield [Note("force")]
        return [Step("!", last=True) for _ in states]

    def answer(self, state: State) -> Hashable | None:
        """The last two letters, of a forced solution too."""
        return state.text[-2:] if state.step is not None and state.step.last else super().answer(state)


class FlatTree(ExactTree):
    """Scores drawn together around ½, so that hardly any particle dominates."""

    def score(self, states: Sequence[State]) -> Flow[list[Score]]:
        """0.4 to 0.6."""
        scores = yield from super().score(states)
        return [0.4 + 0.2 * score for score in scores]


class Constant:
    """A reward that says the same of everything: G ≡ value."""

    def __init__(self, value: float = 1.0) -> None:
        self.value = value

    def score(self, states: Sequence[State]) -> Flow[list[Score]]:
        """The value, for each."""
        yield []
        return [self.value for _ in states]


def interrupted(flow: Flow[Any], at: int, times: int) -> Any:
    """Run a flow over a toy; from its `at`-th yield on throw BudgetExhausted, at most `times` times."""
    try:
        batch = next(flow)
        for k in range(10_000):
            if k >= at and times:
                times -= 1
                batch = flow.throw(BudgetExhausted("tokens", 9))
            else:
                batch = flow.send(answers(batch))
    except StopIteration as end:
        return end.value
    raise AssertionError("the flow does not end")


# ---------------------------------------------------------------- exact targets


@dataclass(frozen=True)
class Exact:
    """All leaves of a tree with their prior p and weight ΠG; `f` is 1 on the half of Z with largest G."""

    texts: list[str]
    leaves: list[State]
    p: np.ndarray
    g: np.ndarray

    @property
    def z(self) -> float:
        return float(self.p @ self.g)

    @property
    def pi(self) -> np.ndarray:
        return self.p * self.g / self.z

    @property
    def f(self) -> dict[str, float]:
        rank = np.argsort(-self.g)
        top = rank[: int(np.searchsorted(np.cumsum(self.pi[rank]), 0.5)) + 1]
        return {text: float(i in top) for i, text in enumerate(self.texts)}

    @property
    def zf(self) -> float:
        return self.z * float(self.pi @ [self.f[text] for text in self.texts])


def enumerate_target(tree: ToyTree, potential: Potential) -> Exact:
    """The target of a potential on a tree, by enumeration."""
    search = Search(TASK, tree, tree, 0)
    leaves = tree.leaves()
    g = []
    for state, _ in leaves:
        path = drain(search.graft(search.root, state.steps))
        g.append(math.exp(potential.log_likelihood(path[-1])))
    texts = [state.text for state, _ in leaves]
    assert len(set(texts)) == len(texts)
    return Exact(texts, [s for s, _ in leaves], np.array([p for _, p in leaves]), np.array(g))


# ---------------------------------------------------------------- evidence (laws 1 to 3)


@dataclass(frozen=True)
class Runs:
    """Independent runs of a filter: Ẑ, Ẑ ΣWf and ΣWf of each, and the distinct ancestors at the end."""

    z: np.ndarray
    zf: np.ndarray
    wf: np.ndarray

    @property
    def log_z(self) -> np.ndarray:
        return np.log(self.z)


def run_filter(method: ParticleFilter, exact: Exact, replicates: int, first: int = 0) -> Runs:
    """Replicates of a filter on its own seeds."""
    f = exact.f
    z, wf = np.empty(replicates), np.empty(replicates)
    for k in range(replicates):
        population = drain(method.filter(Search(TASK, method.policy, method.reward, first + k)))
        z[k] = math.exp(population.log_evidence)
        wf[k] = sum(w * f[node.state.text] for node, w in population.weighted)
    return Runs(z, z * wf, wf)


def deviation(samples: np.ndarray, expected: float) -> float:
    """(mean − expected) in standard errors."""
    error = samples.std(ddof=1) / math.sqrt(len(samples))
    return float((samples.mean() - expected) / error) if error > 0 else 0.0


def check_unbiased(methods: Sequence[ParticleFilter], exact: Exact, replicates: int) -> None:
    """Ẑ and Ẑ ΣWf of each method are within 4 standard errors of Z and Z E_π[f], and so are they of all
    methods together: what all of them get wrong shows in few runs of each. The full grid with 8,000 runs
    each: `benchmarks/particle_laws.py`."""
    runs = [run_filter(method, exact, replicates, i * replicates) for i, method in enumerate(methods)]
    together = Runs(*(np.concatenate([getattr(each, name) for each in runs]) for name in ("z", "zf", "wf")))
    for method, each in zip([*methods, "all together"], [*runs, together], strict=True):
        assert abs(deviation(each.z, exact.z)) < 4, method
        assert abs(deviation(each.zf, exact.zf)) < 4, method


# ---------------------------------------------------------------- distributions (laws 4 and 9)


def chi2_p(counts: Counter[str] | dict[str, int], texts: Sequence[str], pi: Sequence[float]) -> float:
    """p-value of the counts under π; cells expected below 5 are pooled."""
    return chi2(counts, texts, pi)[1]


def chi2(
    counts: Counter[str] | dict[str, int], texts: Sequence[str], pi: Sequence[float]
) -> tuple[float, float, int]:
    """χ², its p-value and the degrees of freedom."""
    n = sum(counts.values())
    seen = np.array([counts.get(text, 0) for text in texts], float)
    assert seen.sum() == n, "a leaf outside the tree was counted"
    want = np.asarray(pi) * n
    small = want < 5
    if small.any():
        seen = np.append(seen[~small], seen[small].sum())
        want = np.append(want[~small], want[small].sum())
    if want[-1] == 0:
        assert seen[-1] == 0, "an impossible leaf was drawn"
        seen, want = seen[:-1], want[:-1]
    statistic = float(((seen - want) ** 2 / want).sum())
    return statistic, float(stats.chi2.sf(statistic, len(want) - 1)), len(want) - 1


def same_distribution_p(a: Counter[str], b: Counter[str]) -> float:
    """p-value of two samples having one distribution; rare cells are pooled."""
    rows, rest = [], np.zeros(2)
    for key in sorted(set(a) | set(b)):
        row = np.array([a.get(key, 0), b.get(key, 0)], float)
        if row.sum() < 10:
            rest += row
        else:
            rows.append(row)
    if rest.sum():
        rows.append(rest)
    return float(stats.chi2_contingency(np.array(rows).T).pvalue)


# ---------------------------------------------------------------- Gibbs kernels (law 4)

Kernel = Callable[[Search, Sequence[Node], int], Population]


def gibbs_kernel(method: ParticleGibbs) -> Kernel:
    """One conditional sweep of the method."""
    return lambda search, reference, seed: drain(method.sweep(search, reference, seed=seed))


@dataclass(frozen=True, slots=True)
class FinalScoreReference(Potential):
    """A fault of the published code: the reference counts with its final score at every step. With
    kind "reference" there is the other one too: finished particles are weighted anew at every step."""

    final: float = 0.0

    def log_weights(
        self, log_w: Sequence[float], before: Sequence[Node], after: Sequence[Node]
    ) -> list[float]:
        """As they should be, but for the last slot."""
        right = Potential.log_weights(self, log_w, before, after)
        if self.kind == "reference":
            return [*right[:-1], self.final]
        return [*right[:-1], log_w[-1] + self.final if after[-1] is not before[-1] else right[-1]]


def faulty_kernel(potential: Potential, n: int, max_steps: int) -> Kernel:
    """A conditional sweep of N particles with the published fault(s)."""

    def kernel(search: Search, reference: Sequence[Node], seed: int) -> Population:
        final = potential.log_phi(reference[-1])
        return drain(
            sweep(
                search,
                Population.start(search.root, n, reference),
                potential=FinalScoreReference(potential.kind, potential.phi, final=final),
                resample=ConditionalResample(),
                max_steps=max_steps,
                seed=seed,
            )
        )

    return kernel


def kernel_draws(
    kernel: Kernel,
    tree: ToyTree,
    start: Callable[[Random], State],
    draws: int,
    *,
    sweeps: int = 1,
    first: int = 0,
) -> Counter[str]:
    """Leaves after `sweeps` steps of a Gibbs kernel from references that `start` draws."""
    seen: Counter[str] = Counter()
    for k in range(first, first + draws):
        search = Search(TASK, tree, tree, k)
        leaf = start(Random(derive(k, "start")))
        path = (search.root, *drain(search.graft(search.root, leaf.steps)))
        for m in range(sweeps):
            population = kernel(search, path, derive(k, "kernel", m))
            path = draw_reference(population, derive(k, "draw", m))
        seen[path[-1].state.text] += 1
    return seen


def exact_start(exact: Exact) -> Callable[[Random], State]:
    """A leaf drawn exactly from π."""
    pi = list(exact.pi)
    return lambda rng: rng.choices(exact.leaves, pi)[0]


def tempering_draws(
    method: ParallelTempering, tree: ToyTree, draws: int, *, sweeps: int = 1, first: int = 0
) -> list[Counter[str]]:
    """Leaves of each chain after sweeps and swaps from references drawn exactly from its own target."""
    potentials = [Potential(method.potential, method.phi, t) for t in method.temperatures]
    starts = [exact_start(enumerate_target(tree, potential)) for potential in potentials]
    seen: list[Counter[str]] = [Counter() for _ in starts]
    for k in range(first, first + draws):
        search, rng = Search(TASK, tree, tree, k), Random(derive(k, "start"))
        leaves = [start(rng) for start in starts]
        paths = [(search.root, *drain(search.graft(search.root, leaf.steps))) for leaf in leaves]
        for m in range(sweeps):
            populations = drain(method.sweeps(search, paths, seed=derive(k, "sweep", m)))
            drawn = [draw_reference(p, derive(k, "draw", m, i)) for i, p in enumerate(populations)]
            paths, _ = method.swap(drawn, Random(derive(k, "swap", m)))
        for counter, path in zip(seen, paths, strict=True):
            counter[path[-1].state.text] += 1
    return seen


# ---------------------------------------------------------------- early errors (law 8)


@dataclass(frozen=True, slots=True)
class TopB(Resample):
    """Beam search as resampling: the B best scored particles go on, N/B times each."""

    beams: int = 2

    def __call__(self, search: Search, population: Population, t: int, rng: Random) -> Flow[Population]:
        """No chance, no weights."""
        nodes = population.nodes
        best = sorted(range(len(nodes)), key=lambda i: -(nodes[i].score or 0.0))[: self.beams]
        ancestors = [i for i in best for _ in range(len(nodes) // self.beams)]
        log_W = population.log_W
        return (yield from resampled(population, ancestors, log_W, log_W))


@dataclass(frozen=True, kw_only=True)
class BeamOfParticles(ParticleFilter):
    """Beam search with the filter's budget: N proposals a step."""

    beams: int = 2

    def resampler(self) -> Resampler:
        """The B best."""
        return TopB(beams=self.beams)


class EarlyNoise(Policy):
    """Six steps, each wrong with probability `error`; one wrong step spoils the solution. The score is the
    true chance of success, its logit blurred by noise of `sigma` in the first half and 0.5 after that."""

    steps = 6

    def __init__(self, error: float, sigma: float, seed: int) -> None:
        self.error, self.sigma, self.seed = error, sigma, seed

    def propose(
        self, states: Sequence[State], counts: Sequence[int], seeds: Sequence[int]
    ) -> Flow[list[list[Proposal]]]:
        """Right or wrong, and a number that tells draws apart."""
        yield [Note("propose")]
        return [
            [self._step(state, Random(derive(seed, i))) for i in range(n)]
            for state, n, seed in zip(states, counts, seeds, strict=True)
        ]

    def _step(self, state: State, rng: Random) -> Step:
        mark = "-" if rng.random() < self.error else "+"
        return Step(f"{mark}{rng.randrange(10**6)}", last=state.depth == self.steps - 1)

    def terminal(self, state: State) -> bool:
        """After six steps."""
        return state.depth == self.steps

    def answer(self, state: State) -> Hashable | None:
        """Whether every step was right."""
        return "-" not in state.text

    def score(self, states: Sequence[State]) -> Flow[list[Score]]:
        """σ(logit P(success | prefix) + noise)."""
        yield [Note("score")]
        return [self._score(state) for state in states]

    def _score(self, state: State) -> float:
        chance = 0.02 if "-" in state.text else 0.98 * (1 - self.error) ** (self.steps - state.depth)
        blur = self.sigma if state.depth <= self.steps // 2 else 0.5
        noise = Random(derive(self.seed, "noise", state.text)).gauss(0.0, blur)
        return 1 / (1 + math.exp(-(math.log(chance / (1 - chance)) + noise)))


def successes(
    method: Callable[..., ParticleFilter], error: float, sigma: float, n: int, **parameters: Any
) -> np.ndarray:
    """For each of n tasks, 1 if the method chooses a right solution by its last score."""
    found = np.empty(n)
    for k in range(n):
        toy = EarlyNoise(error, sigma, k)
        solver = method(policy=toy, reward=toy, select="argmax_score", **parameters)
        found[k] = float(drain(solver.solve(TASK, seed=k)).answer is True)
    return found


ALWAYS: Mapping[str, float] = {"collapse": 1.0, "early": 1.0}
"""Anneal at every step, however even the weights: the hardest case for the correction."""


def mean_ancestors(method: ParticleFilter, replicates: int, first: int = 0) -> float:
    """Distinct first steps among the final particles, on average."""
    total = 0
    for k in range(first, first + replicates):
        population = drain(method.filter(Search(TASK, method.policy, method.reward, k)))
        total += len({node.path()[1] for node in population.nodes})
    return total / replicates
