"""The write gate: what may enter a store, and as what.

    entry ──► refused        no sufficient verifier, an order to the model, or known only from its own readers
          ├─► merged         it says what an entry says already: the evidence is added to that
          ├─► beside         it contradicts an entry: both stay, each with its evidence and the other's name
          ├─► echo           it says what its run had read: no evidence is gained, nothing changes
          └─► written

A trace counts as solved by what its solver may see: tests, programs, a judge, a reward, the user. A verifier
must be as sure as `THRESHOLDS` says.

Feedback loops: a run that read an entry and then writes it again has verified nothing new. So evidence names
what its run had read (`Evidence.read`), and only evidence of runs that had not read an entry supports it.
Longer chains, through what other entries rest on, are for `audit.py` to find.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from ..serving.entries import Entry, Evidence
from ..serving.errors import UsageError
from ..serving.flow import Failure, Flow, Recall, Remember
from .base import Store
from .likeness import CONCEPTS, relation, same_words
from .requests import recalled, remembered
from .untrusted import defused, findings

Action: TypeAlias = Literal["written", "merged", "beside", "echo", "refused"]

THRESHOLDS: Mapping[str, float] = {
    "gold": 1.0,
    "tests": 1.0,
    "python": 1.0,
    "calculator": 1.0,
    "agreement": 1.0,
    "user": 0.5,
    "judge": 0.8,
    "reward": 0.8,
}
"""The least confidence for each kind of verifier. Tests and programs must pass whole; calculators and a
second solution are weak, but a recipe that verifies by them has chosen so."""

MAX_EVIDENCE = 64
_NEIGHBOURS = 8


@dataclass(frozen=True)
class Gate:
    """What is sufficient. `least` replaces the thresholds; a verifier that it does not name never is."""

    least: Mapping[str, float] = field(default_factory=lambda: THRESHOLDS)

    def __post_init__(self) -> None:
        for verifier, least in self.least.items():
            if not 0 <= least <= 1:
                raise UsageError(f"The gate for {verifier!r} must be in [0, 1], got {least}. Write e.g. 0.8.")

    def sufficient(self, told: Evidence) -> bool:
        """Whether the verifier was sure enough."""
        return told.confidence >= self.least.get(told.verifier, 2.0)

    def support(self, entry: Entry) -> tuple[Evidence, ...]:
        """The evidence that counts: sufficient, and of runs that had not read the entry."""
        return tuple(e for e in entry.evidence if self.sufficient(e) and entry.name not in e.read)

    def objection(self, entry: Entry) -> str:
        """Why the entry may not be written; empty if it may."""
        if wrong := next(findings(entry), ""):
            return wrong
        if not any(map(self.sufficient, entry.evidence)):
            return f"no verifier was sure enough of it ({_told(entry.evidence, self.least)})"
        return ""


GATE = Gate()


@dataclass(frozen=True)
class Verdict:
    """What became of one entry. `entries` are to be put into the store for it."""

    name: str
    action: Action
    reason: str
    entries: tuple[Entry, ...] = ()


def judge(entry: Entry, near: Sequence[Entry], gate: Gate = GATE) -> Verdict:
    """What should become of an entry, to which there is no objection, beside those that are near it: of the
    same name or by what they say."""
    by_name = {each.name: each for each in near}
    old = by_name.get(entry.name)
    others = [each for each in near if each.name != entry.name and each.status == "active"]
    relations = [(relation(entry, each), each) for each in (*([old] if old else []), *others)]
    for how, each in relations:
        if how == "same":
            return _again(entry, each, gate)
    if old is not None and entry.kind in CONCEPTS:
        return _again(entry, old, gate)
    against = [each for how, each in relations if how == "contradicts" and each.status == "active"]
    if against:
        return _beside(entry, against, by_name)
    if not gate.support(entry):
        return Verdict(entry.name, "refused", "its only evidence are runs that had read it")
    reason = "" if old is None else "replaces what it said before, which stays in its history"
    return Verdict(entry.name, "written", reason, (replace(entry, evidence=_first(entry.evidence)),))


def remember(
    entries: Sequence[Entry],
    *,
    gate: Gate = GATE,
    credit: Mapping[str, bool] | None = None,
    reason: str = "",
) -> Flow[tuple[Verdict, ...]]:
    """Write what passes, in one version, and give credit to what was read.

    Where another writer was faster, all is judged again. Where others are all the time, or the memory fails,
    nothing is written, and the verdicts say so.
    """
    for _ in range(_ATTEMPTS):
        [before] = (yield [Remember()]) if entries else [None]
        verdicts, pending = yield from _judging(entries, gate)
        if not pending:
            break
        after = None if isinstance(before, Failure) else before
        [version] = yield [Remember(pending, credit or {}, _why(verdicts, reason), after)]
        if isinstance(version, Failure):
            return _none(entries, version.message)
        if version:
            return verdicts
    else:
        verdicts = _none(entries, _OVERTAKEN)
    if credit:
        yield [Remember(credit=credit, reason=reason)]
    return verdicts


def _none(entries: Sequence[Entry], reason: str) -> tuple[Verdict, ...]:
    return tuple(Verdict(each.name, "refused", reason) for each in entries)


async def admit(
    store: Store, entries: Sequence[Entry], *, gate: Gate = GATE, reason: str = ""
) -> tuple[Verdict, ...]:
    """`remember` into a store."""
    flow = remember(entries, gate=gate, reason=reason)
    replies: list[Any] | None = None
    while True:
        try:
            requests = flow.send(replies)  # type: ignore[arg-type]
        except StopIteration as end:
            verdicts: tuple[Verdict, ...] = end.value
            return verdicts
        replies = [
            await (recalled(store, each) if isinstance(each, Recall) else remembered(store, each))
            for each in requests
            if isinstance(each, Recall | Remember)
        ]


def _judging(entries: Sequence[Entry], gate: Gate) -> Flow[tuple[tuple[Verdict, ...], tuple[Entry, ...]]]:
    """The verdicts, and what is to be written for all of them. Each entry meets what those before it have
    become."""
    pending: dict[str, Entry] = {}
    verdicts = []
    for entry in entries:
        entry = defused(entry)
        if why := gate.objection(entry):
            verdicts.append(Verdict(entry.name, "refused", why))
            continue
        replies = yield [Recall(names=(entry.name,)), Recall(entry.text, _NEIGHBOURS, kinds=(entry.kind,))]
        matches = [match for reply in replies if isinstance(reply, tuple) for match in reply]
        found = {match.entry.name: match.entry for match in matches}
        verdict = judge(entry, [*(found | pending).values()], gate)
        pending |= {each.name: each for each in verdict.entries}
        verdicts.append(verdict)
    return tuple(verdicts), tuple(pending.values())


def _why(verdicts: Sequence[Verdict], reason: str) -> str:
    told = (each.reason for each in verdicts if each.entries)
    return "; ".join(dict.fromkeys(filter(None, (reason, *told))))[:_LONGEST_REASON]


# ---------------------------------------------------------------- what is there already


def _again(entry: Entry, old: Entry, gate: Gate) -> Verdict:
    """What says the same, or a concept written again."""
    heard = {old.name, entry.name}
    new = tuple(told for told in entry.evidence if gate.sufficient(told) and not heard & set(told.read))
    revived = old.status == "retired" and bool(gate.support(replace(old, evidence=new)))
    if not new and entry.kind not in CONCEPTS:
        return Verdict(entry.name, "echo", f"its run had read it: {old.name!r}")
    both = merged(old, replace(entry, evidence=new))
    if revived:
        return Verdict(
            entry.name,
            "merged",
            f"{old.name!r} is active again: found anew",
            (replace(both, status="active"),),
        )
    if both == old:
        return Verdict(entry.name, "echo", f"already there: {old.name!r}")
    how = "written again" if entry.name == old.name else f"says what {old.name!r} says"
    return Verdict(entry.name, "merged", f"{entry.name!r} {how}", (both,))


def merged(old: Entry, new: Entry) -> Entry:
    """Two entries that say the same as one: the old one's name, text and counts, the evidence of both.

    Of the data, the first value that is not empty stays; lists are joined without repetitions; parts with a
    name, such as parameters, are replaced by the newer of that name. Another wording is kept in `wordings`.
    """
    data = dict(old.data)
    for key, value in new.data.items():
        data[key] = _joined(data[key], value) if key in data else value
    if not same_words(new.text, old.text) and old.kind not in CONCEPTS:
        wordings = [*old.data.get("wordings", []), new.text]
        data["wordings"] = list(dict.fromkeys(wordings))[:_NEIGHBOURS]
    evidence = _first((*old.evidence, *new.evidence))
    text = old.text
    if old.kind in CONCEPTS:  # whose text lists what their data say
        text = "\n".join(dict.fromkeys((*old.text.splitlines(), *new.text.splitlines())))
    return replace(old, text=text, data=data, evidence=evidence, domain=old.domain or new.domain)


def _joined(old: Any, new: Any) -> Any:
    if isinstance(old, list) and isinstance(new, list):
        if all(isinstance(each, dict) and "name" in each for each in (*old, *new)):
            return [*({each["name"]: each for each in old} | {each["name"]: each for each in new}).values()]
        return [*old, *(each for i, each in enumerate(new) if each not in old and each not in new[:i])]
    return old if old not in (None, "", [], {}) else new


def _beside(entry: Entry, against: Sequence[Entry], by_name: Mapping[str, Entry]) -> Verdict:
    """Both stay, and each names the other."""
    name, number = entry.name, 2
    while name in by_name:
        name, number = f"{entry.name} ({number})", number + 1
    names = [each.name for each in against]
    mine = replace(
        entry, name=name, data={**entry.data, "contradicts": names}, evidence=_first(entry.evidence)
    )
    theirs = [
        replace(each, data={**each.data, "contradicts": _joined(each.data.get("contradicts", []), [name])})
        for each in against
    ]
    told = ", ".join(map(repr, names))
    return Verdict(entry.name, "beside", f"{name!r} contradicts {told}; all are kept", (mine, *theirs))


def _first(evidence: Sequence[Evidence]) -> tuple[Evidence, ...]:
    """Without repetitions, and without end: what was there first stays."""
    return tuple(dict.fromkeys(evidence))[:MAX_EVIDENCE]


def _told(evidence: Sequence[Evidence], least: Mapping[str, float]) -> str:
    if not evidence:
        return "it has no evidence"
    best = max(evidence, key=lambda told: told.confidence)
    kind = best.verifier or "no verifier"
    needed = f", {least[kind]:g} is needed" if kind in least else f"; known: {', '.join(least)}"
    return f"{kind} {best.confidence:g}{needed}"


_ATTEMPTS = 50  # each that fails is a write of somebody else
_OVERTAKEN = "the memory is written by others all the time; try again, or write in fewer processes"
_LONGEST_REASON = 500
