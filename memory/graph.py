"""The concept graph, and retrieval by local diffusion in it.

    entries ──► graph: linked where they were used in the same solutions, or where one fits into the other
    query ──► search ──► noisy labels (found or not) ──► diffusion from what was found ──► matches

A search by words labels entries as relevant, with errors of both kinds. The graph corrects them: mass spreads
from what was found, along edges of weight w where the labels of both ends agree and ε·w where they do not,
and returns home with probability α at each step (personalised PageRank):

    p = α s + (1-α) p D⁻¹ W,    W_uv = w_uv · (1 if label(u) = label(v) else ε)

It is computed by pushing (Andersen, Chung, Lang, FOCS 2006), which touches only what is near.

Source: Back de Luca, Fountoulakis, Yang, "Local Graph Clustering with Noisy Labels", arXiv 2310.08031. There
a flow diffuses from one seed; here PageRank does, from all that was found, by how well it was found.
"""

import re
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..serving.entries import Entry, Match
from .base import Store

if TYPE_CHECKING:
    import networkx as nx

RESTART = 0.1
OTHER = 0.2
"""α and ε; chosen on other seeds of the graphs of `benchmarks/concept_graph.py` than those it prints."""

MOST_SHARED = 50
"""What more entries than these have in common says nothing about two of them."""


def concept_graph(entries: Iterable[Entry]) -> "nx.Graph[Any]":
    """Active entries by name. An edge has a `weight` and a `why` for people.

    Each solution shared by m entries adds 1/(m-1) between two of them, so that a solution with many concepts
    does not outweigh one with few. Composition, where one yields or is what the other takes, adds 1.
    """
    import networkx as nx

    active = [entry for entry in entries if entry.status == "active"]
    graph: nx.Graph[Any] = nx.Graph()
    graph.add_nodes_from(entry.name for entry in active)
    solutions: defaultdict[str, list[str]] = defaultdict(list)
    for entry in active:
        for solution in _solutions(entry):
            solutions[solution].append(entry.name)
    for names in solutions.values():
        if 1 < len(names) <= MOST_SHARED:
            for i, one in enumerate(names):
                for other in names[:i]:
                    _link(graph, one, other, 1 / (len(names) - 1), shared=1)
    for taker, giver in _compositions(active):
        _link(graph, taker, giver, 1.0, fits=1)
    for _, _, edge in graph.edges(data=True):
        edge["why"] = _why(edge)
    return graph


def _link(
    graph: "nx.Graph[Any]", one: str, other: str, weight: float, *, shared: int = 0, fits: int = 0
) -> None:
    if one == other:
        return
    if not graph.has_edge(one, other):
        graph.add_edge(one, other, weight=0.0, shared=0, fits=0)
    edge = graph.edges[one, other]
    edge["weight"] += weight
    edge["shared"] += shared
    edge["fits"] += fits


def _why(edge: Mapping[str, Any]) -> str:
    shared = (
        f"used with it in {edge['shared']} solution{'s' * (edge['shared'] > 1)}" if edge["shared"] else ""
    )
    return " and ".join(filter(None, (shared, "fits into it" if edge["fits"] else "")))


def _solutions(entry: Entry) -> Collection[str]:
    """The problems in whose solutions it was used."""
    used = entry.data.get("used_in")
    told = {each for each in used if isinstance(each, str)} if isinstance(used, list | tuple) else set()
    return told | {each.source for each in entry.evidence if each.source}


def _compositions(active: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    """Pairs (taker, giver): a parameter's type, or a cue, of the one names the other, or a type that this
    defines or fills."""
    givers: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for entry in active:
        for phrase in {entry.name, *_given(entry)}:
            if words := _words(phrase):
                givers[words].append(entry.name)
    longest = max(map(len, givers), default=0)
    for entry in active:
        for text in _taken(entry):
            words = _words(text)
            spans = (
                (i, j) for i in range(len(words)) for j in range(i + 1, min(i + longest, len(words)) + 1)
            )
            for i, j in spans:
                found = givers.get(words[i:j], ())
                if len(found) <= MOST_SHARED:
                    yield from ((entry.name, giver) for giver in found)


def _given(entry: Entry) -> Iterator[str]:
    """Types that it defines by its output, or fills as a callable."""
    typing = entry.data.get("output_typing")
    if isinstance(typing, str) and ":=" in typing:
        yield typing.partition(":=")[0]
    subtype = entry.data.get("routine_subtype")
    if isinstance(subtype, str) and subtype not in _NO_TYPES:
        yield subtype


def _taken(entry: Entry) -> Iterator[str]:
    """Types of its parameters, and what its cues say."""
    parameters = entry.data.get("parameters")
    for parameter in parameters if isinstance(parameters, list | tuple) else []:
        if isinstance(parameter, dict) and isinstance(typing := parameter.get("typing"), str):
            yield typing.partition(":=")[0]
            yield typing.partition(":=")[2]
    cues = entry.data.get("cues")
    yield from (cue for cue in (cues if isinstance(cues, list | tuple) else []) if isinstance(cue, str))


_NO_TYPES = ("grid manipulation", "intermediate")


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold()))[:200]


# ---------------------------------------------------------------- diffusion

_LEAST = 0.1


def diffuse(
    graph: "nx.Graph[Any]",
    start: Mapping[Any, float],
    *,
    other: float = OTHER,
    restart: float = RESTART,
    tolerance: float = 1e-5,
) -> dict[Any, float]:
    """The mass p of every node that is reached. `start` is s, by shares: the nodes labelled relevant.

    The error of a node is at most `tolerance` times its degree in W. A node that has no edges, or is not in
    the graph, keeps what starts there only as far as it returns home.
    """
    total = sum(start.values())
    left = {name: mass / total for name, mass in start.items() if mass > 0}
    mass: defaultdict[Any, float] = defaultdict(float)
    waiting, queued = deque(left), set(left)
    edges: dict[Any, dict[Any, float]] = {}
    while waiting:
        name = waiting.popleft()
        queued.discard(name)
        if name not in edges:
            edges[name] = _weighted(graph, name, start, other)
        degree = sum(edges[name].values())
        pushed, left[name] = left[name], 0.0
        mass[name] += restart * pushed
        for neighbour, weight in edges[name].items():
            left[neighbour] = left.get(neighbour, 0.0) + (1 - restart) * pushed * weight / degree
            if neighbour not in edges:
                edges[neighbour] = _weighted(graph, neighbour, start, other)
            if left[neighbour] > tolerance * sum(edges[neighbour].values()) and neighbour not in queued:
                waiting.append(neighbour)
                queued.add(neighbour)
    return dict(mass)


def seeds(scores: Mapping[Any, float]) -> dict[Any, float]:
    """Where mass starts: the squares of the scores, above the worst but for a tenth of the range."""
    worst, best = min(scores.values()), max(scores.values())
    least = _LEAST * (best - worst or 1.0)
    return {name: (score - worst + least) ** 2 for name, score in scores.items()}


def _weighted(graph: "nx.Graph[Any]", name: Any, labelled: Collection[Any], other: float) -> dict[Any, float]:
    """The row of W."""
    if name not in graph:
        return {}
    mine = name in labelled
    return {
        neighbour: edge["weight"] * (1.0 if (neighbour in labelled) == mine else other)
        for neighbour, edge in graph[name].items()
    }


async def search(
    store: Store,
    query: str,
    k: int,
    *,
    kinds: Sequence[str] = (),
    domain: str = "",
    labels: int | None = None,
) -> tuple[Match, ...]:
    """At most `k` entries by diffusion from the `labels` (4 k) best that the store finds by itself."""
    found = await store.search(query, 4 * k if labels is None else labels, kinds=kinds, domain=domain)
    if not found:
        return ()
    entries = {
        entry.name: entry for entry in await store.everything(kinds=kinds) if domain in ("", entry.domain)
    }
    graph = concept_graph(entries.values())
    mass = diffuse(graph, seeds({match.entry.name: match.score for match in found}))
    why = {match.entry.name: match.why for match in found}
    best = sorted((name for name in mass if name in entries), key=lambda name: (-mass[name], name))[:k]
    return tuple(Match(entries[name], mass[name], _reason(graph, name, why)) for name in best)


def _reason(graph: "nx.Graph[Any]", name: str, why: Mapping[str, str]) -> str:
    linked = sorted(
        (each for each in graph[name] if each in why), key=lambda n: (-graph[name][n]["weight"], n)
    )
    via = [f"{other!r} ({graph[name][other]['why']})" for other in linked[:2]]
    told = f"linked to {', '.join(via)}" if via else ""
    return "; ".join(filter(None, (why.get(name, ""), told))) or "linked to what is linked to what was found"
