"""Do the particle methods keep their laws on the full grid: unbiased evidence, consistency, invariance?

Every law comes with a negative control, a method with a known fault that must fail the same test. The
table says what was measured, what was demanded, and whether it was met; the exit code is 1 if any law
fails or any control passes.

    python benchmarks/particle_laws.py [--jobs 2] [--replicates 8000] [--draws 60000] [--only evidence]
"""

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from arguments import command
from printing import met

from abduce.strategies.entropic_filter import EntropicFilter
from abduce.strategies.parallel_tempering import ParallelTempering
from abduce.strategies.particle_filter import ParticleFilter
from abduce.strategies.particle_gibbs import ParticleGibbs
from abduce.strategies.smc import Potential
from tests.strategies import laws

BIG = laws.ExactTree(3, 5, seed=11)  # evidence, 360 leaves
SMALL = laws.ExactTree(3, 4, seed=5)  # consistency, 117 leaves
TINY = laws.ExactTree(2, 4, seed=2)  # Gibbs, 28 leaves
POTENTIALS = list(product(("product", "telescoping"), ("id", "odds")))
SCHEMES = ("multinomial", "stratified", "systematic", "residual")
RULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "κ=1.01": (ParticleFilter, {"threshold": 1.01}),
    "κ=0.5": (ParticleFilter, {"threshold": 0.5}),
    "annealed": (EntropicFilter, {"anneal": "base", "max_steps": 12, **laws.ALWAYS}),
}
SIGMA = 4.0


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    law: str
    setting: str
    figure: str
    demand: str
    met: bool
    value: float = 0.0


Check = Callable[[], Row]


def main() -> int:
    """Run all checks, print the table."""
    parser = command(__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--replicates", type=int, default=8000)
    parser.add_argument("--draws", type=int, default=60_000)
    parser.add_argument("--only", choices=sorted(GROUPS), default=None)
    options = parser.parse_args()
    groups = [options.only] if options.only else list(GROUPS)
    checks = [check for name in groups for check in GROUPS[name](options)]
    began = time.time()
    rows: list[Row] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for row in pool.map(call, checks):
            rows.append(row)
            print(f"{row.law:14} {row.setting:58} {row.figure:34} {row.demand:26} {met(row.met)}", flush=True)
    failed = [row for row in rows if not row.met]
    worst = max((row.value for row in rows if row.law == "evidence"), default=0.0)
    print(
        f"\n{len(rows)} checks, {len(failed)} not met; largest |deviation| of the evidence law {worst:.2f} σ"
    )
    print(f"{time.time() - began:.0f} s with {options.jobs} jobs")
    return 1 if failed else 0


def call(check: Check) -> Row:
    """For the pool."""
    return check()


# ---------------------------------------------------------------- law 1: E[Ẑ] = Z, E[Ẑ ΣWf] = Z E_π[f]


def evidence(options: argparse.Namespace) -> Iterator[Check]:
    """The grid, and what must fail on it."""
    grid = product(POTENTIALS, SCHEMES, RULES, (1, 2, 8))
    for (kind, phi), scheme, rule, n in grid:
        yield partial(unbiased, kind, phi, scheme, rule, n, options.replicates)


def unbiased(kind: Any, phi: Any, scheme: str, rule: str, n: int, replicates: int) -> Row:
    """Mean of Ẑ and of Ẑ ΣWf against enumeration."""
    make, parameters = RULES[rule]
    method = make(
        policy=BIG, reward=BIG, potential=kind, phi=phi, resampling=scheme, particles=n, **parameters
    )
    exact = laws.enumerate_target(BIG, Potential(kind, phi))
    runs = laws.run_filter(method, exact, replicates)
    z, zf = laws.deviation(runs.z, exact.z), laws.deviation(runs.zf, exact.zf)
    worst = max(abs(z), abs(zf))
    figure = f"Ẑ {z:+.2f} σ, ẐΣWf {zf:+.2f} σ"
    setting = f"{kind} {phi} {scheme} {rule} N={n}"
    return Row("evidence", setting, figure, f"|·| ≤ {SIGMA:g} σ", worst <= SIGMA, worst)


def controls(options: argparse.Namespace) -> Iterator[Check]:
    """Self-normalised estimates, published weights, uncorrected annealing."""
    for kind, phi in POTENTIALS:
        yield partial(self_normalised, kind, phi, options.replicates)
        yield partial(published, kind, phi, options.replicates)
        if (kind, phi) != ("product", "id"):  # there the weights are too even for annealing to do much
            yield partial(uncorrected, kind, phi, options.replicates)


def self_normalised(kind: Any, phi: Any, replicates: int) -> Row:
    """ΣWf at N = 2."""
    exact = laws.enumerate_target(BIG, Potential(kind, phi))
    method = ParticleFilter(policy=BIG, reward=BIG, potential=kind, phi=phi, particles=2)
    runs = laws.run_filter(method, exact, replicates)
    sigma = laws.deviation(runs.wf, exact.zf / exact.z)
    figure = f"{runs.wf.mean():.3f} for {exact.zf / exact.z:.3f} ({sigma:+.1f} σ)"
    return Row("control 1", f"ΣWf alone, {kind} {phi} N=2", figure, "|·| > 6 σ", abs(sigma) > 6)


def published(kind: Any, phi: Any, replicates: int) -> Row:
    """The reference mode against every target it might have."""
    exact = laws.enumerate_target(BIG, Potential(kind, phi))
    method = ParticleFilter(policy=BIG, reward=BIG, potential="reference", resampling="multinomial")
    return biased("published weights", method, exact, f"{kind} {phi}", replicates)


def uncorrected(kind: Any, phi: Any, replicates: int) -> Row:
    """Annealing whose distortion is not taken back."""
    exact = laws.enumerate_target(BIG, Potential(kind, phi))
    method = EntropicFilter(
        policy=BIG, reward=BIG, potential=kind, phi=phi, corrected=False, max_steps=12, **laws.ALWAYS
    )
    return biased("uncorrected annealing", method, exact, f"{kind} {phi}", replicates)


def biased(name: str, method: ParticleFilter, exact: laws.Exact, target: str, replicates: int) -> Row:
    """A control on the evidence law: it must be far off."""
    runs = laws.run_filter(method, exact, replicates)
    sigma = max(laws.deviation(runs.z, exact.z), laws.deviation(runs.zf, exact.zf), key=abs)
    figure = f"Ẑ {runs.z.mean():.4g} for Z {exact.z:.4g} ({sigma:+.1f} σ)"
    return Row("control 1", f"{name}, {target} N=8", figure, "|·| > 6 σ", abs(sigma) > 6)


# ---------------------------------------------------------------- law 3: bias and variance ~ 1/N


def consistency(options: argparse.Namespace) -> Iterator[Check]:
    """Slopes against N, and systematic against multinomial."""
    for kind in ("product", "telescoping"):
        yield partial(slopes, kind, 2 * options.replicates)
        for n in (2, 4, 8, 16):
            yield partial(spread, kind, n, options.replicates)


def slopes(kind: Any, replicates: int) -> Row:
    """log |bias| and log var(log Ẑ) against log N, N = 2 … 32."""
    exact = laws.enumerate_target(SMALL, Potential(kind))
    counts = (2, 4, 8, 16, 32)
    bias, variance = [], []
    for n in counts:
        method = ParticleFilter(
            policy=SMALL, reward=SMALL, potential=kind, resampling="multinomial", particles=n
        )
        runs = laws.run_filter(method, exact, replicates)
        bias.append(abs(runs.wf.mean() - exact.zf / exact.z))
        variance.append(runs.log_z.var())
    fits = [float(np.polyfit(np.log(counts), np.log(y), 1)[0]) for y in (bias, variance)]
    met = all(-1.25 < slope < -0.75 for slope in fits)
    figure = f"slopes: bias {fits[0]:.2f}, variance {fits[1]:.2f}"
    return Row("consistency", f"{kind} id multinomial N=2…32", figure, "both in (−1.25, −0.75)", met)


def spread(kind: Any, n: int, replicates: int) -> Row:
    """Variance of Ẑ, systematic over multinomial; one standard error of the ratio is allowed for."""
    exact = laws.enumerate_target(SMALL, Potential(kind))
    variance = [
        laws.run_filter(
            ParticleFilter(policy=SMALL, reward=SMALL, potential=kind, resampling=name, particles=n),
            exact,
            replicates,
        ).z.var()
        for name in ("systematic", "multinomial")
    ]
    ratio = variance[0] / variance[1]
    met = ratio <= 1 + 2 / math.sqrt(replicates)
    return Row("consistency", f"var Ẑ systematic / multinomial, {kind} N={n}", f"{ratio:.3f}", "≤ 1", met)


# ---------------------------------------------------------------- law 4: invariance and convergence


def gibbs(options: argparse.Namespace) -> Iterator[Check]:
    """One sweep from π, from a fixed start, with swaps; and the published kernel."""
    for (kind, phi), n in product(POTENTIALS, (2, 4)):
        for ancestor_sampling in (False, True):
            yield partial(invariant, kind, phi, n, ancestor_sampling, options.draws)
    for n in (2, 4):
        yield partial(faulty, "product", n, options.draws)
        yield partial(faulty, "reference", n, options.draws)
        yield partial(converges, 2 * n, options.draws // 12)
    for kind, phi in POTENTIALS:
        yield partial(tempered, kind, phi, options.draws // 2)


def kernel_row(law: str, setting: str, seen: Counter[str], exact: laws.Exact, *, rejected: bool) -> Row:
    """χ² of the draws against π, which must or must not be rejected."""
    statistic, p, dof = laws.chi2(seen, exact.texts, list(exact.pi))
    demand, met = ("p < 1e-6", p < 1e-6) if rejected else ("p > 1e-3", p > 1e-3)
    return Row(law, setting, f"χ² {statistic:.1f}, {dof} d.o.f., p {p:.2g}", demand, met)


def invariant(kind: Any, phi: Any, n: int, ancestor_sampling: bool, draws: int) -> Row:
    """Reference from π, one conditional sweep, one draw. Of two dozen such tests at 1e-3 one may fail by
    chance: what is rejected is tested again, on other starts and twice the draws, and that decides."""
    exact = laws.enumerate_target(TINY, Potential(kind, phi))
    method = ParticleGibbs(
        policy=TINY,
        reward=TINY,
        particles=n,
        potential=kind,
        phi=phi,
        ancestor_sampling=ancestor_sampling,
    )
    first = draws * (1 + 2 * n + ancestor_sampling)  # starts of its own for each check
    kernel, start = laws.gibbs_kernel(method), laws.exact_start(exact)
    name = "PGAS" if ancestor_sampling else "Gibbs"
    seen = laws.kernel_draws(kernel, TINY, start, draws, first=first)
    row = kernel_row("invariance", f"{name} {kind} {phi} N={n}, {draws} draws", seen, exact, rejected=False)
    if row.met:
        return row
    seen = laws.kernel_draws(kernel, TINY, start, 2 * draws, first=first + 10**7)
    setting = f"{name} {kind} {phi} N={n}, {2 * draws} draws after {row.figure.rpartition(', ')[2]}"
    return kernel_row("invariance", setting, seen, exact, rejected=False)


def faulty(kind: Any, n: int, draws: int) -> Row:
    """The published faults, against the target p · Π odds."""
    exact = laws.enumerate_target(TINY, Potential("product", "odds"))
    kernel = laws.faulty_kernel(Potential(kind, "odds"), n, max_steps=40)
    seen = laws.kernel_draws(kernel, TINY, laws.exact_start(exact), draws)
    name = "final-score reference" if kind == "product" else "both published faults"
    return kernel_row("control 4", f"{name} N={n}, {draws} draws", seen, exact, rejected=True)


def converges(n: int, draws: int) -> Row:
    """From the least likely leaf, with equal particle steps."""
    exact = laws.enumerate_target(TINY, Potential("product", "odds"))
    method = ParticleGibbs(policy=TINY, reward=TINY, particles=n, phi="odds")
    worst = exact.leaves[int(exact.pi.argmin())]
    sweeps = 192 // n
    kernel = laws.gibbs_kernel(method)
    seen = laws.kernel_draws(kernel, TINY, lambda rng: worst, draws, sweeps=sweeps)
    setting = f"from the least likely leaf, N={n}, {sweeps} sweeps, {draws} chains"
    return kernel_row("convergence", setting, seen, exact, rejected=False)


def tempered(kind: Any, phi: Any, draws: int) -> Row:
    """Two temperatures with swaps: the worse of both chains."""
    method = ParallelTempering(
        policy=TINY, reward=TINY, temperatures=(3.0, 1.0), particles=2, potential=kind, phi=phi
    )
    rows = []
    for seen, temperature in zip(laws.tempering_draws(method, TINY, draws), (3.0, 1.0), strict=True):
        exact = laws.enumerate_target(TINY, Potential(kind, phi, temperature))
        setting = f"swaps, T=3 and 1, {kind} {phi} N=2, {draws} draws"
        rows.append(kernel_row("invariance", setting, seen, exact, rejected=False))
    return min(rows, key=lambda row: float(row.figure.split()[-1]))


# ---------------------------------------------------------------- law 8: misleading early scores


def robustness(options: argparse.Namespace) -> Iterator[Check]:
    """The filter against beam search of equal budget, and the ancestors annealing keeps."""
    yield partial(beats_beam, options.replicates // 4)
    for n in (4, 8):
        yield partial(ancestors, n, options.replicates)


def beats_beam(tasks: int) -> Row:
    """Right answers of N = 16 filters and of beams of 2, 4 and 8, at three noise levels."""
    figures, margins = [], []
    for sigma in (1.0, 2.0, 4.0):
        ours = laws.successes(ParticleFilter, 0.5, sigma, tasks, particles=16).mean()
        beams = [
            laws.successes(laws.BeamOfParticles, 0.5, sigma, tasks, particles=16, beams=b).mean()
            for b in (2, 4, 8)
        ]
        best = max(beams)
        error = math.sqrt((ours * (1 - ours) + best * (1 - best)) / tasks)
        margins.append((ours - best) / error)
        figures.append(f"σ={sigma:g}: {ours:.3f}/{'/'.join(f'{b:.3f}' for b in beams)}")
    met = max(margins) > 3
    return Row("early errors", "filter / beams of 2, 4, 8; " + "; ".join(figures), "", "+3 σ somewhere", met)


def ancestors(n: int, replicates: int) -> Row:
    """Distinct first steps that survive."""
    plain = ParticleFilter(policy=BIG, reward=BIG, phi="odds", particles=n, max_steps=12)
    annealed = EntropicFilter(policy=BIG, reward=BIG, phi="odds", particles=n, max_steps=12)
    counts = [laws.mean_ancestors(method, replicates) for method in (annealed, plain)]
    figure = f"{counts[0]:.3f} and {counts[1]:.3f}"
    return Row("diversity", f"ancestors, annealed and plain, N={n}", figure, "≥", counts[0] >= counts[1])


GROUPS: dict[str, Callable[[argparse.Namespace], Iterator[Check]]] = {
    "evidence": evidence,
    "controls": controls,
    "consistency": consistency,
    "gibbs": gibbs,
    "robustness": robustness,
}

if __name__ == "__main__":
    sys.exit(main())
