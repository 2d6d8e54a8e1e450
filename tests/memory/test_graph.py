import random
import sys
from pathlib import Path

import networkx as nx
import pytest

from abduce.memory.graph import concept_graph, diffuse, search, seeds
from abduce.memory.in_memory import InMemory
from abduce.serving.entries import Entry, Evidence

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


def used(name: str, *problems: str, kind: str = "routine", **data: object) -> Entry:
    return Entry(name, name, kind, {"used_in": list(problems), **data})


def weights(graph: "nx.Graph[str]") -> dict[frozenset[str], float]:
    return {frozenset((a, b)): edge["weight"] for a, b, edge in graph.edges(data=True)}


# ---------------------------------------------------------------- links


def test_entries_are_linked_by_the_solutions_they_share() -> None:
    graph = concept_graph([used("a", "p1", "p2"), used("b", "p1", "p2"), used("c", "p2"), used("d", "p3")])
    assert weights(graph) == {frozenset("ab"): 1.5, frozenset("ac"): 0.5, frozenset("bc"): 0.5}
    assert graph.edges["a", "b"]["why"] == "used with it in 2 solutions"
    assert set(graph) == set("abcd")


def test_evidence_of_one_problem_links_and_none_does_not() -> None:
    told = (Evidence("r", "p1", "tests", 1.0),)
    one, other = Entry("a", "x", evidence=told), Entry("b", "y", evidence=told)
    assert weights(concept_graph([one, other])) == {frozenset("ab"): 1.0}
    assert not weights(
        concept_graph(
            [Entry("a", "x", evidence=(Evidence("r"),)), Entry("b", "y", evidence=(Evidence("r"),))]
        )
    )


def test_what_fits_into_a_parameter_or_is_named_by_a_cue_is_linked() -> None:
    rows = [
        {"name": "rows", "typing": "list[row]"},
        {"name": "rule", "typing": "row test := Callable[[row], bool]"},
    ]
    graph = concept_graph(
        [
            used("keep rows", parameters=rows, output_typing="list[row]"),
            used("is uniform", routine_subtype="row test"),
            used("row", kind="structure"),
            used("stack", cues=["after keep rows was applied"]),
            used("other", routine_subtype="intermediate"),
        ]
    )
    links = {frozenset(edge) for edge in graph.edges}
    assert links == {
        frozenset(("keep rows", "is uniform")),
        frozenset(("keep rows", "row")),
        frozenset(("keep rows", "stack")),
    }
    assert graph.edges["keep rows", "is uniform"]["why"] == "fits into it"


def test_what_everything_shares_links_nothing_and_what_is_retired_is_not_there() -> None:
    crowd = [used(f"e{i}", "p") for i in range(60)]
    assert not concept_graph(crowd).edges
    assert set(concept_graph([used("a", "p"), Entry("b", "", status="retired")])) == {"a"}


@pytest.mark.parametrize(
    "data", [{"used_in": 3}, {"parameters": "x"}, {"parameters": [1, {"typing": 2}]}, {"cues": {}}]
)
def test_data_of_any_shape_are_taken(data: dict[str, object]) -> None:
    assert set(concept_graph([Entry("a", "x", data=data)])) == {"a"}


# ---------------------------------------------------------------- diffusion


def random_graph(seed: int, n: int = 30) -> "nx.Graph[int]":
    graph = nx.gnp_random_graph(n, 0.2, seed=seed)
    rng = random.Random(seed)
    for _, _, edge in graph.edges(data=True):
        edge["weight"] = rng.uniform(0.2, 3.0)
    return graph


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("other", [1.0, 0.2])
def test_pushing_gives_personalised_pagerank(seed: int, other: float) -> None:
    """Against the equation, by iteration."""
    graph = random_graph(seed)
    start = {0: 3.0, 5: 1.0, 7: 2.0}
    w = {
        (u, v): edge["weight"] * (1.0 if (u in start) == (v in start) else other)
        for a, b, edge in graph.edges(data=True)
        for u, v in ((a, b), (b, a))
    }
    degree = {u: sum(weight for (a, _), weight in w.items() if a == u) for u in graph}
    s = {u: start.get(u, 0.0) / 6 for u in graph}
    p = dict(s)
    for _ in range(400):
        spread = dict.fromkeys(graph, 0.0)
        for (u, v), weight in w.items():
            spread[v] += p[u] * weight / degree[u]
        p = {u: 0.1 * s[u] + 0.9 * spread[u] for u in graph}
    got = diffuse(graph, start, other=other, tolerance=1e-9)
    for u in graph:
        if degree[u]:
            assert got.get(u, 0.0) == pytest.approx(p[u], abs=1e-6)


def test_mass_is_a_share_and_stays_near() -> None:
    graph = nx.path_graph(10_000)
    nx.set_edge_attributes(graph, 1.0, "weight")
    mass = diffuse(graph, {0: 1.0}, other=1.0)
    assert sum(mass.values()) <= 1 + 1e-9 and mass[0] > mass[2]
    assert len(mass) < 200  # of 10,000: it is local
    assert all(mass[i] > mass[i + 1] for i in range(1, len(mass) - 1))


def test_where_mass_starts_follows_the_scores() -> None:
    got = seeds({"a": 3.0, "b": 2.0, "c": 1.0})
    assert got["a"] > got["b"] > got["c"] > 0
    assert seeds({"a": 1.0, "b": 1.0})["a"] == seeds({"a": 1.0, "b": 1.0})["b"] > 0


def test_seeds_without_links_keep_their_order() -> None:
    graph = nx.Graph()
    graph.add_nodes_from("abc")
    mass = diffuse(graph, {"a": 3.0, "b": 2.0, "x": 1.0})
    assert sorted(mass, key=lambda name: -mass[name]) == ["a", "b", "x"]


# ---------------------------------------------------------------- retrieval


async def test_what_belongs_to_what_was_found_is_found_though_it_shares_no_word() -> None:
    store = InMemory()
    await store.write(
        [
            used("keep rows", "p1", "p2"),
            used("filter lines", "p1", "p2"),
            used("rotate", "p3"),
            used("turn", "p3"),
        ]
    )
    assert [m.entry.name for m in await store.search("which rows to keep?", 2)] == ["keep rows"]
    found = await search(store, "which rows to keep?", 2)
    assert [match.entry.name for match in found] == ["keep rows", "filter lines"]
    assert (
        found[0].why.startswith("shares")
        and "linked to 'keep rows' (used with it in 2 solutions)" in found[1].why
    )
    assert await search(store, "zebra", 2) == ()


def test_diffusion_gains_over_top_k_and_shuffled_links_do_not() -> None:
    """The benchmark, small: communities that were planted, a noisy search."""
    from concept_graph import measure

    got = measure(2.0, 6, seed=1)
    mean = {name: sum(values) / len(values) for name, values in got.items()}
    gains = [a - b for a, b in zip(got["diffusion, labels"], got["top-k"], strict=True)]
    assert sum(gains) / 6 > 0.1 and sum(gain > 0 for gain in gains) >= 5
    assert mean["shuffled"] <= mean["top-k"]
