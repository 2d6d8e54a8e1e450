"""Concepts as text for a prompt: the whole memory, or a selection in full and the rest by name.

    structures │ types │ primary routines │ other routines, by subtype

The same library gives the same bytes: everything is sorted, nothing is dated. So the text can stand first in
many prompts and be found in the prefix cache. What is remembered was written by models: it is shown line by
line, each below its own mark, and said to be data.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ...serving.tool_calls import inert
from .concept import Concept, Lesson, Parameter, typed
from .library import Library


def whole(library: Library, *, min_used: int = 2, shown: Collection[str] | None = None) -> str:
    """The full-memory view. Concepts used in fewer than `min_used` problems are named only; so are those that
    are not in `shown`, where that is given. Parameters have no description, other routines no cues."""

    def is_shown(concept: Concept) -> bool:
        return len(concept.used_in) >= min_used and (shown is None or concept.name in shown)

    def block(concept: Concept, primary: bool) -> list[str]:
        cues = concept.cues if primary or concept.kind == "structure" else ()
        return _block(concept.name, concept, cues, lambda p: _parameter(p, told=False))

    return _view(library, is_shown, block, library.types, "lower usage concepts")


def selected(library: Library, names: Collection[str]) -> str:
    """The selected concepts in full, with the types they speak of, and the names of all others."""

    def block(concept: Concept, _: bool) -> list[str]:
        kind = ", ".join(filter(None, (concept.kind, concept.routine_subtype)))
        return _block(f"{concept.name} ({kind})", concept, concept.cues, lambda p: _parameter(p, told=True))

    chosen = [library.concepts[name] for name in names if name in library.concepts]
    types = _spoken_of(chosen, library.types)
    return _view(library, lambda concept: concept.name in names, block, types, "other concepts")


def fitted(
    library: Library, max_tokens: int, *, min_used: int = 2, relevance: Mapping[str, float] | None = None
) -> str:
    """The full-memory view within a budget of tokens: structures and primary routines first, then the other
    routines of highest relevance + ln(1 + uses), then names alone. The names of all stay, at any cost."""
    view = whole(library, min_used=min_used)
    if tokens(view) <= max_tokens:
        return view
    near = relevance or {}

    def worth(concept: Concept) -> tuple[bool, float, str]:
        first = concept.kind == "structure" or concept.routine_subtype == library.primary
        return not first, -near.get(concept.name, 0.0) - math.log1p(len(concept.used_in)), concept.name

    ranked = [concept.name for concept in sorted(library.concepts.values(), key=worth)]
    low, high = 0, len(ranked)  # `low` of them fit, unless even the names are too long
    while low < high:
        middle = (low + high + 1) // 2
        if tokens(whole(library, min_used=min_used, shown=frozenset(ranked[:middle]))) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return whole(library, min_used=min_used, shown=frozenset(ranked[:low]))


def lessons(chosen: Sequence[Lesson], *, first: int = 1) -> str:
    """Numbered lessons, situation and suggestion."""
    rows = (f"{i}. When: {each.situation}\n   Try: {each.suggestion}" for i, each in enumerate(chosen, first))
    return inert("\n".join(rows))


def tokens(text: str) -> int:
    """About how many tokens a text has: one for four bytes, as flows have no tokeniser."""
    return -(-len(text.encode(errors="replace")) // 4)


# ---------------------------------------------------------------- parts


def _view(
    library: Library,
    is_shown: Callable[[Concept], bool],
    block: Callable[[Concept, bool], list[str]],
    types: Mapping[str, str],
    others: str,
) -> str:
    sections = []
    for title, concepts in _sections(library):
        if title == _TYPES:
            lines = [f"- {name} := {definition}" for name, definition in sorted(types.items())]
        else:
            primary = title == _title(library.primary)
            lines = [row for c in concepts if is_shown(c) for row in block(c, primary)]
            if rest := [concept.name for concept in concepts if not is_shown(concept)]:
                lines.append(f"- {others}: {'; '.join(rest)}")
        if lines:
            sections.append("\n".join((f"## {title}", *lines)))
    return inert("\n\n".join(sections))


def _sections(library: Library) -> list[tuple[str, list[Concept]]]:
    """Titles and what stands below them, by name."""
    concepts = sorted(library.concepts.values(), key=lambda concept: concept.name)
    routines = [concept for concept in concepts if concept.kind == "routine"]
    subtypes = sorted({c.routine_subtype for c in routines} - {library.primary})
    return [
        ("Structures", [concept for concept in concepts if concept.kind == "structure"]),
        (_TYPES, []),
        *((_title(s), [c for c in routines if c.routine_subtype == s]) for s in (library.primary, *subtypes)),
    ]


def _title(subtype: str) -> str:
    return f"Routines: {subtype}" if subtype else "Routines"


_TYPES = "Types"


def _block(
    head: str, concept: Concept, cues: Iterable[str], parameter: Callable[[Parameter], str]
) -> list[str]:
    rows = [f"- {head}"]
    if concept.description:
        rows.append(f"  description: {concept.description}")
    if concept.output_typing:
        rows.append(f"  output: {typed(concept.output_typing)}")
    listed = {
        "parameters": [parameter(p) for p in concept.parameters],
        "cues": list(cues),
        "implementation": list(concept.implementation),
    }
    for title, lines in listed.items():
        if lines:
            rows += [f"  {title}:", *(f"    - {text}" for text in lines)]
    return rows


def _parameter(parameter: Parameter, *, told: bool) -> str:
    typing = f" (type: {typed(parameter.typing)})" if parameter.typing else ""
    return f"{parameter.name}{typing}" + (
        f": {parameter.description}" if told and parameter.description else ""
    )


def _spoken_of(concepts: Iterable[Concept], types: Mapping[str, str]) -> dict[str, str]:
    """The types that typings name, and those that their definitions name."""
    waiting = [t for c in concepts for t in (c.output_typing, *(p.typing for p in c.parameters))]
    found: dict[str, str] = {}
    while waiting:
        text = waiting.pop()
        for name, definition in types.items():
            if name not in found and name in text:
                found[name] = definition
                waiting.append(definition)
    return found
