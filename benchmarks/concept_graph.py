"""Does diffusion in the concept graph find more than plain top-k? On graphs with planted communities.

    python benchmarks/concept_graph.py [--graphs 20]

A graph has 20 communities of 25 entries, linked at random, within a community more often than without. A
query is about one community: its entries are relevant. A search scores every entry with noise: relevant ones
N(d, 1), others N(0, 1). All methods see the scores of the 50 best, which are the labels, and return 25
entries; printed is the share of these that is relevant. `shuffled` is the negative control: the same degrees,
the links at random.
"""

import random
from collections.abc import Callable, Mapping
from statistics import mean, stdev

import networkx as nx
from arguments import command

from abduce.memory.graph import OTHER, RESTART, diffuse, seeds

COMMUNITIES, SIZE, LABELS = 20, 25, 50
WITHIN, BETWEEN = 0.3, 0.01


def planted(rng: random.Random, within: float = WITHIN, between: float = BETWEEN) -> nx.Graph:
    """Communities of `SIZE` consecutive nodes."""
    graph = nx.planted_partition_graph(COMMUNITIES, SIZE, within, between, seed=rng.randrange(2**31))
    nx.set_edge_attributes(graph, 1.0, "weight")
    return graph


def shuffled(graph: nx.Graph, rng: random.Random) -> nx.Graph:
    """The same degrees, and nothing else."""
    copy = nx.Graph(graph)
    n = copy.number_of_edges()
    nx.double_edge_swap(copy, nswap=5 * n, max_tries=100 * n, seed=rng.randrange(2**31))
    nx.set_edge_attributes(copy, 1.0, "weight")
    return copy


def scores(rng: random.Random, target: int, distance: float) -> dict[int, float]:
    """A noisy search: its `LABELS` best."""
    every = {i: rng.gauss(distance if i // SIZE == target else 0.0, 1.0) for i in range(COMMUNITIES * SIZE)}
    return {i: every[i] for i in sorted(every, key=lambda i: -every[i])[:LABELS]}


def top(mass: Mapping[int, float], target: int) -> float:
    """Precision of the `SIZE` best, which is also their recall."""
    best = sorted(mass, key=lambda i: (-mass[i], i))[:SIZE]
    return sum(i // SIZE == target for i in best) / SIZE


Method = Callable[[nx.Graph, nx.Graph, Mapping[int, float]], Mapping[int, float]]
METHODS: Mapping[str, Method] = {
    "top-k": lambda _, __, found: found,
    "diffusion, no labels": lambda graph, _, found: diffuse(graph, seeds(found), other=1.0),
    "diffusion, labels": lambda graph, _, found: diffuse(graph, seeds(found)),
    "shuffled": lambda _, random_links, found: diffuse(random_links, seeds(found)),
}


def measure(distance: float, n: int, *, within: float = WITHIN, seed: int = 0) -> dict[str, list[float]]:
    """The precision of each method on each graph."""
    got: dict[str, list[float]] = {name: [] for name in METHODS}
    for i in range(n):
        rng = random.Random(f"{seed}/{i}/{distance}/{within}")
        graph = planted(rng, within)
        other = shuffled(graph, rng)
        target = rng.randrange(COMMUNITIES)
        found = scores(rng, target, distance)
        for name, method in METHODS.items():
            got[name].append(top(method(graph, other, found), target))
    return got


def interval(values: list[float]) -> str:
    """Mean, and half a 95 % interval."""
    return f"{mean(values):.3f} ± {1.96 * stdev(values) / len(values) ** 0.5:.3f}"


def main() -> None:
    """Print the tables."""
    parser = command(__doc__)
    parser.add_argument("--graphs", type=int, default=20, help="for each row")
    n = parser.parse_args().graphs
    print(f"restart {RESTART}, ε {OTHER}; {n} graphs of {COMMUNITIES * SIZE} entries a row")
    for within in (0.3, 0.15):
        print(f"\nlinks within a community {within}, between {BETWEEN}")
        print(
            f"{'distance':>8}  " + "  ".join(f"{name:>22}" for name in METHODS) + f"  {'gain by labels':>16}"
        )
        for distance in (0.5, 1.0, 1.5, 2.0, 3.0):
            got = measure(distance, n, within=within)
            gain = [a - b for a, b in zip(got["diffusion, labels"], got["top-k"], strict=True)]
            cells = "  ".join(f"{interval(got[name]):>22}" for name in METHODS)
            print(f"{distance:>8}  {cells}  {interval(gain):>16}")


if __name__ == "__main__":
    main()
