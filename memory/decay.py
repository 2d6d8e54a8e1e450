"""Entries that do not help are retired: they are no longer found, and stay in the store.

An entry was shown for n problems, w of which were solved; without it a share b of such problems is solved
(the base rate). The evidence that it helps less than nothing is a bet against it: before each problem a
gambler who believes its rate p to be below b stakes on failure at the odds of b, and

    E = (1/b) ∫₀ᵇ pʷ (1-p)ⁿ⁻ʷ dp  /  bʷ (1-b)ⁿ⁻ʷ

is what became of one unit (a uniform belief over [0, b]). If its rate is at least b the expectation of E
never exceeds 1, so the chance that E *ever* reaches 1/α is at most α (Ville), however often one looks. A
posterior probability has no such bound: looked at after every use, it retires a good entry sooner or later.

Entries of one origin, and all together, are judged as one too, or a store full of wrong ones would cost a
dozen problems for each. Where at most k entries are shown for a problem, the same bet with w/k and n/k is
fair, since a power m/k ≤ 1 of a fair bet is (Jensen).

Source: Shafer, "Testing by betting", JRSS A 2021; the mixture is Robbins' (1970).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import exp, inf, lgamma, log, log1p

from ..serving.entries import Entry
from ..serving.errors import demand
from .base import Store


@dataclass(frozen=True)
class Group:
    """Entries that are judged as one: those that one run or import brought, or all."""

    origin: str  # "" of all
    entries: tuple[Entry, ...]
    wins: int
    uses: int


@dataclass(frozen=True)
class Decay:
    """`base` is the share solved without the entry; without one it is what all entries together reached,
    which finds the worst among them but not that all are bad. `risk` bounds the chance to retire, ever, one
    that is as good as that. `shown` is how many entries are shown for a problem at most."""

    base: float | None = None
    risk: float = 0.05
    shown: int = 4

    def __post_init__(self) -> None:
        demand(self.base is None or 0 <= self.base < 1, "base", self.base, "write a share such as 0.4")
        demand(0 < self.risk < 1, "risk", self.risk, "write a small probability such as 0.05")
        demand(self.shown >= 1, "shown", self.shown, "write at least 1")

    def rate(self, entries: Iterable[Entry]) -> float:
        """The base rate that is used."""
        if self.base is not None:
            return self.base
        shown = [each for each in entries if each.uses]
        return (sum(e.wins for e in shown) + 1) / (sum(e.uses for e in shown) + 2)

    def unhelpful(self, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        """Active entries against which there is enough evidence."""
        base = self.rate(entries)
        found = (each for each in entries if each.status == "active" and each.uses)
        return tuple(each for each in found if log_evidence(each.wins, each.uses, base) >= -log(self.risk))

    def harmful(self, entries: Sequence[Entry]) -> tuple[Group, ...]:
        """Groups against which there is enough evidence, the risk shared among all groups."""
        if self.base is None:  # of which the entries themselves are the measure
            return ()
        members: dict[str, list[Entry]] = {"": [each for each in entries if each.status == "active"]}
        for entry in members[""]:
            if entry.evidence and entry.evidence[0].run:
                members.setdefault(entry.evidence[0].run, []).append(entry)
        groups = [
            Group(name, tuple(each), sum(e.wins for e in each), sum(e.uses for e in each))
            for name, each in members.items()
            if len(each) > 1
        ]
        return tuple(each for each in groups if self._against(each) >= log(len(groups) / self.risk))

    def going(self, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        """What is to be retired: single entries, and of harmful groups all but those that solved more, twice
        at least: of twenty wrong ones two have helped once, by chance."""
        base = self.rate(entries)
        gone = {each.name: each for each in self.unhelpful(entries)}
        for group in self.harmful(entries):
            lucky = [each for each in group.entries if each.wins < 2 or each.wins <= base * each.uses]
            gone |= {each.name: each for each in lucky}
        return tuple(gone.values())

    def _against(self, group: Group) -> float:
        assert self.base is not None
        wins, losses = -(-group.wins // self.shown), (group.uses - group.wins) // self.shown
        return log_evidence(wins, wins + losses, self.base)


DECAY = Decay()


async def decay(store: Store, rule: Decay = DECAY) -> tuple[Entry, ...]:
    """Retire what does not help, in one version. Returns what was retired, as it was."""
    while True:
        before, entries = await store.version(), await store.everything()
        gone = rule.going(entries)
        base = rule.rate(entries)
        reason = f"solved less often with it, or with others of its origin, than without ({base:.2f})"
        retired = [replace(e, status="retired") for e in gone]
        if not gone or await store.write(retired, action="retired", reason=reason, after=before):
            return gone


@lru_cache(maxsize=65536)
def log_evidence(wins: int, uses: int, base: float) -> float:
    """log E: how much speaks against an entry; 0 for one never shown.

    >>> round(exp(log_evidence(0, 20, 0.5)))
    99864
    >>> log_evidence(15, 20, 0.5) < 0
    True
    """
    if not uses or base <= 0:
        return 0.0
    if base >= 1:
        return inf if wins < uses else 0.0
    losses = uses - wins
    # ∫₀ᵇ pʷ(1-p)ˡ dp = B(w+1, l+1) · P(Binomial(n+1, b) ≥ w+1)
    log_beta = lgamma(wins + 1) + lgamma(losses + 1) - lgamma(uses + 2)
    return log_beta + _log_tail(uses + 1, wins + 1, base) - (wins + 1) * log(base) - losses * log1p(-base)


def _log_tail(n: int, least: int, p: float) -> float:
    """log P(Binomial(n, p) ≥ least)."""
    terms = [
        lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) + i * log(p) + (n - i) * log1p(-p)
        for i in range(least, n + 1)
    ]
    top = max(terms)
    return top + log(sum(exp(term - top) for term in terms))
