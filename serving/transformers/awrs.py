"""Adaptive weighted rejection sampling: one token that keeps a constraint, at the cost of a few checks.

p is the model's next-token distribution, c(x) says whether the text may go on with x. Masking evaluates c
on the whole vocabulary; a sampler here on a few tokens, and returns a token with a weight such that

    E[w · 1{x = t}] = p(t) c(t)    for every t,    hence E[w] = A = Σ p c, the mass the constraint accepts.

Tokens are visited in falling order of ln p(x) + Gumbel noise, which is drawing without replacement. Every
sampler takes `log_p` (natural log, float64 `[vocabulary]`, −∞ for tokens that cannot be drawn), `check` and
`rng`. p need not be normalised: its total enters the weight. `proposal` is another `log_g` to draw from,
with g > 0 wherever p > 0; w is then multiplied by p(x)/g(x).

Source: "Fast Controlled Generation from Language Models with Adaptive Weighted Rejection Sampling",
arXiv 2504.05410. The arithmetic of the `_weigh` functions is that of exact fractions as well as of floats,
so that a test can sum over all orders.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from ..errors import demand

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector: TypeAlias = NDArray[np.float64]
    Masses: TypeAlias = Sequence[float] | Vector

Check: TypeAlias = Callable[[int], bool]
"""Whether the text may go on with this token."""

Orders: TypeAlias = Callable[[], Iterator[int]]
"""A fresh visiting order of all tokens of positive mass."""

NEGLIGIBLE = 1e-5
"""Remaining mass that is treated as none: what a walk through the last of a long tail would cost more
checks than it could gain. Tokens behind it count as not allowed."""

_PEAKED = 2 / 3  # above it the geometric form needs fewer than two distinct checks on average
_HEAD = 256  # of an order: sorted first, the rest only if a walk gets that far


class Draw(NamedTuple):
    """A token and its weight. `token` is None where none was found; then `log_weight` is −∞."""

    token: int | None
    log_weight: float
    n_checks: int


def adaptive(
    log_p: "Vector",
    check: Check,
    rng: "np.random.Generator",
    *,
    max_accepts: int = 2,
    max_rejects: int | None = None,
    proposal: "Vector | None" = None,
) -> Draw:
    """`geometric` if one token has two thirds of the mass or `max_accepts` is above 2, else `recursive`."""
    log_g = log_p if proposal is None else proposal
    if max_accepts > 2 or float(log_g.max()) - log_total(log_g) >= math.log(_PEAKED):
        return geometric(
            log_p, check, rng, max_accepts=max_accepts, max_rejects=max_rejects, proposal=proposal
        )
    return recursive(log_p, check, rng, max_rejects=max_rejects, proposal=proposal)


def two_loop(
    log_p: "Vector", check: Check, rng: "np.random.Generator", *, proposal: "Vector | None" = None
) -> Draw:
    """The paper's form. The token is an exact draw from p c / A."""
    return _draw(log_p, check, rng, proposal, weigh_two_loop)


def recursive(
    log_p: "Vector",
    check: Check,
    rng: "np.random.Generator",
    *,
    max_rejects: int | None = None,
    proposal: "Vector | None" = None,
) -> Draw:
    """One order, one or two checks after the last rejection; exact weight where one token is allowed.
    `max_rejects` ≥ 2 bounds the checks and keeps the law, with more zeros."""
    _demand_cap(max_rejects)
    return _draw(
        log_p, check, rng, proposal, lambda p, seen, orders: weigh_recursive(p, seen, orders, max_rejects)
    )


def geometric(
    log_p: "Vector",
    check: Check,
    rng: "np.random.Generator",
    *,
    max_accepts: int = 2,
    max_rejects: int | None = None,
    proposal: "Vector | None" = None,
) -> Draw:
    """Draws with replacement, imitated by passes without; more `max_accepts` lower the variance."""
    _demand_cap(max_rejects)
    demand(max_accepts >= 2, "max_accepts", max_accepts, "write at least 2")

    def failures(p: float) -> int:
        return int(rng.geometric(p)) - 1

    return _draw(
        log_p,
        check,
        rng,
        proposal,
        lambda p, seen, orders: weigh_geometric(p, seen, orders, failures, max_accepts, max_rejects),
    )


def improper(
    log_p: "Vector", check: Check, rng: "np.random.Generator", *, proposal: "Vector | None" = None
) -> Draw:
    """An exact draw from p c / A with weight 1: locally constrained decoding, as masking does it.
    With a proposal g the draw is from g c, the weight 1 all the same."""
    found = _draw(log_p, check, rng, proposal, weigh_first)
    return found if found.token is None else found._replace(log_weight=0.0)


# ---------------------------------------------------------------- the weights, for p with Σ p = 1


def weigh_two_loop(p: "Masses", check: Check, orders: Orders) -> tuple[int | None, float]:
    """w = (1 − mass(R₁)) / (|R₁| + |R₂| + 1): R₁ rejected before x, R₂ in a second walk without R₁."""
    remaining = _Remaining(p)
    first: set[int] = set()
    x = None
    for token in orders():
        if check(token):
            x = token
            break
        first.add(token)
        if remaining.less(p[token]) < NEGLIGIBLE:
            break
    if x is None:
        return None, 0.0
    n_second = 0
    for token in orders():
        if token in first:
            continue
        if check(token):
            break
        n_second += 1
    return x, remaining.mass / (len(first) + n_second + 1)


def weigh_recursive(
    p: "Masses", check: Check, orders: Orders, max_rejects: int | None = None
) -> tuple[int | None, float]:
    """E f(X) = q f(x) + (1 − q) E[f(X) | X ≠ x], unrolled along one order.

    Π (1 − q) over the rejected tokens is the mass they leave, and times q it is p(x):
    w = 1 − mass(R) if the token after x is allowed too, p(x) if it isn't.
    """
    remaining = _Remaining(p)
    order = orders()
    for n_rejected, x in enumerate(order):
        if check(x):
            after = next(order, None)
            capped = max_rejects is not None and n_rejected == max_rejects - 1
            if capped or after is None or check(after):
                return x, remaining.mass
            return x, p[x]
        if remaining.less(p[x]) < NEGLIGIBLE or n_rejected + 1 == max_rejects:
            break
    return None, 0.0


def weigh_geometric(
    p: "Masses",
    check: Check,
    orders: Orders,
    failures: Callable[[float], int],
    max_accepts: int,
    max_rejects: int | None,
) -> tuple[int | None, float]:
    """w = min(a − 1, n) / (n + r − 1) after n accepted and r rejected draws with replacement: the chance,
    given the counts, that the first draw was accepted. `failures(q)` are the tries that fail before one
    of chance q succeeds: draws of tokens that are known to be rejected, which no check need be spent on."""
    cap = math.inf if max_rejects is None else max_rejects
    remaining = _Remaining(p)
    rejected: set[int] = set()
    x: int | None = None
    n_accepted, n_rejected = 0, 0
    while n_accepted < max_accepts and n_rejected < cap:
        for token in orders():
            if token in rejected:
                continue
            if rejected:
                n_rejected += failures(remaining.mass)
                if n_rejected >= cap:
                    break
            if check(token):
                x = token if x is None else x
                n_accepted += 1
                break
            rejected.add(token)
            n_rejected += 1
            if remaining.less(p[token]) < NEGLIGIBLE and x is None:
                return None, 0.0
            if n_rejected >= cap:
                break
    if x is None:
        return None, 0.0
    n_rejected = n_rejected if max_rejects is None else min(n_rejected, max_rejects)
    return x, min(max_accepts - 1, n_accepted) / (n_accepted + n_rejected - 1)


def weigh_first(p: "Masses", check: Check, orders: Orders) -> tuple[int | None, float]:
    """The first allowed token of an order, with weight 1."""
    remaining = _Remaining(p)
    for token in orders():
        if check(token):
            return token, 1.0
        if remaining.less(p[token]) < NEGLIGIBLE:
            break
    return None, 0.0


# ---------------------------------------------------------------- helpers


class _Remaining:
    """1 − Σ p over the rejected tokens, by compensated summation, never below 0."""

    def __init__(self, p: "Masses") -> None:
        self.mass: Any = p[0] * 0 + 1  # in the arithmetic of p
        self._lost: Any = 0

    def less(self, p: float) -> float:
        term = -p - self._lost
        mass = self.mass + term
        self._lost = (mass - self.mass) - term
        self.mass = max(mass, 0)
        return float(self.mass)


def gumbel_order(log_p: "Vector", rng: "np.random.Generator") -> Iterator[int]:
    """Tokens of positive mass by falling ln p(x) + G(x). The noise is drawn at once, sorting waits."""
    import numpy as np

    with np.errstate(divide="ignore"):  # an exponential of 0 is a Gumbel of ∞: visited first
        keys = log_p - np.log(rng.standard_exponential(log_p.size))
    return falling(keys)


def falling(keys: "Vector") -> Iterator[int]:
    """Places by falling key, those at −∞ left out; the first ones are found without sorting the rest."""
    import numpy as np

    n = keys.size
    if n <= _HEAD:
        head = np.argsort(-keys)
    else:
        head = np.argpartition(keys, n - _HEAD)[n - _HEAD :]
        head = head[np.argsort(-keys[head])]
    for token in head.tolist():
        if keys[token] == -math.inf:
            return
        yield token
    if n > _HEAD:
        rest = np.argsort(-keys)[_HEAD:]
        for token in rest[keys[rest] > -math.inf].tolist():
            yield token


def _draw(
    log_p: "Vector",
    check: Check,
    rng: "np.random.Generator",
    proposal: "Vector | None",
    weigh: Callable[["Vector", Check, Orders], tuple[int | None, float]],
) -> Draw:
    """Draw from g, normalised; w · p(x)/g(x). Each token is checked once."""
    import numpy as np

    log_g = log_p if proposal is None else proposal
    if proposal is not None and bool(((log_p > -math.inf) & (log_g == -math.inf)).any()):
        demand(False, "proposal", "0 at some token", "give it mass wherever the model has some")
    total = log_total(log_g)
    if total == -math.inf:
        return Draw(None, -math.inf, 0)
    known: dict[int, bool] = {}

    def seen(token: int) -> bool:
        if token not in known:
            known[token] = check(token)
        return known[token]

    log_g = log_g - total
    token, w = weigh(np.exp(log_g), seen, lambda: gumbel_order(log_g, rng))
    if token is None or not w > 0:
        return Draw(None, -math.inf, len(known))
    return Draw(token, math.log(w) + float(log_p[token] - log_g[token]), len(known))


def log_total(log_p: "Vector") -> float:
    """log Σ p; −∞ where all are."""
    import numpy as np

    top = float(log_p.max(initial=-math.inf))
    if top == -math.inf:
        return top
    return top + math.log(float(np.exp(log_p - top).sum()))


def _demand_cap(max_rejects: int | None) -> None:
    demand(max_rejects is None or max_rejects >= 2, "max_rejects", max_rejects, "write at least 2, or None")
