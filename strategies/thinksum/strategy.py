"""The strategy: read the task, think, sum, decide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...serving.base import Capability
from ...serving.errors import SearchEnded, UnknownName, demand
from ...serving.flow import Flow, Note
from ..base import Candidate, Policy, Result, Step, Task
from ..search import Search
from .arrangements import EPSILON, deduce
from .outlier import latent, minority
from .presets import PRESETS
from .program import Program, Unanswerable
from .table import IMPOSSIBLE, OPERATORS, Table, both, normalised, plus, ratio
from .think import Workings


@dataclass(frozen=True)
class Verdict:
    """What a program says: an answer, and each candidate with its score and posterior, best first."""

    answer: str
    candidates: tuple[Candidate, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ThinkSum:
    """Answers by a program: the name of one in `PRESETS`, or a mapping (`program.py`).

    `max_pairs`: likelihoods one task may ask for (2,000, the bound of the specification). `chat`: put every
    text into the assistant's turn, for models that write nowhere else; likelihoods shift with it. `compare`:
    score the choices after the plain question too, and tell what that would have answered.

    Cost: one short call for each pair, none of them long, plus the texts that the program draws. A task that
    the program cannot read is answered by direct scoring of its choices, or, without choices, by the policy.
    """

    policy: Policy
    program: str | Mapping[str, Any] = "direct"
    max_pairs: int = 2000
    chat: bool = False
    compare: bool = False

    def __post_init__(self) -> None:
        demand(self.max_pairs >= 1, "max_pairs", self.max_pairs, "write at least 1, such as 2000")
        self.compiled  # noqa: B018 raises for a program that is none

    @property
    def compiled(self) -> Program:
        """The program, checked."""
        if isinstance(self.program, Mapping):
            return Program.checked(self.program)
        if self.program not in PRESETS:
            raise UnknownName("ThinkSum program", self.program, PRESETS)
        return Program.checked(PRESETS[self.program])

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """Likelihoods of given texts, unless the program only draws."""
        return {"policy": frozenset({"logprob"} if self.compiled.scores else ())}

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Think, sum, decide; else score the choices directly; else let the policy answer."""
        search = Search(task, self.policy, None, seed)
        best, stopped, verdict = None, None, None
        facts: dict[str, Any] = {}
        try:
            verdict = yield from self.verdict(search, self.compiled, facts)
            plain = None
            if task.choices and (verdict is None or self.compare):
                told = facts if verdict is None else {}
                plain = yield from self.verdict(search, Program.checked(PRESETS["direct"]), told)
            if plain is not None and verdict is not None:
                facts["direct"] = plain.answer
            verdict = verdict or plain
            if verdict is None:
                best = search.best((yield from search.complete(search.root, 1)))
        except SearchEnded as end:
            stopped = end
        if verdict is not None:
            [best] = yield from search.record(search.root, [Step(verdict.answer, last=True)])
        elif best is None:
            best = yield from search.finalise(search.root)
        elif not search.answered(best):
            best = yield from search.forced(best)
        pool = verdict.candidates if verdict is not None else None
        return search.result(best, stopped=stopped, pool=pool, **facts)

    def verdict(self, search: Search, program: Program, facts: dict[str, Any]) -> Flow[Verdict | None]:
        """What a program says of the task; None where it cannot say, with the reason in `facts`."""
        work = Workings(program, search.seed, self.max_pairs, self.chat)
        try:
            work.take(program.items(search.task))
            yield from work.think()
            sums = _Sums(work)
            scores = sums.value(program.sum)
            verdict = _decided(program, work, sums, scores)
        except Unanswerable as reason:
            facts.setdefault("abstained", str(reason))
            verdict = None
        search.counts.tokens += work.n_tokens
        facts["pairs"] = facts.get("pairs", 0) + work.n_pairs
        for failure in work.failures:
            if failure.message not in search.failures:
                search.failures.append(failure.message)
            if failure.kind == "budget":
                search.ended = SearchEnded(failure.message)
        if verdict is not None:
            facts |= verdict.facts
            yield [Note("thinksum", {"answer": verdict.answer, **verdict.facts})]
        return verdict


# ---------------------------------------------------------------- sum


@dataclass
class _Sums:
    """The value of an expression over the tables of a run, and what explains it."""

    work: Workings
    told: dict[str, Any] = field(default_factory=dict)
    votes: bool = False  # the value counts votes; else it is a logarithm

    def value(self, node: Any) -> Table:
        if isinstance(node, str):
            return self.work.tables[node]
        op = node["op"]
        if op == "marginalise":
            return self._deduced(node)
        if op == "both":
            return both(self.value(node["of"]))
        if op in ("ratio", "plus"):
            one, other = map(self.value, node["of"])
            return ratio(one, other) if op == "ratio" else plus(one, other)
        of, over = self.value(node["of"]), list(node["over"])
        if op in ("minority", "latent"):
            return self._odd(op, of, over[0], node.get("threshold"))
        weights = self.value(node["weights"]) if "weights" in node else None
        self.votes = op == "majority"
        return OPERATORS[op](of, over, weights)

    def _odd(self, op: str, truth: Table, over: str, threshold: float | None) -> Table:
        """Which item is the odd one; a statement with a label missing is left out."""
        [items] = [axis for axis in truth.axes if axis != over]
        j, i = truth.axes.index(over), truth.axes.index(items)
        n = len(self.work.lists[self.work.program.indices[items]])
        rows: dict[int, dict[int, float]] = {}
        for index, t in truth.cells.items():
            rows.setdefault(index[j], {})[index[i]] = t
        whole = {at: [row[k] for k in range(n)] for at, row in rows.items() if len(row) == n}
        if not whole:
            raise Unanswerable("no statement was judged for every item")
        self.votes = op == "minority"
        if op == "minority":
            return Table((items,), {(k,): v for k, v in enumerate(minority([*whole.values()], threshold))})
        found = latent([*whole.values()])
        statements = self.work.lists[self.work.program.indices[over]]
        pairs = zip(whole, found.relevance, strict=True)
        self.told |= {"rho": found.rho, "relevance": {statements[at]: round(r, 4) for at, r in pairs}}
        return Table((items,), {(k,): p for k, p in enumerate(found.log_posterior)})

    def _deduced(self, node: Mapping[str, Any]) -> Table:
        work = self.work
        query = next(q for q in work.program.think if q["as"] == node["clues"])
        objects = work.lists[query["objects"]]
        clues, answers = work.read[node["clues"]], work.read[node["answers"]]
        found = deduce(len(objects), clues, answers, float(node.get("epsilon", EPSILON)))
        best = [max(clue, key=lambda s: clue[s]).text(objects) if clue else None for clue in clues]
        self.told |= {"clues": best, "confidence": found.confidence, "flatness": round(found.flatness, 4)}
        if found.abstains:
            raise Unanswerable("the clues leave all arrangements about equally likely")
        [of] = work.program.axes[node["answers"]]
        return Table((of,), {(i,): log for i, log in enumerate(found.log_answers)})


# ---------------------------------------------------------------- decide


def _decided(program: Program, work: Workings, sums: _Sums, scores: Table) -> Verdict:
    """Impossible answers come last; equals keep the order in which they were given, and are told."""
    facts: dict[str, Any] = {**sums.told, "table": _plain(work)}
    by = program.decide["by"]
    if by == "threshold":
        return _above(program, work, scores, facts)
    names = work.lists[program.answers]
    sign = -1.0 if by == "argmin" else 1.0
    found = [
        sign * x if (i,) in scores.cells else IMPOSSIBLE for i, x in enumerate(scores.vector(len(names)))
    ]
    if all(x == IMPOSSIBLE for x in found):
        raise Unanswerable("every answer is impossible")
    shares = _shares(found) if sums.votes else normalised(found)
    order = sorted(range(len(names)), key=lambda i: -found[i])
    candidates = tuple(Candidate(names[i], names[i], _finite(found[i]), shares[i]) for i in order)
    k = min(_count(work, program.decide["k"]), len(names)) if by == "top_k" else 1
    last = found[order[k - 1]]
    tied = [names[i] for i in order if abs(found[i] - last) <= 1e-9 * max(1.0, abs(last))]
    if len(tied) > 1 and k < len(names):
        facts["tied"] = tied
    return Verdict(
        ", ".join(sorted(names[i] for i in order[:k])) if k > 1 else names[order[0]], candidates, facts
    )


def _count(work: Workings, k: int | str) -> int:
    if isinstance(k, int):
        return k
    said = work.texts[k]
    if not said.isdecimal() or len(said) > 4 or int(said) < 1:
        raise Unanswerable(f"{said!r} is no number of answers")
    return int(said)


def _above(program: Program, work: Workings, scores: Table, facts: dict[str, Any]) -> Verdict:
    """One of two answers, by whether the one number left exceeds `at`: `above`, or else `below`, or the first
    `among` a list that is not `above`."""
    decide = program.decide
    if () not in scores.cells:
        raise Unanswerable("nothing was left to compare")
    above = str(decide["above"])
    others = [c for c in work.lists.get(decide.get("among", ""), ()) if c.casefold() != above.casefold()]
    below = str(decide["below"]) if "below" in decide else next(iter(others), "")
    value = scores.cells[()]
    names = (above, below) if value > float(decide["at"]) else (below, above)
    told = facts | {"value": _finite(value)}
    return Verdict(names[0], tuple(Candidate(name, name) for name in names), told)


def _shares(votes: Sequence[float]) -> list[float]:
    total = sum(v for v in votes if v > 0)
    return [max(0.0, v) / total if total else 1.0 / len(votes) for v in votes]


def _plain(work: Workings) -> dict[str, Any]:
    """Every l_ij, with what its indices stand for."""
    told: dict[str, Any] = {"lists": {name: list(values) for name, values in work.lists.items()}}
    for name, table in work.tables.items():
        cells = [[*index, _finite(x)] for index, x in table.cells.items()]
        told[name] = {"axes": list(table.axes), "cells": cells}
    return told


def _finite(x: float) -> float | None:
    """JSON has no infinities."""
    return None if x in (IMPOSSIBLE, -IMPOSSIBLE) else x
