"""Concepts as YAML, the form in which they are read, written by hand, and handed on.

    concepts:                                     lessons:
    - concept: keep rows by rule                  - situation: the output is smaller than the input
      kind: routine                                 suggestion: look for the part that is kept
      parameters: [{name: rows, typing: list[row]}]
    solutions:
    - {problem: "4c4377d9", solution: "def transform(grid): …", summary: …, pseudocode: …}

A list is one of concepts. Whoever wrote the text, nothing but texts, lists and mappings is made of it;
aliases, which can make a small text huge, are refused.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.resources import files
from typing import Any

import yaml

from ...serving.entries import Evidence
from ...serving.errors import UnknownName, UsageError
from .concept import Concept, Kept, Lesson, Solution, line, spec
from .library import Library, Written


class _Loader(yaml.SafeLoader):
    """All scalars are texts, but for null."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not taken")
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: kept
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [rule for rule in rules if rule[0] == "tag:yaml.org,2002:null"])
}


def parse(text: str) -> Any:
    """YAML as texts, lists and mappings. Raises ValueError, with the reason, for what is none."""
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text):,} characters, more than {_LONGEST:,}")
    try:
        return yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError) as error:
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        mark = getattr(error, "problem_mark", None)
        raise ValueError(f"{problem}{f' in line {mark.line + 1}' if mark else ''}") from None


def load(text: str, *, primary: str = "grid manipulation") -> Written:
    """The library of a text, and what of it could not be taken. Raises UsageError if it is no such YAML."""
    try:
        said = parse(text)
    except ValueError as error:
        raise UsageError(f"This is no YAML of concepts: {error}.") from None
    said = {"concepts": said} if isinstance(said, list) else said
    if not isinstance(said, Mapping) or not set(said) <= set(_PARTS):
        raise UsageError(f"Concepts are a list, or a mapping of {', '.join(_PARTS)}; got {said!r:.120}.")
    notes: list[str] = []
    specs, rest = [], []
    for key in _PARTS:
        rows = said.get(key) or []
        if not isinstance(rows, list):
            raise UsageError(f"{key} must be a list, got {rows!r:.120}.")
        for number, row in enumerate(rows, 1):
            kept, told = _READ[key](row)
            notes += [f"{key} {number}: {each}" for each in told]
            if isinstance(kept, Concept):
                specs.append(kept)
            elif kept is not None:
                rest.append(kept)
    done = Library(primary=primary).write(specs)
    library = done.library.with_kept(rest)
    changed = (*done.changed, *(each.name for each in rest))
    return Written(library, changed, (*notes, *done.notes))


def dump(library: Library) -> str:
    """The YAML that `load` reads back without loss."""
    parts: dict[str, list[dict[str, Any]]] = {
        "concepts": [row(each) for each in library.concepts.values()],
        "lessons": [row(each) for each in library.lessons.values()],
        "solutions": [row(each) for each in library.solutions.values()],
    }
    return written({key: rows for key, rows in parts.items() if rows})


def written(value: Any) -> str:
    """Plain data as YAML, in the order given."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def row(kept: Kept) -> dict[str, Any]:
    """A concept, lesson or solution as plain data, without what is empty."""
    data = asdict(kept)
    if isinstance(kept, Concept):
        data = {"concept": data.pop("name"), **data}
        data["parameters"] = [_filled(each) for each in data["parameters"]]
    data["evidence"] = [_filled(each) for each in data["evidence"]]
    return _filled(data)


def _filled(data: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items() if value}


def seeds(name: str = "grids") -> Library:
    """Concepts that come with the package: "grids", annotated by hand. Raises UnknownName."""
    folder = files(__package__ or "") / "packaged"
    known = [file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")]
    if name not in known:
        raise UnknownName("seeds of concepts", name, known)
    library = load((folder / f"{name}.yaml").read_text(encoding="utf-8")).library
    annotated = Evidence(f"seeds {name}", verifier="user", confidence=1.0)
    parts: list[Kept] = [*library.concepts.values(), *library.lessons.values(), *library.solutions.values()]
    return library.with_kept(replace(each, evidence=(*each.evidence, annotated)) for each in parts)


# ---------------------------------------------------------------- rows


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks; those that look like null, quoted by the resolver."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text and not text.startswith((" ", "\n")) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _read_concept(said: object) -> tuple[Kept | None, list[str]]:
    provenance: dict[str, Any] = {}
    if isinstance(said, Mapping):
        provenance = _provenance(said)
        said = {key: value for key, value in said.items() if key not in provenance or key == "domain"}
    concept, notes = spec(said)
    return concept and replace(concept, **provenance), notes


def _read_lesson(said: object) -> tuple[Kept | None, list[str]]:
    if not isinstance(said, Mapping) or not (line(said.get("situation")) and line(said.get("suggestion"))):
        return None, ["skipped: a lesson has a situation and a suggestion"]
    situation, suggestion, source = (line(said.get(key)) for key in ("situation", "suggestion", "source"))
    return Lesson(situation, suggestion, source, **_provenance(said)), []


def _read_solution(said: object) -> tuple[Kept | None, list[str]]:
    if not isinstance(said, Mapping) or not (said.get("problem") and said.get("solution")):
        return None, ["skipped: a solution has a problem and a solution"]
    problem, solution, summary, pseudocode = (
        str(said.get(key) or "") for key in ("problem", "solution", "summary", "pseudocode")
    )
    provenance = {key: value for key, value in _provenance(said).items() if key not in ("uses", "wins")}
    return Solution(problem, solution, summary, pseudocode, **provenance), []


def _provenance(said: Mapping[Any, Any]) -> dict[str, Any]:
    """Domain, evidence and counts, as far as they are given and make sense."""
    found: dict[str, Any] = {"domain": line(said["domain"])} if said.get("domain") else {}
    rows = said.get("evidence")
    if isinstance(rows, list):
        found["evidence"] = tuple(_evidence(each) for each in rows if isinstance(each, Mapping))
    uses, wins = (int(n) if (n := str(said.get(key, ""))).isdecimal() else 0 for key in ("uses", "wins"))
    return found | ({"uses": uses, "wins": min(uses, wins)} if uses else {})


def _evidence(said: Mapping[Any, Any]) -> Evidence:
    run, source, verifier = (line(said.get(key)) for key in ("run", "source", "verifier"))
    read = said.get("read")
    names = tuple(map(line, read)) if isinstance(read, list) else ()
    try:
        confidence = float(said.get("confidence") or 0.0)
    except (TypeError, ValueError):
        confidence = 0.0
    return Evidence(run, source, verifier, confidence if 0 <= confidence <= 1 else 0.0, names)


_PARTS = ("concepts", "lessons", "solutions")
_READ = {"concepts": _read_concept, "lessons": _read_lesson, "solutions": _read_solution}
_LONGEST = 20_000_000  # of a library of a hundred thousand concepts; answers are cut long before
