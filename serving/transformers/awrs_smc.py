"""Samples of a whole turn that keep a constraint, each with a weight; resampled on the way if wanted.

N particles write one token at a time. `draw` gives the next token x and the factor w of the weight; the
last token of the budget is the end of the turn, taken by force at its own probability, so the target is
the turns of at most `max_tokens` tokens:

    W ← W · w                 E[mean(W) f(text)] = Σ p(text) c(text) Φ(text) f(text)

A critic Φ counts once, at the end. Before, its guess is a *twist*: multiplied into W when particles are
resampled, and taken back before the next token. Where the effective sample size (ΣW)²/ΣW² falls below
`resample_below` · N, N ancestors are drawn in proportion to W, and every W becomes the mean: early dead
ends cost particles then, not the whole sample.

Source: arXiv 2504.05410. Deviates: nothing is resampled once all particles have ended, and a stop string
ends a turn without correction, whether or not the text is complete.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from ..errors import demand
from ..flow import Completion
from ..seeds import derive
from . import awrs
from .decoding import Draft, Merged, Program, Turn, shaped
from .matchers import Matcher
from .potentials import Potential

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .awrs import Vector

    Places: TypeAlias = NDArray[np.intp]

Draw: TypeAlias = Callable[["Vector", awrs.Check, "np.random.Generator"], awrs.Draw]
"""A token and its weight, as the samplers of `awrs` give them."""


@dataclass
class Particle:
    """A sample, its log-weight, and the constraint's view of it. `twist` is part of `log_weight`."""

    draft: Draft
    matcher: Matcher
    log_weight: float = 0.0
    twist: float = 0.0
    n_checks: int = 0

    @property
    def completion(self) -> Completion:
        """The sample with its weight; a dead one as far as it got."""
        return self.draft.completion(self.log_weight)

    def fork(self, rng: "np.random.Generator") -> "Particle":
        """A copy that goes on by itself; what it costs from now on is counted from 0."""
        return replace(self, draft=replace(self.draft, rng=rng), matcher=self.matcher.copy(), n_checks=0)


def particles(
    turn: Turn,
    potential: Potential,
    seeds: Sequence[int],
    *,
    prefix: bytes = b"",
    draw: Draw = awrs.adaptive,
    mask: bool = False,
    resample_below: float = 0.0,
) -> Program[list[Particle]]:
    """One particle for each seed. `prefix` is the text of the turn so far, which the potential allows.

    With `mask` every token is checked, and tokens are drawn with weight 1 from those that are allowed.
    """
    demand(0 <= resample_below <= 1, "resample_below", resample_below, "write a number from 0 to 1")
    cloud = [_begun(turn, potential, prefix, seed) for seed in seeds]
    silent = _silent(turn)
    twisted = potential.judged and resample_below > 0
    step = 0
    while live := [each for each in cloud if not each.draft.finish]:
        batch = Merged()
        for each in live:
            each.draft.row = batch.place(each.draft.feed)
        told = yield batch.feeds
        for each in live:
            log_p = told[each.draft.row]
            each.log_weight -= each.twist
            each.twist = 0.0
            _advance(each, log_p, silent, None if mask else draw)
            if twisted and not each.draft.finish:
                each.twist = each.matcher.log_prefix()
                each.log_weight += each.twist
                _bury(each)
        step += 1
        if any(not each.draft.finish for each in cloud):
            cloud = _resampled(cloud, resample_below, derive(seeds[0], "resample", step))
    return cloud


def effective_size(log_weights: Sequence[float]) -> float:
    """(ΣW)² / ΣW²; 0 where all are dead."""
    top = max(log_weights)
    if top == -math.inf:
        return 0.0
    w = [math.exp(x - top) for x in log_weights]
    return sum(w) ** 2 / sum(x * x for x in w)


def log_mean(log_weights: Sequence[float]) -> float:
    """log of the mean weight: an unbiased estimate of the mass of all texts that keep the constraint."""
    top = max(log_weights)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(x - top) for x in log_weights) / len(log_weights))


# ---------------------------------------------------------------- one particle, one token


def _begun(turn: Turn, potential: Potential, prefix: bytes, seed: int) -> Particle:
    matcher = potential.start()
    matcher.feed(prefix)
    return Particle(Draft.begin(turn, seed), matcher)


def _silent(turn: Turn) -> "Places":
    """Tokens that write nothing and end nothing: cut off before anything is drawn."""
    import numpy as np

    return np.array([i for i, text in enumerate(turn.tokens) if not text and i not in turn.ends], np.intp)


def _advance(each: Particle, raw: "Vector", silent: "Places", draw: Draw | None) -> None:
    """Draw the next token, or end the turn where one token is left. Without `draw`, mask."""
    draft, matcher = each.draft, each.matcher
    sampling = draft.turn.sampling
    log_p = raw.copy() if sampling.temperature <= 0 else shaped(raw, sampling)
    log_p = log_p.copy() if log_p is raw else log_p
    log_p[silent] = -math.inf
    whole = lru_cache(maxsize=1)(matcher.complete)

    def check(token: int) -> bool:
        return whole() if token in draft.turn.ends else matcher.allows(token)

    if len(draft.ids) + 1 >= sampling.max_tokens:
        log_end = awrs.log_total(log_p[list(draft.turn.ends)])
        log_end = 0.0 if draw is None or sampling.temperature <= 0 else log_end
        found = awrs.Draw(draft.turn.ends[0], log_end, 1) if whole() else awrs.Draw(None, -math.inf, 1)
    elif draw is None:
        found = _masked(log_p, matcher, check, draft)
    elif sampling.temperature <= 0:
        found = _likeliest(log_p, check)
    else:
        found = draw(log_p, check, draft.rng)
    each.n_checks += found.n_checks
    each.log_weight += found.log_weight
    if found.token is not None:
        draft.take(found.token, raw)
        if not draft.finish or draft.finish == "stop":
            matcher.take(found.token)
    if draft.finish:
        each.log_weight += matcher.log_complete()
    _bury(each)


def _masked(log_p: "Vector", matcher: Matcher, check: awrs.Check, draft: Draft) -> awrs.Draw:
    """A draw with weight 1 after a check of every token that can be drawn."""
    import numpy as np

    ends = draft.turn.ends
    asked = np.flatnonzero(log_p > -math.inf)
    told = matcher.mask(asked)
    told[np.isin(asked, ends)] = check(ends[0])
    kept = np.full_like(log_p, -math.inf)
    kept[asked[told]] = log_p[asked[told]]
    if draft.turn.sampling.temperature <= 0:
        return _likeliest(kept, lambda token: True)._replace(n_checks=asked.size)
    return awrs.improper(kept, lambda token: True, draft.rng)._replace(n_checks=asked.size)


def _likeliest(log_p: "Vector", check: awrs.Check) -> awrs.Draw:
    """Temperature 0: the most likely token that is allowed, at weight 1."""
    n = 0
    for token in awrs.falling(log_p):
        n += 1
        if check(token):
            return awrs.Draw(token, 0.0, n)
    return awrs.Draw(None, -math.inf, n)


def _bury(each: Particle) -> None:
    if each.log_weight == -math.inf:
        each.twist = 0.0
        each.draft.finish = "length"


# ---------------------------------------------------------------- resampling


def _resampled(cloud: list[Particle], below: float, seed: int) -> list[Particle]:
    """The population itself, or its offspring where the effective sample size is below `below` · N."""
    import numpy as np

    n = len(cloud)
    log_w = [each.log_weight for each in cloud]
    if below == 0 or max(log_w) == -math.inf or effective_size(log_w) >= below * n - 1e-9 * n:
        return cloud
    mean = log_mean(log_w)
    weights = np.exp(np.array(log_w) - max(log_w))
    rng = np.random.default_rng(seed)
    ancestors = rng.choice(n, size=n, p=weights / weights.sum())
    n_checks = [each.n_checks for each in cloud]
    offspring = [cloud[a].fork(each.draft.rng) for a, each in zip(ancestors, cloud, strict=True)]
    for each, spent in zip(offspring, n_checks, strict=True):
        each.log_weight = mean
        each.n_checks = spent
    return offspring
