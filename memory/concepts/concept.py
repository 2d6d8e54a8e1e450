"""What is remembered of a solved problem: concepts, lessons, the solution; and how the same is merged.

A *concept* is a thing seen in the data (`structure`) or an operation (`routine`), with parameters, so that
concepts can be put together; a *lesson* is a situation and what to try in it. `spec` reads what a model or a
file says of a concept, `merged` is the rule for a name that is written again, and both become entries of a
store (`entry`, `from_entry`).

Source: ArcMemo: Abstract Reasoning Composition with Lifelong LLM Memory, arXiv 2509.04439. Deviates: free
text in the place of a parameter is read or refused, never made a name; a field that is not known is told, not
lost.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import blake2b
from typing import Any

from ...serving.entries import Entry, Evidence
from ..untrusted import visible

KINDS = ("structure", "routine")


@dataclass(frozen=True)
class Parameter:
    """How a concept varies. `typing` may be a callable type, and then a routine can be passed."""

    name: str
    typing: str = ""
    description: str = ""


@dataclass(frozen=True)
class Concept:
    """`kind` is empty only in a specification that reuses a known name. All texts are single lines."""

    name: str
    kind: str = ""
    routine_subtype: str = ""
    output_typing: str = ""
    parameters: tuple[Parameter, ...] = ()
    description: str = ""
    cues: tuple[str, ...] = ()
    implementation: tuple[str, ...] = ()
    used_in: tuple[str, ...] = ()
    domain: str = ""
    evidence: tuple[Evidence, ...] = ()
    uses: int = field(default=0, compare=False)
    wins: int = field(default=0, compare=False)

    @property
    def types(self) -> dict[str, str]:
        """The types that its typings define, `name := definition`; of two the first."""
        found: dict[str, str] = {}
        for typing in (self.output_typing, *(parameter.typing for parameter in self.parameters)):
            if match := _DEFINES.match(typing):
                found.setdefault(match["name"], match["definition"])
        return found


@dataclass(frozen=True)
class Lesson:
    """What to look for, what to try then, and the problem it was learned from."""

    situation: str
    suggestion: str
    source: str = ""
    domain: str = ""
    evidence: tuple[Evidence, ...] = ()
    uses: int = field(default=0, compare=False)
    wins: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """Its key in a store: the same words have the same."""
        said = f"{self.situation}\n{self.suggestion}".encode()
        return f"lesson {blake2b(said, digest_size=5).hexdigest()}"


@dataclass(frozen=True)
class Solution:
    """How a problem was solved: the solution, what it does in one line and in pseudocode."""

    problem: str
    solution: str
    summary: str = ""
    pseudocode: str = ""
    domain: str = ""
    evidence: tuple[Evidence, ...] = ()

    @property
    def name(self) -> str:
        """Its key in a store."""
        return f"solution of {self.problem}"


Kept = Concept | Lesson | Solution

_DEFINES = re.compile(r"^\s*(?P<name>[A-Za-z_][\w \-]*?)\s*:=\s*(?P<definition>\S.*)$")


def typed(typing: str) -> str:
    """A typing without the definition it may hold.

    >>> typed("row test := Callable[[row], bool]"), typed("list[row]")
    ('row test', 'list[row]')
    """
    match = _DEFINES.match(typing)
    return match["name"] if match else typing.strip()


# ---------------------------------------------------------------- the merge rule


def merged(old: Concept | None, new: Concept, problem: str = "") -> Concept:
    """The concept after `new` was written of the same name, for that problem.

    used_in gets the problem once. Of description, output typing, subtype and domain the first that is not
    empty stays; a parameter replaces that of its name; cues and implementation are appended, without exact
    duplicates.
    """
    old = old or replace(new, parameters=(), cues=(), implementation=(), used_in=(), evidence=())
    parameters = {p.name: p for p in (*old.parameters, *new.parameters)}
    return replace(
        old,
        routine_subtype=old.routine_subtype or new.routine_subtype,
        output_typing=old.output_typing or new.output_typing,
        description=old.description or new.description,
        domain=old.domain or new.domain,
        parameters=tuple(parameters.values()),
        cues=_once(*old.cues, *new.cues),
        implementation=_once(*old.implementation, *new.implementation),
        used_in=_once(*old.used_in, *new.used_in, *((problem,) if problem else ())),
        evidence=tuple(dict.fromkeys((*old.evidence, *new.evidence))),
    )


def _once(*texts: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


# ---------------------------------------------------------------- reading what was said of a concept


def spec(said: object) -> tuple[Concept | None, list[str]]:
    """A concept as a model or a file specifies it, and what of that could not be taken, in words. None where
    nothing could; a kind that is none is left empty.

    >>> concept, notes = spec({"concept": "a", "kind": "routine", "parameters": ["grid"], "output": "grid"})
    >>> concept.parameters[0].name, concept.output_typing, notes
    ('grid', 'grid', [])
    """
    if isinstance(said, str):
        said = {"concept": said}  # a reused one may be only its name
    if not isinstance(said, Mapping):
        return None, [f"skipped: a concept is a mapping, not {type(said).__name__}"]
    name = line(said.get("concept", said.get("name")))
    if not name or len(name) > _LONGEST_NAME:
        return None, [
            "skipped: it has no name" if not name else f"skipped: its name is too long: {name:.40}…"
        ]
    notes: list[str] = []
    parameters = []
    for item in _items(said.get("parameters"), "parameters", name, notes):
        parameter = _parameter(item)
        if parameter is None:
            notes.append(f"{name}: left out a parameter that has no name: {line(str(item)):.60}")
        else:
            parameters.append(parameter)
    lists = {key: _lines(said.get(key), key, name, notes) for key in ("cues", "implementation", "used_in")}
    kind = line(said.get("kind"))
    if kind and kind not in KINDS:
        notes.append(f"{name}: its kind is {kind[:40]!r}, not one of {', '.join(KINDS)}")
    notes += [f"{name}: left out the field {key[:40]!r}" for key in map(str, said) if key not in _FIELDS]
    return (
        Concept(
            name,
            kind if kind in KINDS else "",
            line(said.get("routine_subtype")),
            line(said.get("output_typing")) or line(said.get("output")),
            tuple(parameters),
            line(said.get("description")),
            lists["cues"],
            lists["implementation"],
            lists["used_in"],
            line(said.get("domain")),
        ),
        notes,
    )


def line(said: object) -> str:
    """Text in one line, without control characters, so that it cannot pass for the frame around it."""
    if said is None or isinstance(said, Mapping | list | tuple):
        return ""
    return " ".join(visible(str(said)).split())[:_LONGEST]


def _parameter(said: object) -> Parameter | None:
    """A parameter: a mapping, a name, or free text like "rows (type: list[row]): the lines"."""
    if isinstance(said, Mapping):
        if "name" not in said and len(said) == 1:  # - rows: the lines
            [(name, told)] = said.items()
            return Parameter(line(name), "", line(told)) if _is_name(line(name)) else None
        name = line(said.get("name"))
        typing = line(said.get("typing")) or line(said.get("type"))
        return Parameter(name, typing, line(said.get("description"))) if name else None
    text = line(said)
    if _is_name(text):
        return Parameter(text)
    match = _SPOKEN.match(text)
    if match is None or not _is_name(match["name"]):
        return None
    return Parameter(match["name"], (match["typing"] or "").strip(), (match["told"] or "").strip())


def _is_name(text: str) -> bool:
    return bool(_NAME.match(text))


def _items(said: object, key: str, name: str, notes: list[str]) -> list[Any]:
    if said is None or said == "" or said == {}:
        return []
    if isinstance(said, Mapping):  # {rows: list[row]}
        return [{k: v} for k, v in said.items()]
    if isinstance(said, list | tuple):
        return list(said)
    if key == "parameters":
        notes.append(f"{name}: its parameters are a text, not a list: {line(said):.60}")
        return []
    return [said]


def _lines(said: object, key: str, name: str, notes: list[str]) -> tuple[str, ...]:
    """The texts of a list; a mapping of one key is that key, a colon and its value."""
    found = []
    for item in _items(said, key, name, notes):
        if isinstance(item, Mapping) and len(item) == 1:
            [(head, tail)] = item.items()
            text = f"{line(head)}: {line(tail)}".rstrip(": ") if not _nested(tail) else ""
        else:
            text = line(item)
        if text:
            found.append(text)
        else:
            notes.append(f"{name}: left out one of its {key} that is no text")
    return _once(*found)


def _nested(said: object) -> bool:
    return isinstance(said, Mapping | list | tuple)


_LONGEST, _LONGEST_NAME = 2000, 120
_NAME = re.compile(r"^[^\W\d][\w\-]*(?: [\w\-]+){0,3}$")
_SPOKEN = re.compile(r"^(?P<name>[^(:]+?)\s*(?:\((?:type:)?\s*(?P<typing>.+?)\))?\s*(?::\s*(?P<told>.*))?$")
_FIELDS = frozenset(f.name for f in fields(Concept)) - {"name"} | {"concept", "name", "output"}


# ---------------------------------------------------------------- as entries of a store


def entry(kept: Kept) -> Entry:
    """An entry of a store; `from_entry` gives the same back."""
    data = asdict(kept)
    uses, wins = data.pop("uses", 0), data.pop("wins", 0)
    for key in ("domain", "evidence"):
        del data[key]
    if isinstance(kept, Concept):
        del data["name"], data["kind"]
        kind, words = kept.kind, (kept.name, kept.description, *kept.cues, *kept.implementation)
    elif isinstance(kept, Lesson):
        kind, words = "lesson", (kept.situation, kept.suggestion)
    else:
        kind, words = "solution", (kept.summary, kept.pseudocode or kept.solution)
    text = "\n".join(filter(None, words))
    plain: dict[str, Any] = json.loads(json.dumps(data))  # lists for tuples, as a store gives it back
    return Entry(kept.name, text, kind, plain, kept.domain, evidence=kept.evidence, uses=uses, wins=wins)


def from_entry(found: Entry) -> Kept | None:
    """What an entry holds; None for one of another kind, or which somebody else's hand has spoilt."""
    data = found.data
    if found.kind in KINDS:
        concept, _ = spec({**data, "concept": found.name, "kind": found.kind})
        if concept is None:
            return None
        return replace(
            concept, domain=found.domain, evidence=found.evidence, uses=found.uses, wins=found.wins
        )
    if found.kind == "lesson":
        situation, suggestion, source = (line(data.get(k)) for k in ("situation", "suggestion", "source"))
        if not (situation and suggestion):
            return None
        return Lesson(situation, suggestion, source, found.domain, found.evidence, found.uses, found.wins)
    if found.kind == "solution":
        problem, solution, summary, pseudocode = (
            str(data.get(key, "")) for key in ("problem", "solution", "summary", "pseudocode")
        )
        if not (problem and solution):
            return None
        return Solution(problem, solution, summary, pseudocode, found.domain, found.evidence)
    return None


def kept_in(entries: Iterable[Entry]) -> list[Kept]:
    """What active entries hold, in their order."""
    return [kept for each in entries if each.status == "active" and (kept := from_entry(each)) is not None]
