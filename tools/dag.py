"""Work with dependencies, run as it becomes ready: the one executor of graphs for all strategies.

    dag = Dag(max_parallel=16)
    results = yield from dag.run([Node("a", work), Node("b", work), Node("c", work, after=("a", "b"))])

A node is a flow, made from the results of its parents. It starts when the last of them has ended, in no
waves: the whole takes as long as its longest chain. Each node runs once. What a node is, and so the path of
each of its requests, does not depend on timing, so that a resumed run repeats nothing.

Source: the task fetching unit of LLMCompiler, arXiv 2312.04511. Deviates: it is driven by events instead of
polling, and by default what depends on a failed node is skipped instead of run on the error text.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..serving.errors import SearchEnded, UsageError
from ..serving.flow import Failure, Flow, Fork, Promise, Wait

if TYPE_CHECKING:
    pass

OnError: TypeAlias = Literal["skip", "propagate", "cancel_plan"]
"""What a failed node means for others: those that need it are skipped, or run with its `Failure`; or all that
has not ended is called off, calls that are under way included."""

SKIPPED = "skipped"
"""The kind of the `Failure` of a node that was not run."""

CANCELLED = "cancelled"
"""The kind of the `Failure` of a node that was cut off."""

Work: TypeAlias = Callable[[Mapping[Hashable, Any]], Flow[Any]]
"""From the results of a node's parents to its own. A returned `Failure` says that it failed."""


@dataclass(frozen=True)
class Node:
    """`after` are the nodes whose results it needs, `behind` those that must only have ended before it."""

    id: Hashable
    work: Work
    after: tuple[Hashable, ...] = ()
    behind: tuple[Hashable, ...] = ()


class Dag:
    """One execution. `results` holds what has ended: for each node what its flow returned, or a `Failure`."""

    def __init__(self, *, max_parallel: int = 16, on_error: OnError = "skip") -> None:
        if max_parallel < 1:
            raise UsageError(f"max_parallel must be at least 1, got {max_parallel}.")
        self.results: dict[Hashable, Any] = {}
        self._ends: dict[Hashable, Promise] = {}
        self._free = max_parallel
        self._queue: deque[Promise] = deque()
        self._on_error = on_error

    def run(self, nodes: Sequence[Node]) -> Flow[dict[Hashable, Any]]:
        """Run all of a graph, in any order they are given in. Raises UsageError where there is a cycle, a
        node twice, or a parent that is none of them."""
        ordered = in_order(nodes, self._ends)
        if ordered:
            yield [Fork(tuple([self.branch(node) for node in ordered]), self.over)]
        return self.results

    @property
    def over(self) -> Callable[[Mapping[int, Any]], bool] | None:
        """When a `Fork` of branches is cut off: what has ended by then is in the journal, so that a resumed
        run ends with the same."""
        if self._on_error != "cancel_plan":
            return None
        return lambda _: any(isinstance(result, Failure) for result in self.results.values())

    def branch(self, node: Node) -> Flow[Any]:
        """A node as a branch of a `Fork`. Its parents must have been made branches before, in this `Fork` or
        an earlier one that is still running."""
        if node.id in self._ends:
            raise UsageError(f"There are two nodes named {node.id!r}.")
        for parent in (*node.after, *node.behind):
            if parent not in self._ends:
                raise UsageError(f"The node {node.id!r} comes after {parent!r}, which there is not.")
        self._ends[node.id] = Promise()
        return self._branch(node)

    def _branch(self, node: Node) -> Flow[Any]:
        # How many batches this flow yields must not depend on timing: a request's path holds their number.
        result: Any = Failure(CANCELLED, "it was called off")
        place: Promise | None = None
        try:
            if node.after or node.behind:
                yield [Wait(self._ends[parent]) for parent in (*node.after, *node.behind)]
            missing = self._missing(node)
            if missing is None:
                place = self._place()
                yield [Wait(place)]
                result = yield from node.work({parent: self.results[parent] for parent in node.after})
            else:
                result = Failure(SKIPPED, f"{missing} failed, which it needs")
        except SearchEnded as end:
            result = Failure("budget", str(end))
        finally:
            self.results[node.id] = result
            if place is not None:
                self._leave(place)
            self._ends[node.id].give(result)
        return result

    def _missing(self, node: Node) -> Hashable | None:
        if self._on_error == "propagate":
            return None
        return next((parent for parent in node.after if isinstance(self.results[parent], Failure)), None)

    def _place(self) -> Promise:
        """One of the `max_parallel` places, given at once or to whoever asked first."""
        place = Promise()
        if self._free:
            self._free -= 1
            place.give()
        else:
            self._queue.append(place)
        return place

    def _leave(self, place: Promise) -> None:
        if not place.given:
            self._queue.remove(place)
        elif self._queue:
            self._queue.popleft().give()
        else:
            self._free += 1


def in_order(nodes: Sequence[Node], known: Iterable[Hashable] = ()) -> list[Node]:
    """The nodes with parents first, else as they were given; `known` are nodes that ran before. Raises
    UsageError where no such order exists."""
    import networkx

    graph: networkx.DiGraph[Hashable] = networkx.DiGraph()
    before = set(known)
    place = {node.id: i for i, node in enumerate(nodes)}
    if len(place) < len(nodes):
        twice = next(node.id for i, node in enumerate(nodes) if place[node.id] != i)
        raise UsageError(f"There are two nodes named {twice!r}.")
    graph.add_nodes_from(place)
    for node in nodes:
        for parent in (*node.after, *node.behind):
            if parent in place:
                graph.add_edge(parent, node.id)
            elif parent not in before:
                raise UsageError(f"The node {node.id!r} comes after {parent!r}, which there is not.")
    try:
        order = list(networkx.lexicographical_topological_sort(graph, key=place.__getitem__))
    except networkx.NetworkXUnfeasible:
        cycle = " → ".join(str(edge[0]) for edge in networkx.find_cycle(graph))
        raise UsageError(f"The nodes go round in a circle: {cycle}. Take one of its edges out.") from None
    return [nodes[place[id]] for id in order]


def critical_path(
    parents: Mapping[Hashable, Iterable[Hashable]], seconds: Mapping[Hashable, float] | None = None
) -> float:
    """How long the longest chain takes; without `seconds`, how many nodes it has.

    >>> critical_path({1: [], 2: [1], 3: [1], 4: [2, 3]}), critical_path({1: [], 2: []}, {1: 0.5, 2: 2.0})
    (3, 2.0)
    """
    import networkx

    graph: networkx.DiGraph[Hashable] = networkx.DiGraph()
    graph.add_nodes_from(parents)
    graph.add_edges_from((parent, node) for node, of in parents.items() for parent in of)
    ends: dict[Hashable, float] = {}
    for node in networkx.topological_sort(graph):
        begin = max((ends[parent] for parent in graph.predecessors(node)), default=0)
        ends[node] = begin + (1 if seconds is None else seconds[node])
    return max(ends.values(), default=0)
