"""All concepts, lessons and solutions of one version of a memory: a value that writes return anew."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from ...serving.entries import Entry, Evidence
from .concept import Concept, Kept, Lesson, Solution, entry, kept_in, merged


class Written(NamedTuple):
    """A library after a write: the names that changed, and why something was not taken, in words."""

    library: "Library"
    changed: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Library:
    """By name, whatever the order in which it was written. `primary` is the subtype of routines that change
    the final artefact."""

    concepts: Mapping[str, Concept] = field(default_factory=dict)
    lessons: Mapping[str, Lesson] = field(default_factory=dict)
    solutions: Mapping[str, Solution] = field(default_factory=dict)
    primary: str = "grid manipulation"

    @classmethod
    def of(cls, entries: Iterable[Entry], *, primary: str = "grid manipulation") -> "Library":
        """What active entries hold."""
        return cls(primary=primary).with_kept(kept_in(entries))

    def with_kept(self, kept: Iterable[Kept]) -> "Library":
        """With these put in, in the place of those of the same names."""
        found: dict[type, dict[str, Kept]] = {Concept: {}, Lesson: {}, Solution: {}}
        for each in (*self.concepts.values(), *self.lessons.values(), *self.solutions.values(), *kept):
            found[type(each)][each.name] = each
        concepts, lessons, solutions = (dict(sorted(part.items())) for part in found.values())
        return Library(concepts, lessons, solutions, self.primary)  # type: ignore[arg-type]

    @cached_property
    def types(self) -> dict[str, str]:
        """The types that concepts define, by name; of two definitions that of the first concept."""
        found: dict[str, str] = {}
        for concept in self.concepts.values():
            for name, definition in concept.types.items():
                found.setdefault(name, definition)
        return dict(sorted(found.items()))

    def write(
        self,
        specs: Sequence[Concept],
        *,
        problem: str = "",
        evidence: Sequence[Evidence] = (),
        solution: Solution | None = None,
    ) -> Written:
        """Merge what one solved problem taught. A new concept without a valid kind is left out."""
        concepts, changed, notes = dict(self.concepts), [], []
        for new in specs:
            old = concepts.get(new.name)
            if old is None and not new.kind:
                notes.append(f"skipped {new.name!r}: it is new, and has no valid kind")
                continue
            now = merged(old, replace(new, evidence=(*new.evidence, *evidence)), problem)
            if now != old:
                concepts[new.name] = now
                changed.append(new.name)
        after = replace(self, concepts=dict(sorted(concepts.items())))
        if solution is not None and self.solutions.get(solution.name) != solution:
            after = after.with_kept([solution])
            changed.append(solution.name)
        return Written(after, tuple(dict.fromkeys(changed)), tuple(notes))

    def merge(self, other: "Library") -> Written:
        """With all of another library, by the same rule."""
        done = self.write(list(other.concepts.values()))
        known: dict[str, Kept] = {**self.lessons, **self.solutions}
        rest: list[Kept] = [*other.lessons.values(), *other.solutions.values()]
        new = [each for each in rest if each != known.get(each.name)]
        changed = (*done.changed, *(each.name for each in new))
        return Written(done.library.with_kept(new), changed, done.notes)

    def learn(self, lessons: Sequence[Lesson]) -> Written:
        """With these lessons; word for word the same one is known already, whatever its source."""
        new = {lesson.name: lesson for lesson in lessons if lesson.name not in self.lessons}
        return Written(self.with_kept(new.values()), tuple(new))

    def entries(self, names: Iterable[str] | None = None) -> tuple[Entry, ...]:
        """Its parts as entries of a store, all or those named."""
        parts: dict[str, Kept] = {**self.solutions, **self.lessons, **self.concepts}
        return tuple(entry(parts[name]) for name in (sorted(parts) if names is None else names))
