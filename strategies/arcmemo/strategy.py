"""The strategy: recall, choose, attempt, and write down what was learned."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ...memory.concepts import rendering
from ...memory.concepts.exchange import seeds
from ...memory.concepts.library import Library, Written
from ...memory.concepts.selecting import Format, Reading, Selection, Selector
from ...memory.concepts.writing import Distilled, Trace, Writer, gather, is_long
from ...serving.base import Capability
from ...serving.errors import SearchEnded, demand
from ...serving.flow import Failure, Flow, Fork, Recall, Remember, Sampling
from ..base import Policy, Result, Task
from .attempts import Attempts, Solved
from .trials import trial

KINDS = ("structure", "routine", "lesson")
"""Of a store's entries, those that are read."""

_SELECT = Sampling(temperature=0.3, max_tokens=4096)
_WRITE = Sampling(temperature=0.3, max_tokens=4096)


@dataclass(frozen=True, kw_only=True)
class ArcMemo:
    """At most `max_passes` times `samples` attempts; each pass after the first sees the `feedback_passes`
    last attempts. Cost besides them: a selection (two calls at most; for lessons one more), and with `write`
    two calls for a problem that was solved, and one for each concept whose lists have become long.

    `format`: concepts that compose ("ps") or lessons ("oe"). `read`: a model selects, only names are shown,
    all of the memory, or none. `control`: so many attempts of each pass are shown none, and the result tells
    which of both kinds passed (`ablation`): a hedge against a bad memory, and a measure of what it is worth.
    `reselect`: choose again after a failed pass. `seeds`: what an empty memory
    begins with, such as "grids". `min_used`: a concept that fewer problems used is shown to the selecting
    model by name only. `k`: lessons at most. `examples`: annotated solutions that show how concepts are
    written, "" for none. `selector` and `writer` are the roles that select and write; the policy's own model
    plays them unless the run names others.
    """

    remembers: ClassVar[bool] = True
    """It asks the memory itself, so a recipe that has it needs no steps that do."""

    policy: Policy
    format: Format = "ps"
    read: Reading = "select"
    write: bool = True
    max_passes: int = 3
    samples: int = 1
    feedback_passes: int = 1
    reselect: bool = False
    control: int = 0
    k: int = 5
    min_used: int = 2
    max_memory_tokens: int = 24_000
    primary_subtype: str = "grid manipulation"
    domain: str = ""
    seeds: str = ""
    examples: str = "grids"
    selector: str = "selector"
    writer: str = "writer"
    select_sampling: Sampling = _SELECT
    write_sampling: Sampling = _WRITE

    def __post_init__(self) -> None:
        for name in ("max_passes", "samples", "k", "max_memory_tokens"):
            demand(getattr(self, name) >= 1, name, getattr(self, name), "write at least 1")
        for name in ("feedback_passes", "min_used", "control"):
            demand(getattr(self, name) >= 0, name, getattr(self, name), "write at least 0")
        for name, known in _WORDS.items():
            demand(
                getattr(self, name) in known, name, getattr(self, name), f"write one of {', '.join(known)}"
            )
        for name in filter(None, (self.seeds, self.examples)):
            seeds(name)  # complains of an unknown one

    @property
    def requires(self) -> Mapping[str, frozenset[Capability]]:
        """Selector and writer write text."""
        return {self.selector: frozenset({"generate"}), self.writer: frozenset({"generate"})}

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Recall, choose, attempt; then remember what was learned, if it was solved and there is a memory."""
        library, known = self.nothing, False
        facts: dict[str, Any] = {}
        with suppress(SearchEnded):  # the attempts run into the same limit, and say so
            library, fault = yield from self.recalled()
            known = self.asks and not fault
            facts = {"notes": [f"no memory was read: {fault}"]} if fault else {}
        solved = yield from self.attempt(task, library, seed=seed)
        if known and self.write:
            facts, limit = yield from self.learned([solved], library, seed=seed)
            if limit:
                what = "not all" if facts["written"] else "nothing"
                facts["notes"] = [*facts.get("notes", ()), f"{what} was written: {limit}"]
        return replace(solved.result, diagnostics={**solved.result.diagnostics, **facts})

    def attempt(self, task: Task, library: Library, *, seed: int) -> Flow[Solved]:
        """Solve with what the library has. Reads and writes no memory."""
        problem = trial(task, self.policy)
        attempts = Attempts(
            trial=problem,
            policy=self.policy,
            choose=lambda seed, tried: self.chosen(library, problem.words, seed=seed, tried=tried),
            seed=seed,
            max_passes=self.max_passes,
            samples=self.samples,
            feedback_passes=self.feedback_passes,
            reselect=self.reselect,
            control=self.control,
            domain=self.domain,
        )
        return (yield from attempts.made())

    # ------------------------------------------------------------ reading

    @property
    def nothing(self) -> Library:
        """An empty memory."""
        return Library(primary=self.primary_subtype)

    @property
    def asks(self) -> bool:
        """Whether it asks the memory at all."""
        return self.read != "none" or self.write

    def recalled(self) -> Flow[tuple[Library, str]]:
        """What the memory holds, and what was wrong if it could not be read. An empty one begins with the
        seeds, and so does none."""
        if not self.asks:
            return self.nothing, ""
        [found] = yield [Recall("", 0, KINDS)]
        fault = found.message if isinstance(found, Failure) else ""
        known = not fault
        library = Library.of([match.entry for match in found] if known else [], primary=self.primary_subtype)
        if self.seeds and not library.concepts:
            library = replace(seeds(self.seeds), primary=self.primary_subtype)
            if known and self.write:
                yield [Remember(library.entries(), reason=f"the seeds {self.seeds}")]
        return library, fault

    def chosen(self, library: Library, problem: str, *, seed: int, tried: str = "") -> Flow[Selection]:
        """What a solver is shown."""
        parts = library.concepts if self.format == "ps" else library.lessons
        if self.read == "none" or not parts:
            return Selection()
        if self.read == "select":
            selector = self._selector()
            if self.format == "ps":
                return (yield from selector.concepts(library, problem, seed=seed, tried=tried))
            return (yield from selector.lessons(library, problem, seed=seed))
        names = tuple(parts) if self.read == "all" else ()
        if self.format == "ps":
            text = rendering.selected(library, names)
        else:
            text = rendering.lessons([library.lessons[name] for name in names])
        return Selection(names, text, self.read, format=self.format)

    # ------------------------------------------------------------ writing

    def learned(
        self, solved: Sequence[Solved], library: Library, *, seed: int
    ) -> Flow[tuple[dict[str, Any], str]]:
        """Write what a batch taught: its problems see the same memory and are merged in their order. Returns
        the names written, the memory's version after it, and notes on what could not be written; and the
        limit that left something unwritten, if one did. Then nothing is asked after what it refused."""
        credit = {name: each.won for each in solved for name in each.selected}
        facts: dict[str, Any] = {"written": []}
        traces = [each.trace for each in solved if each.trace]
        try:
            distilled, left, limit = yield from self._distilled(traces, library, seed)
            yield from self._kept(distilled, library, credit, seed, facts)
            while left:  # what is kept back for the end may do for them
                distilled, left, limit = yield from self._distilled(left, library, seed)
                if not distilled:
                    return facts, limit
                yield from self._kept(distilled, library, {}, seed, facts)
        except SearchEnded as end:
            return facts, str(end)
        return facts, ""

    def _distilled(
        self, traces: Sequence[Trace], library: Library, seed: int
    ) -> Flow[tuple[list[Distilled], list[Trace], str]]:
        """What the traces teach, and those for which a limit left no room, and which limit."""
        writer = self._writer()
        flows = tuple(writer.distil(trace, library, seed=seed) for trace in traces)
        [found] = (yield [Fork(flows)]) if flows else [()]
        left = [trace for trace, each in zip(traces, found, strict=True) if isinstance(each, Failure)]
        limit = next((each.message for each in found if isinstance(each, Failure)), "")
        return [each for each in found if not isinstance(each, Failure)], left, limit

    def _kept(
        self,
        distilled: Sequence[Distilled],
        library: Library,
        credit: Mapping[str, bool],
        seed: int,
        facts: dict[str, Any],
    ) -> Flow[None]:
        """Write what was distilled, condense what has grown long, and add to the facts."""
        done, version = yield from self._written(distilled, library, credit)
        notes = [*facts.get("notes", ()), *done.notes]
        if isinstance(version, Failure):
            notes.append(f"nothing was written: {version.message}")
        else:
            facts["written"] += done.changed
        facts |= ({"version": version} if isinstance(version, int) else {}) | (
            {"notes": notes} if notes else {}
        )
        changed = [done.library.concepts[name] for name in done.changed if name in done.library.concepts]
        long = [concept for concept in changed if is_long(concept)]
        shorter = yield from self._writer().condense(long, seed=seed)
        if shorter and isinstance(version, int):
            names = [concept.name for concept in shorter]
            entries = done.library.with_kept(shorter).entries(names)
            why = "condensed: its lists had grown long"
            [later] = yield [Remember(entries, reason=why, after=version)]
            if later != 0:  # else another run has written since, and they are condensed when written next
                facts |= {"version": later, "condensed": [*facts.get("condensed", ()), *names]}

    def _written(
        self, distilled: Sequence[Distilled], library: Library, credit: Mapping[str, bool]
    ) -> Flow[tuple[Written, int | Failure | None]]:
        """Merge them into the memory as it is now, not as it was when the problems were begun: other runs may
        have written to it. Returns the version too, None if nothing was written."""
        if not distilled:
            [version] = (yield [Remember(credit=credit)]) if credit else [None]
            return Written(library, (), ()), version
        reason = f"learned from {', '.join(each.trace.problem for each in distilled)}"
        for _ in range(_ATTEMPTS):
            [before] = yield [Remember()]
            library, _ = yield from self.recalled()
            retired = yield from self._retired(distilled)
            done = gather([_without(each, retired) for each in distilled], library)
            told = (f"{name}: it was retired, and is not written again" for name in sorted(retired))
            done = done._replace(notes=(*done.notes, *told))
            after = before if done.changed and not isinstance(before, Failure) else None
            entries = done.library.entries(done.changed)
            [version] = (yield [Remember(entries, credit, reason, after)]) if entries or credit else [None]
            if version != 0 or after is None:
                return done, version
        return done, Failure("memory", "others write to it all the time")

    def _retired(self, distilled: Sequence[Distilled]) -> Flow[frozenset[str]]:
        """Which of the names that are to be written were given up, and so are not in the library."""
        names = tuple(sorted({concept.name for each in distilled for concept in each.concepts}))
        [found] = (yield [Recall(names=names)]) if names else [()]
        matches = () if isinstance(found, Failure) else found
        return frozenset(match.entry.name for match in matches if match.entry.status != "active")

    def _selector(self) -> Selector:
        return Selector(
            max_memory_tokens=self.max_memory_tokens,
            min_used=self.min_used,
            k=self.k,
            model=self.selector,
            sampling=self.select_sampling,
        )

    def _writer(self) -> Writer:
        return Writer(
            format=self.format,
            model=self.writer,
            min_used=self.min_used,
            max_memory_tokens=self.max_memory_tokens,
            examples=seeds(self.examples) if self.examples else Library(),
            sampling=self.write_sampling,
        )


def _without(distilled: Distilled, names: frozenset[str]) -> Distilled:
    return distilled._replace(concepts=tuple(c for c in distilled.concepts if c.name not in names))


_ATTEMPTS = 50  # each that fails is a write of another run
_WORDS: dict[str, tuple[str, ...]] = {
    "format": ("ps", "oe"),
    "read": ("select", "names", "all", "none"),
}
