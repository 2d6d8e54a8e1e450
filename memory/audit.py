"""What is wrong with a store, and whether it helps.

| finding       | means                                                                                    |
|---------------|------------------------------------------------------------------------------------------|
| injected      | it orders the model about, holds tool calls, or is far too large (`untrusted.py`)        |
| unsupported   | no sufficient verifier stands behind it (`gate.py`)                                      |
| circular      | its only support are runs that had read it, or entries that in turn rest on it           |
| contradiction | another active entry says the opposite                                                   |
| duplicate     | another active entry says the same                                                       |
| unhelpful     | it was shown often and its problems were solved less often than without it (`decay.py`)  |
| harmful       | the same of all entries together, or of those that one run or import brought             |
| orphaned      | it names entries that are not there, or retired                                          |
| similar       | another says nearly the same: variants, or one too many; nothing wrong by itself         |

Findings are about entries; only `lift` tells whether the store as a whole helps: the same problems, solved
with it and without it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal, TypeAlias, get_args

from ..serving.entries import Entry
from ..serving.errors import UsageError
from .decay import DECAY, Decay
from .gate import GATE, Gate
from .likeness import near_pairs, relation
from .untrusted import findings

Fault: TypeAlias = Literal[
    "injected",
    "unsupported",
    "circular",
    "contradiction",
    "duplicate",
    "unhelpful",
    "harmful",
    "orphaned",
    "similar",
]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, with the entries it is about."""

    fault: Fault
    names: tuple[str, ...]
    says: str


_FIRST = 3  # names told of a group


def audit(entries: Sequence[Entry], *, gate: Gate = GATE, rule: Decay = DECAY) -> tuple[Finding, ...]:
    """All findings about active entries, the gravest kind first, by name within a kind."""
    active = [entry for entry in entries if entry.status == "active"]
    found = [
        *(Finding("injected", (e.name,), f"{why}.") for e in active if (why := next(findings(e), ""))),
        *_unsupported(active, gate),
        *_pairs(active),
        *_unhelpful(active, rule),
        *_harmful(active, rule),
        *_orphaned(entries),
    ]
    order: Sequence[Fault] = get_args(Fault)
    return tuple(sorted(found, key=lambda each: (order.index(each.fault), each.names)))


def _unsupported(active: Sequence[Entry], gate: Gate) -> Iterator[Finding]:
    supported = founded(active, gate)
    for entry in active:
        if entry.name in supported:
            continue
        if why := gate.objection(entry):
            if not next(findings(entry), ""):
                yield Finding("unsupported", (entry.name,), f"{why}.")
        else:
            readers = sorted(
                {name for told in entry.evidence for name in told.read} & {e.name for e in active}
            )
            told = f"it rests on runs that had read {', '.join(map(repr, readers[:5]))}."
            yield Finding("circular", (entry.name,), told)


def founded(entries: Iterable[Entry], gate: Gate = GATE) -> Collection[str]:
    """Names of entries with support from outside: a sufficient verifier of a run that had read nothing, only
    founded entries, or entries that are no longer here. A program or a test (`SOUND`) needs no such care
    for what *else* its run had read: it passed, whoever had the idea."""
    entries = list(entries)
    known = {entry.name for entry in entries}
    open_ = {entry.name: gate.support(entry) for entry in entries}
    found: set[str] = set()
    while True:
        new = {
            name
            for name, support in open_.items()
            if any(told.verifier in SOUND or (set(told.read) & known) <= found for told in support)
        }
        if not new:
            return found
        found |= new
        open_ = {name: support for name, support in open_.items() if name not in new}


SOUND = frozenset(("gold", "tests", "python", "user"))


def _pairs(active: Sequence[Entry]) -> Iterator[Finding]:
    for one, other in near_pairs(active):
        how, names = relation(one, other), (one.name, other.name)
        if how == "contradicts":
            yield Finding("contradiction", names, f"{_evidence(one)} against {_evidence(other)}.")
        elif how == "same":
            yield Finding("duplicate", names, "they say the same.")
        elif how == "similar":
            yield Finding("similar", names, "they say nearly the same: variants, or one too many.")


def _evidence(entry: Entry) -> str:
    runs = len({told.run or told.source for told in entry.evidence})
    return f"{entry.name!r} ({runs} run{'s' * (runs != 1)}, {entry.wins} of {entry.uses} solved)"


def _unhelpful(active: Sequence[Entry], rule: Decay) -> Iterator[Finding]:
    base = rule.rate(active)
    for entry in rule.unhelpful(active):
        share = entry.wins / entry.uses
        told = f"{entry.wins} of {entry.uses} problems it was shown for were solved ({share:.0%})"
        yield Finding("unhelpful", (entry.name,), f"{told}, {base:.0%} without.")


def _harmful(active: Sequence[Entry], rule: Decay) -> Iterator[Finding]:
    base = rule.rate(active)
    for group in rule.harmful(active):
        whose = (
            f"The {len(group.entries)} entries of {group.origin}" if group.origin else "All entries together"
        )
        told = f"{whose}: {group.wins} of {group.uses} uses ended well, {base:.0%} do without."
        yield Finding("harmful", tuple(each.name for each in group.entries[:_FIRST]), told)


def _orphaned(entries: Sequence[Entry]) -> Iterator[Finding]:
    status = {entry.name: entry.status for entry in entries}
    for entry in entries:
        named = entry.data.get("contradicts", [])
        if entry.status != "active" or not isinstance(named, list):
            continue
        lost = [str(name) for name in named if status.get(str(name)) != "active"]
        if lost:
            told = ", ".join(f"{name!r} ({status.get(name, 'not here')})" for name in lost)
            yield Finding("orphaned", (entry.name,), f"it names {told} as its contradiction.")


# ---------------------------------------------------------------- does it help?


@dataclass(frozen=True)
class Lift:
    """By how much the share of solved problems rises with the memory: the mean over the problems, and its
    95 % interval."""

    n: int
    with_memory: float
    without: float
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What may be said."""
        if self.low > 0:
            return "it helps"
        return "it harms" if self.high < 0 else "it is not shown to help or to harm"


def lift(with_memory: Mapping[str, float], without: Mapping[str, float], *, z: float = 1.959964) -> Lift:
    """The lift by ablation: each problem's share of solved attempts, by its name, with and without memory.

    The interval is Bonett and Price's for paired proportions (2012), which adds one pseudo-problem to each
    side, for shares as for single attempts. Raises UsageError unless both hold the same problems.
    """
    if with_memory.keys() != without.keys():
        odd = sorted(with_memory.keys() ^ without.keys())
        raise UsageError(
            f"The lift is of the same problems with and without: {len(odd)} are on one side only, such as "
            f"{odd[0]!r}."
        )
    n = len(with_memory)
    if n == 0:
        raise UsageError("There are no problems to compare. Give the results of at least one.")
    gains = [with_memory[name] - without[name] for name in with_memory]
    mean = sum(gains) / (n + 2)
    spread = sqrt(max(0.0, (sum(g * g for g in gains) + 2) / (n + 2) - mean * mean) / (n + 2))
    means = sum(with_memory.values()) / n, sum(without.values()) / n
    return Lift(n, *means, sum(gains) / n, max(-1.0, mean - z * spread), min(1.0, mean + z * spread))
