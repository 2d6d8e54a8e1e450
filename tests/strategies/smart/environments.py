"""Problems whose arms succeed with known chances, for the tests and for `benchmarks/smart.py`.

`planted`: the best arm differs by type. `hidden`: one arm is better on all problems, easy or hard, and the
features do not tell which are hard.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from abduce.strategies.smart.bandit import Chooser
from abduce.strategies.smart.router import Attempt, Learn, Learning, Router, rest

NOISE = 8
TYPES = 4


@dataclass(frozen=True)
class Problem:
    """φ, and whether each arm would be right: drawn once, so that all ways are compared on one table."""

    phi: tuple[float, ...]
    right: dict[str, int]
    chances: dict[str, float]


def planted(n: int, rng: Random, *, told: bool = True) -> list[Problem]:
    """Three arms, four types; success 0.85 for a type's best arm, 0.45 else. `told`: the type is in φ."""
    return [_planted(rng, told) for _ in range(n)]


def _planted(rng: Random, told: bool) -> Problem:
    kind = rng.randrange(TYPES)
    best = "abc"[kind % 3]
    chances = {arm: 0.85 if arm == best else 0.45 for arm in "abc"}
    types = [float(told and i == kind) for i in range(TYPES)]
    phi = (1.0, *types, *(rng.gauss(0, 1) for _ in range(NOISE)))
    return Problem(phi, {arm: int(rng.random() < p) for arm, p in chances.items()}, chances)


def hidden(n: int, rng: Random) -> list[Problem]:
    """Two arms, easy and hard at even chance: a .95/.10, b .90/.25, so that b is better overall."""
    found = []
    for _ in range(n):
        chances = {"a": 0.95, "b": 0.90} if rng.random() < 0.5 else {"a": 0.10, "b": 0.25}
        found.append(Problem((1.0,), {arm: int(rng.random() < p) for arm, p in chances.items()}, chances))
    return found


@dataclass(frozen=True)
class Played:
    """A run over problems: the router at its end, rows of first attempts (where it is frozen, of all), and
    whether each first attempt was right."""

    router: Router
    rows: list[Attempt]
    first: list[int]


def play(
    problems: Sequence[Problem],
    chooser: Chooser,
    rng: Random,
    *,
    learn: Learn = "first_only",
    explore_full: float = 0.0,
    retries: bool = True,
    router: Router | None = None,
    frozen: bool = False,
) -> Played:
    """The episodes of SMART without a model: choose, look the outcome up, learn, go on while it is wrong."""
    d = len(problems[0].phi)
    router = router or Router("simulated", d, Learning(learn=learn, cost=0.0))
    rows: list[Attempt] = []
    first = []
    for problem in problems:
        arms = tuple(problem.right)
        chosen = router.decide(problem.phi, arms, chooser, rng)
        full = rng.random() < explore_full
        base = Attempt(
            arm=chosen.arm, phi=problem.phi, signature="simulated", arms=arms, pi=chosen.pi,
            propensity=chosen.propensity, kind="gold", c=1.0, full=full,
        )  # fmt: skip
        tried: list[str] = []
        name: str | None = chosen.arm
        while name is not None:
            tried.append(name)
            row = replace(base, arm=name, attempt=len(tried), y=problem.right[name])
            if frozen or len(tried) == 1:
                rows.append(router.judged(row))
            if not frozen:
                router = router.learned(row)
            left = rest(chosen.pi, tried)
            done = not left or (not full and (problem.right[name] or not retries))
            name = None if done else rng.choices(list(left), [w + 1e-9 for w in left.values()])[0]
        first.append(problem.right[chosen.arm])
    return Played(router, rows, first)


def value(problems: Sequence[Problem], pi: Callable[[Problem], dict[str, float]]) -> float:
    """The true value of a policy: the chance that its first attempt is right."""
    found = [sum(share * p.chances[arm] for arm, share in pi(p).items()) for p in problems]
    return sum(found) / len(found)
