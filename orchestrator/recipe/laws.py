"""The laws of a recipe's graph, and its drawing in text.

Every edge joins nodes that exist and can be taken; every node can be reached; every loop has an edge with a
limit, so every run ends; every step has the tool, the memory or the reward it needs.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING

from ..steps import (
    END,
    AskHuman,
    Bound,
    Branch,
    Call,
    Edge,
    Recall,
    Remember,
    Revise,
    Route,
    Solve,
    Step,
    Verify,
    When,
    kind_of,
)
from .parts import Fault, near

if TYPE_CHECKING:
    from .model import Recipe

MAX_NODES = 64
MAX_EDGES = 256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
_ASKABLE = ("answer", "question", "text")


def faults(recipe: "Recipe") -> Iterator[Fault]:
    """What is wrong with the graph, each with its place in the recipe's normal form."""
    nodes, edges = recipe.nodes, recipe.edges
    for what, many, most in (("nodes", len(nodes), MAX_NODES), ("edges", len(edges), MAX_EDGES)):
        if many > most:
            yield Fault((what,), f"a recipe has at most {most} {what}, this one has {many}.")
            return
    yield from _names(recipe)
    wrong = list(_ends(nodes, edges))
    yield from wrong
    for name, step in nodes.items():
        yield from _needs(recipe, name, step)
    yield from _unused(recipe)
    if wrong or not nodes:
        return
    yield from _never_taken(edges)
    yield from _ways(nodes, edges)
    yield from _loops(nodes, edges)
    yield from _unreachable(nodes, edges)


# ---------------------------------------------------------------- names and edges


def _names(recipe: "Recipe") -> Iterator[Fault]:
    for part in ("nodes", "solvers"):
        for name in getattr(recipe, part):
            if name == END and part == "nodes":
                yield Fault((part, name), f"{END!r} is the end of the graph. Give the node another name.")
            elif not _NAME.fullmatch(name):
                yield Fault((part, name), "a name is of letters, digits, _ and -, and begins with no sign.")


def _ends(nodes: Mapping[str, Step], edges: tuple[Edge, ...]) -> Iterator[Fault]:
    for i, edge in enumerate(edges):
        if edge.source not in nodes:
            yield Fault(("edges", i, "from"), _unknown("node", edge.source, nodes))
        if edge.target not in nodes and edge.target != END:
            yield Fault(("edges", i, "to"), _unknown("node", edge.target, [*nodes, END]))


def _never_taken(edges: tuple[Edge, ...]) -> Iterator[Fault]:
    for i, edge in enumerate(edges):
        for before in edges[:i]:
            always = before.when in (When(), edge.when) and before.at_most is None
            if before.source == edge.source and always:
                problem = f"{edge.source} -> {edge.target} is never taken, for before it stands"
                told = f"{before.source} -> {before.target} without another condition or at_most"
                yield Fault(("edges", i), f"{problem} {told}.")
                break


def _ways(nodes: Mapping[str, Step], edges: tuple[Edge, ...]) -> Iterator[Fault]:
    given = {way for step in nodes.values() if isinstance(step, Route) for way in step.ways}
    free = any(isinstance(step, Call) for step in nodes.values())  # a function may say the way too
    for i, edge in enumerate(edges):
        if edge.when.route is not None and edge.when.route not in given and not free:
            yield Fault(("edges", i, "when", "route"), _unknown("way", edge.when.route, given))
    for name, step in nodes.items():
        if isinstance(step, Route):
            taken = {edge.when.route for edge in edges if edge.source == name}
            for way in step.ways:
                if not taken & {way, None}:
                    at = ("nodes", name, "route", "ways", way)
                    write = f"{{from: {name}, to: …, when: {{route: {way}}}}}"
                    yield Fault(at, f"leads nowhere. Write the edge {write}.")


def _loops(nodes: Mapping[str, Step], edges: tuple[Edge, ...]) -> Iterator[Fault]:
    """One fault for each loop that could go on for ever: a loop of edges without `at_most`."""
    free: dict[str, list[tuple[str, int]]] = {name: [] for name in nodes}
    for i, edge in enumerate(edges):
        if edge.at_most is None and edge.target != END:
            free[edge.source].append((edge.target, i))
    done: set[str] = set()
    for start in nodes:
        path: list[str] = []
        walk = [(start, iter(free[start]))] if start not in done else []
        while walk:
            name, onward = walk[-1]
            path = [at for at, _ in walk]
            for target, i in onward:
                if target in path:
                    loop = " -> ".join([*path[path.index(target) :], target])
                    yield Fault(("edges", i), f"the loop {loop} could go on for ever. Give an edge at_most.")
                elif target not in done:
                    walk.append((target, iter(free[target])))
                    break
            else:
                done.add(name)
                walk.pop()


def _unreachable(nodes: Mapping[str, Step], edges: tuple[Edge, ...]) -> Iterator[Fault]:
    first = next(iter(nodes))
    reached, todo = {first}, [first]
    while todo:
        at = todo.pop()
        new = {edge.target for edge in edges if edge.source == at} - reached
        reached |= new
        todo += new
    for name in nodes:
        if name not in reached:
            yield Fault(("nodes", name), f"no edge leads here from {first!r}, the first node.")


# ---------------------------------------------------------------- what steps need


def _needs(recipe: "Recipe", name: str, step: Step) -> Iterator[Fault]:
    at = ("nodes", name, kind_of(step))
    if isinstance(step, Verify):
        if step.by in ("python", "calculator") and step.by not in recipe.tools:
            tools = ", ".join([*map(str, recipe.tools), step.by])
            yield Fault((*at, "by"), f"{step.by} is a tool that the recipe has not. Write tools: [{tools}].")
        if step.by == "reward" and (step.reward or recipe.reward) is None:
            yield Fault((*at, "by"), "the recipe has no reward. Write e.g. reward: self_eval.")
        if step.by != "reward" and step.reward is not None:
            yield Fault((*at, "reward"), f"by {step.by} asks no reward. Write by: reward, or leave it out.")
    if isinstance(step, Recall | Remember) and recipe.memory is None:
        yield Fault(at, "the recipe has no memory. Write e.g. memory: {store: concepts.db}.")
    if isinstance(step, Solve | Revise | Branch) and isinstance(step.solver, str):
        where = (*at, "solve") if isinstance(step, Branch) else at
        if step.solver not in recipe.solvers:
            yield Fault(where, no_solver(step.solver, recipe.solvers))
    if isinstance(step, AskHuman):
        for found in re.findall(r"\{(\w+)\}", step.question):
            if found not in _ASKABLE:
                yield Fault((*at, "question"), near(f"{{{found}}} stands for nothing", found, _ASKABLE))


def no_solver(name: str, solvers: Iterable[str]) -> str:
    """What is wrong with the name of a solver that there is not; it may be that of a strategy."""
    from ...strategies import STRATEGIES

    if name in STRATEGIES and not get_close_matches(name, list(solvers), n=1):
        return f"no solver is named {name!r}. To solve with that strategy write {{strategy: {name}}}."
    return _unknown("solver", name, solvers)


def _unused(recipe: "Recipe") -> Iterator[Fault]:
    steps = recipe.nodes.values()
    if not any(isinstance(step, Solve | Call) for step in steps):
        yield Fault(("nodes",), "no step solves. Write e.g. - solve: {strategy: best_of_n}.")
    if recipe.reward is not None and not any(solver.reward is None for solver in recipe.scoring()):
        yield Fault(("reward",), "no step uses the recipe's reward. Leave it out, or write reward: null.")
    asks = any(isinstance(step, Recall | Remember | Call) for step in steps)
    if recipe.memory is not None and not asks and not recipe.remembers():
        yield Fault(("memory",), "no step recalls or remembers. Add one, or leave memory out.")


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    return near(f"no {what} is named {name[:60]!r}", name, known)


# ---------------------------------------------------------------- drawing


def draw(recipe: "Recipe") -> str:
    """The graph in text: each node with what it does, and below it where it leads and when.

    A way back to a node above is marked with ↺.
    """
    names = list(recipe.nodes)
    width = max(map(len, names))
    lines = []
    for place, name in enumerate(names):
        lines.append(f"{name:{width}}  {_told(recipe, name, recipe.nodes[name])}".rstrip())
        out = [edge for edge in recipe.edges if edge.source == name]
        for i, edge in enumerate(out):
            corner = "└─►" if i == len(out) - 1 else "├─►"
            back = edge.target in names[: place + 1]
            words = [f"{corner} {edge.target}", *conditions(edge), *(["↺"] if back else [])]
            lines.append("  " + "  ".join(words))
    return "\n".join(lines)


def _told(recipe: "Recipe", name: str, step: Step) -> str:
    words = [kind_of(step)] if kind_of(step) != name else []
    if isinstance(step, Route | Verify):
        words.append(f"by {step.by}")
    if isinstance(step, Branch):
        words.append(f"by {step.by}, at most {step.most}, each")
    if isinstance(step, Solve | Revise | Branch):
        who = f"{step.solver}: " if isinstance(step.solver, str) else ""
        words.append(f"with {who}{recipe.solver(step.solver).strategy.name}")
    if isinstance(step, Call):
        words.append(step.function)
    if isinstance(step, AskHuman):
        words.append(f"for a {step.use}" if step.use != "answer" else "for the answer")
    return " ".join(words)


def conditions(edge: Edge) -> list[str]:
    """When an edge is taken, in words."""
    when = edge.when
    told = [f"route is {when.route}"] if when.route is not None else []
    for key in ("verified", "complete", "answered"):
        if (wanted := getattr(when, key)) is not None:
            told.append(key if wanted else f"not {key}")
    if when.score is not None:
        told.append(f"score {_bound(when.score)}")
    if when.said is not None:
        told.append(f"the human says {when.said!r}")
    words = [f"if {' and '.join(told)}"] if told else []
    if edge.at_most is not None:
        words.append("at most once" if edge.at_most == 1 else f"at most {edge.at_most} times")
    return words


def _bound(bound: Bound) -> str:
    told = [f"≥ {bound.at_least:g}"] if bound.at_least is not None else []
    return " and ".join([*told, f"≤ {bound.at_most:g}"] if bound.at_most is not None else told)
