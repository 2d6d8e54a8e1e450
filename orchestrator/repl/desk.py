"""What lies before whoever sits here: the runs, which of them is looked at, and what was typed.

Everything that only looks is here, for a sitting and for a replay of one.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path as File
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...serving import redact
from ...serving.errors import UnknownName, UsageError
from .. import strict_yaml
from ..ledger import Budget
from ..search_view import Seen, printable, to_networkx
from ..trace import canonical
from . import pictures
from .branch import Branch
from .evidence import origin
from .language import GROUPS, command, count, words
from .node_card import node_card


class Desk:
    """The runs by name, in the order in which they began."""

    def __init__(self) -> None:
        self.branches: dict[str, Branch] = {}
        self.current: Branch | None = None

    def branch(self, name: str) -> Branch:
        """A run by its letter. Raises UnknownName."""
        found = self.branches.get(name.upper())
        if found is None:
            raise UnknownName("run", name, self.branches or ["none yet"])
        return found

    def here(self) -> Branch:
        """The run looked at. Raises UsageError while there is none."""
        if self.current is None:
            raise UsageError("There is no run yet. Type a problem, e.g. 24 x 3.")
        return self.current

    def node(self, text: str) -> tuple[Branch, Seen]:
        """`12` or `B:12`. Raises UsageError if there is no such node."""
        run, colon, number = text.rpartition(":")
        branch = self.branch(run) if colon else self.here()
        with branch.lock:
            nodes = branch.view.nodes
            if number.isascii() and number.isdigit() and 0 < int(number) <= len(nodes):
                return branch, nodes[int(number) - 1]
        have = f"It has nodes 1 to {len(nodes)}" if nodes else "It has none yet"
        raise UsageError(f"No node {number!r} in run {branch.name}. {have}; tree shows them.")

    def budget(self, branch: Branch) -> Budget:
        """The limits of a run."""
        recipe = branch.record.get("recipe", branch.record)
        limits = recipe.get("budget") if isinstance(recipe, Mapping) else None
        return limits_of(limits)

    def where(self) -> dict[str, int]:
        """How many events each run has."""
        return {name: len(branch.lines) for name, branch in list(self.branches.items())}

    # ------------------------------------------------------------ looking

    def look(self, name: str, rest: str) -> RenderableType:
        """What a command of `language.LOOKING` shows."""
        looking: Mapping[str, Callable[[str], RenderableType]] = {
            "tree": lambda text: pictures.tree(self._named("tree", text)),
            "show": self._show,
            "calls": lambda text: pictures.calls(self.here().rows(), count("calls", text, 10)),
            "runs": self._runs,
            "compare": self._compare,
            "export": self._export,
            "budget": lambda _: pictures.gauges(self.here(), self.budget(self.here())),
            "help": _help,
        }
        return looking[name](rest)

    def _named(self, name: str, text: str) -> Branch:
        found = words(name, text, 0, 1)
        return self.branch(found[0]) if found else self.here()

    def _show(self, text: str) -> RenderableType:
        found = words("show", text, 0, 1)
        if found and found[0].upper() in self.branches:
            return self._run_card(self.branch(found[0]))
        if found:
            branch, node = self.node(found[0])
        else:
            branch = self.here()
            best = branch.view.best
            if best is None:
                return Text("No node yet.", style="dim")
            node = best
        rows = branch.rows()
        return node_card(branch, node, origin(rows, node), rows)

    def _run_card(self, branch: Branch) -> RenderableType:
        told = {key: value for key, value in branch.record.items() if key not in ("run", "version", "task")}
        recipe = printable(strict_yaml.write(told.pop("recipe", {}) | told))
        question = Text(printable(pictures.question_of(branch.record)), style="bold")
        stored = Text(f"stored as {branch.run}", style="dim")
        figures = pictures.gauges(branch, self.budget(branch))
        return Group(question, pictures.ending(branch), figures, stored, Text(recipe.rstrip(), style="dim"))

    def _runs(self, text: str) -> RenderableType:
        words("runs", text, 0, 0)
        if not self.branches:
            return Text("No run yet. Type a problem, e.g. 24 x 3.", style="dim")
        return pictures.runs_table(self.branches.values(), self.current)

    def _compare(self, text: str) -> RenderableType:
        a, b = map(self.branch, words("compare", text, 2, 2))
        return pictures.comparison(a, b, parted(a, b))

    def _export(self, text: str) -> RenderableType:
        [name] = words("export", text, 1, 1)
        branch, file = self.here(), File(name).expanduser()
        writers: Mapping[str, Callable[[Branch], str]] = {
            ".json": _as_json,
            ".graphml": _as_graphml,
            ".jsonl": lambda each: "".join(redact.line(line).decode() + "\n" for line in each.lines),
        }
        if file.suffix not in writers:
            raise UsageError(f"export {name}: the name must end with {', '.join(writers)}.")
        with branch.lock:
            written = writers[file.suffix](branch)
        try:
            file.write_text(written, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"Cannot write {file}: {error.strerror}.") from error
        return Text(f"{branch.name}: {len(branch.view.nodes)} nodes, written to {file}", style="dim")


def limits_of(limits: Any) -> Budget:
    """A budget from what a record holds of it."""
    if isinstance(limits, str):
        return Budget.parse(limits)
    if isinstance(limits, Mapping):
        return Budget(**{key: value for key, value in limits.items() if value is not None})
    return limits if isinstance(limits, Budget) else Budget()


def parted(a: Branch, b: Branch) -> str:
    """The first event, in the order of paths, at which two runs differ; times and names aside."""
    left, right = ([_bare(row) for row in canonical(each.rows())[1:]] for each in (a, b))
    same = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            begun = f"The same in {pictures.counted(same, 'event')}; they part" if same else "They part"
            place = f"{begun} at {_place(one, other)}:"
            return f"{place}\n  {a.name}  {_told(one)}\n  {b.name}  {_told(other)}"
        same += 1
    if len(left) == len(right):
        return f"The same in all {pictures.counted(same, 'event')}."
    longer, rest = (a, left[same]) if len(left) > len(right) else (b, right[same])
    return f"The same in {pictures.counted(same, 'event')}; then {longer.name} goes on: {_told(rest)}."


_BESIDE = ("t", "seconds", "replayed", "attempts", "run", "settings")


def _bare(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in _BESIDE}


def _place(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    path = min(one["path"], other["path"])
    return ".".join(map(str, path)) if path and path[0] < 1 << 62 else "the end"


def _told(row: Mapping[str, Any]) -> str:
    if row["event"] == "called":
        return pictures.asked_and_told(row)
    if row["event"] == "noted":
        return f"{row['note']} {_noted(row['data'])}".strip()
    return str(row["event"]).replace("run_", "").replace("_", " ")


def _noted(data: Mapping[str, Any]) -> str:
    """What a note says, in short."""
    if (nodes := data.get("nodes")) and isinstance(nodes[0], Mapping):
        return " │ ".join(pictures.short(str(node["text"]), 24) or "(empty)" for node in nodes[:4])
    if scores := data.get("scores"):
        return " ".join(pictures.score(value) for value in [*scores.values()][:6])
    return pictures.short(json.dumps(data, ensure_ascii=False), 60) if data else ""


def _as_json(branch: Branch) -> str:
    import networkx

    graph = to_networkx(branch.view)
    return json.dumps(networkx.node_link_data(graph, edges="edges"), ensure_ascii=False, indent=1) + "\n"


def _as_graphml(branch: Branch) -> str:
    import networkx

    graph = to_networkx(branch.view)
    for _, facts in graph.nodes(data=True):
        facts["score"] = "" if facts["score"] is None else facts["score"]  # GraphML has no null
        facts["text"] = printable(facts["text"])  # nor has XML control characters
    return "\n".join(networkx.generate_graphml(graph)) + "\n"


def _help(text: str) -> RenderableType:
    if text:
        told = command(text)
        lines = [
            Text.assemble((told.name, "bold cyan"), f" {told.arguments}"),
            Text(f"  {told.tells}."),
            *([Text(f"  {told.more}")] if told.more else []),
            Text.assemble("  e.g. ", (told.example, "bold")),
        ]
        return Group(*lines)
    table = Table.grid(padding=(0, 2))
    for group in GROUPS.values():
        for each in group:
            table.add_row(
                Text.assemble((each.name, "bold cyan"), (f" {each.arguments}", "dim")), Text(each.tells)
            )
        table.add_row("", "")
    return Group(table, Text("help COMMAND tells more, with an example.", style="dim"))
