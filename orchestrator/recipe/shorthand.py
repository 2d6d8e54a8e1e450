"""From what a recipe writes to its normal form: `strategy:` and `pipeline:` become `nodes:` and `edges:`.

    - route: {ways: {short: {solve: quick}, long: {solve: deep}}}      route ─┬► short ─┬► verify ─► remember
    - verify: {by: python, retries: 2}                                        └► long ──┘    │
    - remember                                                                  ▲── not verified, twice

It is data still, unchecked but for its shape. `moved` says where a value of the normal form was written.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..steps import END, KINDS, Verify, Way
from ..strict_yaml import Path
from .parts import Fault, near

OWN = ("model", "models", "policy", "reward")
"""What a solver may have of its own, beside its strategy."""


class Normal:
    """A recipe's data in normal form; what was wrong with its shape is in `faults`, with the place in the
    file, and is left out of `data`."""

    def __init__(self, written: Mapping[str, Any]) -> None:
        self.data = dict(written)
        self.moved: dict[Path, Path] = {}  # path in the normal form → path in the file
        self.faults: list[Fault] = []
        forms = [key for key in ("strategy", "pipeline", "nodes") if self.data.get(key) is not None]
        if len(forms) > 1:
            self._wrong((forms[1],), f"give {forms[0]} or {forms[1]}, not both.")
        if not forms:
            self._wrong((), "the key 'pipeline' (or strategy, or nodes) is missing.")
            self.data.pop("edges", None)  # nothing can be said of them without nodes
        form = forms[0] if forms else ""
        if self.data.get("edges") is not None and form in ("strategy", "pipeline"):
            self._wrong(("edges",), f"edges go with nodes; {form} has its own order.")
        solvers = self.data.get("solvers")
        if isinstance(solvers, Mapping):
            made = (
                (name, self.solver(part, ("solvers", name), ("solvers", name), named=False))
                for name, part in solvers.items()
            )
            self.data["solvers"] = {name: solver for name, solver in made if solver is not None}
        if form in ("strategy", "pipeline"):
            nodes, edges = self._strategy() if form == "strategy" else self._pipeline(self.data["pipeline"])
            self.data |= {"nodes": nodes, "edges": edges}
        elif form == "nodes":
            self._nodes(self.data["nodes"])
        for key in ("strategy", "pipeline"):
            self.data.pop(key, None)

    def solver(self, value: Any, here: Path, there: Path, *, named: bool = True) -> Any:
        """A solver as `{strategy: …, model: …}`: parameters that stand beside the strategy's name go into
        it. A text is another solver's name if it may be (`named`), else a strategy's."""
        self.moved[here] = there
        if isinstance(value, str):
            return value if named else {"strategy": value}
        if not isinstance(value, Mapping):
            self._wrong(there, f"must be a mapping such as {{strategy: best_of_n}}, got {short(value)}.")
            return None
        if "strategy" not in value:
            keys = ", ".join(map(str, value)) or "nothing"
            self._wrong(there, f"the key 'strategy' is missing. It has: {keys}.")
            return None
        rest = {key: part for key, part in value.items() if key not in ("strategy", *OWN)}
        strategy = value["strategy"]
        if rest and isinstance(strategy, str):
            self.moved[*here, "strategy"] = there
            self.moved[*here, "strategy", "name"] = (*there, "strategy")
            strategy = {"name": strategy, **rest}
        else:
            for key in rest:
                problem = near(f"{key!r} is not a key of a solver", key, ("strategy", *OWN))
                self._wrong((*there, key), f"{problem} Parameters of the strategy stand in its mapping.")
        return {"strategy": strategy, **{key: value[key] for key in OWN if key in value}}

    def step(self, value: Any, here: Path, there: Path) -> dict[str, Any] | None:
        """A step as `{kind: body}`, where it stands in a pipeline or as a node."""
        written = value if isinstance(value, Mapping) else {value: {}} if isinstance(value, str) else {}
        if len(written) != 1:
            problem = "a step is a name, or one name with its parts, such as {solve: {strategy: beam}}"
            self._wrong(there, f"{problem}, got {short(value)}.")
            return None
        [(kind, body)] = written.items()
        if kind not in KINDS:
            self._wrong(there, near(f"no step is named {short(kind)}", kind, KINDS))
            return None
        self.moved[here] = there
        at, seen = (*here, kind), (*there, kind) if written is value else there
        if kind in ("solve", "revise"):
            body = self.solver(body, at, seen)
        elif kind != "call":
            body = self._body(kind, {} if body is None else body, at, seen)
        elif not isinstance(body, str) or not body:
            self._wrong(seen, "needs the name of a function, such as {call: my_function}.")
            return None
        return None if body is None else {kind: body}

    def _body(self, kind: str, written: Any, here: Path, there: Path) -> dict[str, Any] | None:
        """The keys of a step that is neither a solver nor a function."""
        first = {"verify": "by", "ask": "question"}.get(kind)
        if isinstance(written, str) and first:
            written = {first: written}
        if not isinstance(written, Mapping):
            self._wrong(there, f"must be a mapping of its keys, got {short(written)}.")
            return None
        body = dict(written)
        if kind == "verify" and "with" in body:
            self.moved[*here, "by"] = (*there, "with")
            if "by" in body:
                self._wrong((*there, "with"), "means the same as by; keep one.")
            body["by"] = body.pop("with")
        if kind == "branch":
            if "solve" in body:
                body["solve"] = self.solver(body["solve"], (*here, "solve"), (*there, "solve"))
            else:
                self._wrong(there, "the key 'solve' is missing: who solves the parts?")
            if body.get("solve") is None:
                return None
        return body

    def _strategy(self) -> tuple[dict[str, Any], list[Any]]:
        """The nodes and edges of a recipe that is one strategy."""
        self.moved["nodes",] = ("strategy",)
        self.moved["nodes", "solve", "solve", "strategy"] = ("strategy",)
        return {"solve": {"solve": {"strategy": self.data["strategy"]}}}, []

    def _nodes(self, nodes: Any) -> None:
        if not isinstance(nodes, Mapping) or not nodes:
            problem = f"must be a mapping such as {{first: {{solve: quick}}}}, got {short(nodes)}."
            self._wrong(("nodes",), problem)
            nodes = {}
        found = {name: self.step(value, ("nodes", name), ("nodes", name)) for name, value in nodes.items()}
        self.data["nodes"] = {name: step for name, step in found.items() if step is not None}
        edges = self.data.get("edges")
        if edges is not None and not isinstance(edges, list):
            self._wrong(("edges",), f'must be a list such as ["solve -> verify"], got {short(edges)}.')
        made = [self._edge(edge, i) for i, edge in enumerate(edges)] if isinstance(edges, list) else []
        self.data["edges"] = [edge for edge in made if edge is not None]
        for new, old in enumerate(i for i, edge in enumerate(made) if edge is not None):
            self.moved["edges", new] = ("edges", old)

    def _edge(self, edge: Any, i: int) -> dict[str, Any] | None:
        if isinstance(edge, Mapping):
            return dict(edge)
        ends = [end.strip() for end in edge.split("->")] if isinstance(edge, str) else []
        if len(ends) != 2 or not all(ends):
            forms = '"a -> b" or {from: a, to: b, when: {…}, at_most: 2}'
            self._wrong(("edges", i), f"an edge is {forms}, got {short(edge)}.")
            return None
        return {"from": ends[0], "to": ends[1]}

    # ------------------------------------------------------------ pipeline

    def _pipeline(self, steps: Any) -> tuple[dict[str, Any], list[Any]]:
        if not isinstance(steps, list) or not steps:
            hint = "must be a list of steps such as `- solve: {strategy: best_of_n, n: 8}`"
            self._wrong(("pipeline",), f"{hint}, got {short(steps)}.")
            return {}, []
        rows, nodes = [], dict[str, Any]()
        for i, value in enumerate(steps):
            if (row := self._row(value, i, nodes)) is not None:
                rows.append(row)
        edges: list[Any] = []
        for i in range(len(rows)):
            for edge in self._onward(rows, i):
                self.moved["edges", len(edges)] = ("pipeline", rows[i].place)
                edges.append(edge)
        return nodes, edges

    def _row(self, value: Any, i: int, nodes: dict[str, Any]) -> "_Row | None":
        """One step of the pipeline, and its nodes added to `nodes`."""
        kind = next(iter(value), "") if isinstance(value, Mapping) else value
        name = _free(str(kind), nodes)
        step = self.step(value, ("nodes", name), ("pipeline", i))
        if step is None:
            return None
        [(kind, body)] = step.items()
        nodes[name] = step
        retries, ways = 0, dict[str, str]()
        if kind == "verify":
            known = (*Verify.model_fields, "retries")
            body = self._known(body, known, "the step 'verify'", ("pipeline", i, "verify"))
            nodes[name] = {kind: body}
            retries = self._retries(body.pop("retries", 0), i)
        if kind == "route" and isinstance(body.get("ways"), Mapping):
            body["ways"] = dict(body["ways"])
            for way, parts in body["ways"].items():
                there = ("pipeline", i, "route", "ways", way)
                if not isinstance(parts, Mapping) or "solve" not in parts:
                    self._wrong(there, "in a pipeline a way says what solves it: {solve: …}.")
                    continue
                written = self._known(parts, (*Way.model_fields, "solve"), "a way", there)
                body["ways"][way] = {key: part for key, part in written.items() if key != "solve"}
                ways[way] = _free(str(way), nodes)
                here = ("nodes", ways[way])
                solver = self.solver(parts["solve"], (*here, "solve"), (*there, "solve"))
                self.moved[here] = there
                nodes |= {ways[way]: {"solve": solver}} if solver is not None else {}
        return _Row(name, kind, i, retries, ways)

    def _known(
        self, parts: Mapping[str, Any], known: tuple[str, ...], what: str, there: Path
    ) -> dict[str, Any]:
        """The parts that something in a pipeline may have, which are more than its node has."""
        for key in parts:
            if key not in known:
                self._wrong((*there, key), near(f"{key!r} is not a key of {what}", key, known))
        return {key: part for key, part in parts.items() if key in known}

    def _retries(self, value: Any, i: int) -> int:
        if type(value) is int and 0 <= value <= 100:
            return value
        there = ("pipeline", i, "verify", "retries")
        self._wrong(there, f"must be a number from 0 to 100, got {short(value)}.")
        return 0

    def _onward(self, rows: "list[_Row]", i: int) -> Iterator[dict[str, Any]]:
        """The edges out of a step of a pipeline."""
        row = rows[i]
        revised = row.kind == "verify" and i + 1 < len(rows) and rows[i + 1].kind == "revise"
        after = i + 2 if revised else i + 1
        onward = rows[after].name if after < len(rows) else END
        limit = {"at_most": row.retries} if row.retries else {}
        if revised:
            yield {"from": row.name, "to": rows[i + 1].name, "when": {"verified": False}, **limit}
        elif row.retries:
            back = [before for before in rows[:i] if before.kind in ("solve", "route", "revise")]
            if not back:
                self._wrong(("pipeline", row.place), "retries: no step stands before it that solves.")
            for target, when in back[-1].solving() if back else ():
                yield {"from": row.name, "to": target, "when": {**when, "verified": False}, **limit}
        again = row.kind == "revise" and i > 0 and rows[i - 1].retries
        if again:
            yield {"from": row.name, "to": rows[i - 1].name}
        elif row.kind == "route":
            for way, target in row.ways.items():
                yield {"from": row.name, "to": target, "when": {"route": way}}
                if onward != END:
                    yield {"from": target, "to": onward}
        elif onward != END:
            yield {"from": row.name, "to": onward}

    def _wrong(self, path: Path, message: str) -> None:
        self.faults.append(Fault(path, message))


class _Row(NamedTuple):
    """A step of a pipeline: its node, its place in the list, and for a route the node of each way."""

    name: str
    kind: str
    place: int
    retries: int
    ways: Mapping[str, str]

    def solving(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The nodes that solve, and when it was they that did."""
        if self.kind == "route":
            yield from ((node, {"route": way}) for way, node in self.ways.items())
        else:
            yield self.name, {}


def short(value: Any) -> str:
    """A value as it is quoted in an error: on one line, and not too long."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of many digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _free(name: str, taken: Mapping[str, object]) -> str:
    """The name, with a number if it is taken."""
    number, free = 2, name
    while free in taken or free == END:
        number, free = number + 1, f"{name}-{number}"
    return free
