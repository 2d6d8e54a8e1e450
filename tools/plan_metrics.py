"""How good a plan is, beside one that is known to be right.

A plan is a graph: its calls and `join` are nodes with the tool's name, an edge goes from a call to each that
refers to it. Two plans are the same if their graphs are isomorphic and each pair of calls has the same tool
and, recursively, the same tools before it. Values of arguments are compared by `success_args` only.

Source: TinyAgent, arXiv 2409.00608 (`graph_utils.py`, `plan_utils.py`). Deviates: all references of a string
count, not its first alone; circles are refused instead of followed for ever.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from .dag import critical_path
from .plans import JOIN, REFERENCE, Action

if TYPE_CHECKING:
    import networkx


def graph(plan: Sequence[Action]) -> "networkx.DiGraph[int]":
    """The plan with its `join` (node 0), which comes after all."""
    import networkx

    found: networkx.DiGraph[int] = networkx.DiGraph()
    for action in plan:
        found.add_node(action.id, tool=action.tool, action=action)
    found.add_node(0, tool=JOIN, action=None)
    for action in plan:
        found.add_edge(action.id, 0)
        found.add_edges_from((parent, action.id) for parent in action.parents if parent in found)
    return found


def success(plan: Sequence[Action], gold: Sequence[Action]) -> bool:
    """Whether two plans call the same tools in the same order, as far as order matters."""
    return _matching(plan, gold, arguments=False) is not None


def success_args(plan: Sequence[Action], gold: Sequence[Action]) -> bool:
    """The same, with the same arguments."""
    return _matching(plan, gold, arguments=True) is not None


def edit_distance(plan: Sequence[Action], gold: Sequence[Action], *, timeout_s: float = 10.0) -> float | None:
    """How many nodes and edges must be added, taken out or renamed; None where the time was not enough."""
    import networkx

    if success(plan, gold):
        return 0.0
    found: float | None = networkx.graph_edit_distance(
        graph(plan), graph(gold), node_match=lambda a, b: a["tool"] == b["tool"], timeout=timeout_s
    )
    return found


def tool_recall(plan: Sequence[Action], gold: Sequence[Action]) -> float:
    """The share of the tools that are needed which the plan calls."""
    wanted = {action.tool for action in gold}
    return len(wanted & {action.tool for action in plan}) / len(wanted) if wanted else 1.0


def parallelism(plan: Sequence[Action]) -> float:
    """Calls in the plan, for each in its longest chain."""
    return len(plan) / critical_path({a.id: a.parents for a in plan}) if plan else 1.0


def _matching(plan: Sequence[Action], gold: Sequence[Action], *, arguments: bool) -> dict[int, int] | None:
    """From the calls of one plan to those of the other."""
    from networkx.algorithms.isomorphism import DiGraphMatcher

    if len(plan) != len(gold):
        return None
    left, right = graph(plan), graph(gold)
    a, b = _colours(left), _colours(right)
    if Counter(a.values()) != Counter(b.values()):
        return None
    for of, colours in ((left, a), (right, b)):
        for node, colour in colours.items():
            of.nodes[node]["colour"] = colour
    matcher = DiGraphMatcher(left, right, node_match=lambda one, other: one["colour"] == other["colour"])
    for match in matcher.isomorphisms_iter():
        if not arguments or all(_same(action, right, match) for action in plan):
            found: dict[int, int] = match
            return found
    return None


def _colours(of: "networkx.DiGraph[int]") -> dict[int, str]:
    """A name for each node that is the same for the same tool with the same tools before and after it,
    however far; nodes of different colours never match."""
    import networkx

    before: dict[int, Any] = {}
    for node in networkx.topological_sort(of):
        before[node] = _name(of.nodes[node]["tool"], sorted(before[p] for p in of.predecessors(node)))
    colours: dict[int, str] = {}
    for node in reversed(list(networkx.topological_sort(of))):
        colours[node] = _name(before[node], sorted(colours[s] for s in of.successors(node)))
    return colours


def _name(own: str, others: Sequence[str]) -> str:
    return blake2b(json.dumps([own, others]).encode(), digest_size=12).hexdigest()


def _same(action: Action, right: Any, match: Mapping[int, int]) -> bool:
    other: Action = right.nodes[match[action.id]]["action"]
    same: bool = _canonical(action.arguments, match) == _canonical(other.arguments, {})
    return same


def _canonical(value: Any, match: Mapping[int, int]) -> Any:
    """Arguments as they are compared: references as those of the other plan, strings without case and
    spaces that mean nothing."""
    if isinstance(value, str):
        renamed = REFERENCE.sub(lambda ref: f"${_other(ref, match)}", value)
        return " ".join(renamed.lower().split())
    if isinstance(value, Mapping):
        return {key: _canonical(part, match) for key, part in value.items()}
    if isinstance(value, list):
        return [_canonical(part, match) for part in value]
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _other(reference: re.Match[str], match: Mapping[int, int]) -> int:
    number = int(reference[1] or reference[2])
    return match.get(number, number)
