"""Learning from problem to problem: in a fixed order, in batches, pass after pass.

    for each batch: read the memory ─► solve side by side ─► what was solved is written ─► version + 1

The problems of a batch see the same memory, so with batches of 1 a problem sees what the one before it left,
and larger ones run more side by side and pass on less. A later pass takes up what was not solved. With
`control` attempts, which are shown no memory, what helps less than none is retired (`memory/decay.py`); and
if the memory as a whole helps less than none, the rest of the run is shown nothing of it.

Nothing is left to chance but the models: a run that was killed is replayed from its journal. A problem that a
limit cut off counts as not tried, and is the first to be tried again; so a run that its budget ended goes on
with a larger one as if it had had that from the beginning (but for what the smaller one made it ask twice).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, log
from statistics import fmean
from typing import Any

from ...memory.concepts.library import Library
from ...memory.decay import Decay, log_evidence
from ...serving.errors import SearchEnded, UsageError, demand
from ...serving.flow import Failure, Flow, Fork, Note, Recall, Remember
from ...serving.seeds import derive
from ..base import Task
from .attempts import Solved
from .puzzle import Labels
from .scoring import right
from .strategy import KINDS, ArcMemo
from .trials import trial


@dataclass(frozen=True)
class Round:
    """One batch: its problems in their order, the version of the memory that they read, those solved (by the
    gate), what was written, and the version after it."""

    turn: int  # the pass, from 1
    problems: tuple[str, ...]
    read: int
    solved: tuple[str, ...]
    written: tuple[str, ...]
    version: int
    notes: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    withheld: str = ""  # why nothing of the memory is shown from here on


@dataclass(frozen=True)
class Learned:
    """What came of a run. `gate` is "feedback", or "oracle" where test outputs decided what was written."""

    rounds: tuple[Round, ...]
    solved: Mapping[str, tuple[Solved, ...]]  # by problem, one for each pass that tried it
    gate: str = "feedback"
    stopped: str = ""

    @property
    def order(self) -> tuple[str, ...]:
        """The problems in the order in which they were tried."""
        return tuple(name for each in self.rounds for name in each.problems)


@dataclass(frozen=True)
class _Pair:
    """A problem tried with the memory and without it: what was shown, the share of attempts that passed."""

    shown: frozenset[str]
    helped: float
    alone: float


@dataclass
class _Course:
    """A run so far."""

    rounds: list[Round] = field(default_factory=list)
    solved: dict[str, list[Solved]] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    alone: list[bool] = field(default_factory=list)  # of problems tried without the memory, whether it went
    most_shown: int = 1
    pairs: list[_Pair] = field(default_factory=list)
    withheld: str = ""

    def taken(self, found: Sequence[Solved]) -> list[Solved]:
        """Keep what came of a batch, each in place of a try that was cut off. Returns those that were not cut
        off now. Raises SearchEnded if nothing came of any of these."""
        if any(each.result.candidates for each in found):
            for each in found:
                tries = self.solved.setdefault(each.id, [])
                tries[-1:] = [each] if tries and tries[-1].cut else [*tries[-1:], each]
        solved = [each for each in found if not each.cut]
        if not any(each.result.candidates for each in solved):  # a limit, or an engine that has died
            ended = next((each for each in found if each.cut), found[0])
            raise SearchEnded(str(ended.result.diagnostics.get("stopped", "nothing could be tried")))
        return solved

    def judge(self, unhelpful: Collection[str]) -> None:
        """Withhold the memory if so many fewer attempts passed with it than without it that the bet against
        it (`memory/decay.py`) is won. Problems that were shown what is unhelpful by itself, and so is gone,
        say nothing of the rest."""
        self.pairs = [each for each in self.pairs if not each.shown & set(unhelpful)]
        n = len(self.pairs)
        if n < _ENOUGH or self.withheld:
            return
        helped, alone = (sum(each.helped for each in self.pairs), sum(each.alone for each in self.pairs))
        if log_evidence(ceil(helped), n, (alone + 1) / (n + 2)) >= -log(_RISK):
            self.withheld = (
                f"of {n} problems {helped / n:.0%} of the attempts passed with the memory and "
                f"{alone / n:.0%} without it, so from here on nothing of it is shown"
            )


def learn(
    strategy: ArcMemo,
    tasks: Sequence[Task],
    *,
    seed: int,
    batch: int = 10,
    passes: int = 1,
    freeze: bool = False,
    oracle: Mapping[str, Labels] | None = None,
) -> Flow[Learned]:
    """Solve the tasks and learn from them. `freeze`: the memory is only read. `oracle`: the right
    test outputs by id; then only what they call right is written, as in the published code. It is for
    reproducing that alone, and the result is marked. Raises UsageError for ids that are not unique."""
    demand(batch >= 1, "batch", batch, "write at least 1; 10 is the default")
    demand(passes >= 1, "passes", passes, "write at least 1")
    named = {trial(task, strategy.policy).id: task for task in tasks}
    if len(named) < len(tasks):
        raise UsageError(
            "Two of the problems have the same id. Give each its own: Task(…, metadata={'id': …})."
        )
    strategy = replace(strategy, write=strategy.write and not freeze)
    course, stopped = _Course(), ""
    try:
        for turn in range(1, passes + 1):
            waiting = [name for name in named if name not in course.done]
            while waiting:
                chosen = {name: named[name] for name in waiting[:batch]}
                cut = yield from _round(strategy, course, chosen, turn, seed, oracle)
                waiting = [*cut, *waiting[batch:]]
    except SearchEnded as end:
        stopped = str(end)
    tried = {name: tuple(rows) for name, rows in course.solved.items()}
    gate = "feedback" if oracle is None else "oracle"
    return Learned(tuple(course.rounds), tried, gate, stopped)


def _round(
    strategy: ArcMemo,
    course: _Course,
    tasks: Mapping[str, Task],
    turn: int,
    seed: int,
    oracle: Mapping[str, Labels] | None,
) -> Flow[list[str]]:
    """Try a batch and learn from it. Returns those that a limit cut off. Raises SearchEnded if it leaves room
    for nothing more; then nothing is asked after what it refused."""
    library, fault = yield from strategy.recalled()
    known = not fault and strategy.asks
    read = yield from _version(known)
    solver = replace(strategy, read="none") if course.withheld else strategy
    flows = [_attempt(solver, task, library, derive(seed, turn, name)) for name, task in tasks.items()]
    [found] = yield [Fork(tuple(flows))]
    solved = course.taken(found)
    if oracle is not None:
        solved = [_by_oracle(each, oracle) for each in solved]
    course.done |= {each.id for each in solved if each.trace is not None}
    course.alone += [each.alone for each in solved if each.alone is not None and each.selected]
    course.pairs += [pair for each in solved if (pair := _pair(each))]
    course.most_shown = max([course.most_shown, *(len(each.selected) for each in solved)])
    facts: dict[str, Any] = {}
    limit, late, version, retired, unhelpful = "", "", read, *_NONE
    try:
        if strategy.write and known:
            facts, limit = yield from strategy.learned(solved, library, seed=derive(seed, "write", turn))
            version = facts.get("version", read)
            retired, unhelpful = _NONE if limit else (yield from _retired(course))
        version = version if limit else (yield from _version(known))
    except SearchEnded as end:  # what was learned is told all the same
        late = str(end)
    before = course.withheld
    course.judge(unhelpful)
    done = Round(
        turn,
        tuple(each.id for each in solved),
        read,
        tuple(each.id for each in solved if each.trace is not None),
        tuple(facts.get("written", ())),
        version,
        (
            *((f"no memory was read: {fault}",) if fault else ()),
            *facts.get("notes", ()),
            *((f"not all was written: {limit}",) if limit else ()),
        ),
        retired,
        "" if before else course.withheld,
    )
    course.rounds.append(done)
    yield [Note("learned", {**vars(done), "gate": "feedback" if oracle is None else "oracle"})]
    if limit or late:
        raise SearchEnded(limit or late)
    return [each.id for each in found if each.cut]


def _attempt(strategy: ArcMemo, task: Task, library: Library, seed: int) -> Flow[Solved]:
    solved = yield from strategy.attempt(task, library, seed=seed)
    facts = {"id": solved.id, "solved": solved.trace is not None}
    yield [Note("tried", {**facts, "attempts": len(solved.result.candidates)})]
    return solved


def _pair(solved: Solved) -> _Pair | None:
    """None of a problem that was shown nothing, or had no control attempt."""
    told = solved.result.diagnostics.get("ablation", {})
    if not solved.selected or not told.get("with") or not told.get("without"):
        return None
    helped, alone = (fmean(passed is True for passed in told[key]) for key in ("with", "without"))
    return _Pair(frozenset(solved.selected), helped, alone)


def _retired(course: _Course) -> Flow[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Retire what does not help, by what the controls reached without it; nothing before there are some.
    Returns the names, and those of them that are unhelpful by themselves."""
    if len(course.alone) < _ENOUGH:
        return (), ()
    base = (sum(course.alone) + 1) / (len(course.alone) + 2)
    [before] = yield [Remember()]
    [found] = yield [Recall("", 0, KINDS)]
    entries = [] if isinstance(found, Failure) else [match.entry for match in found]
    rule = Decay(base, shown=course.most_shown)
    gone = rule.going(entries)
    if gone:
        reason = f"solved less often with it, or with others of its origin, than without ({base:.2f})"
        retired = tuple(replace(entry, status="retired") for entry in gone)
        [version] = yield [Remember(retired, reason=reason, after=before)]
        if version == 0:  # another run has written since: they are judged again after the next batch
            return (), ()
    return tuple(entry.name for entry in gone), tuple(entry.name for entry in rule.unhelpful(entries))


def _version(known: bool) -> Flow[int]:
    """The memory's version: to remember nothing tells it."""
    if not known:
        return 0
    [version] = yield [Remember()]
    return 0 if isinstance(version, Failure) else int(version)


def _by_oracle(solved: Solved, labels: Mapping[str, Labels]) -> Solved:
    """Without its trace, unless the test outputs are right too."""
    return (
        solved
        if all(right(solved.result.answer, labels[solved.id]))
        else replace(solved, trace=None, won=False)
    )


_NONE: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
_ENOUGH = 20  # controls, before anything is judged by them
_RISK = 0.2  # of withholding a memory that is as good as none, which costs nothing
