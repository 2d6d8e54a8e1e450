"""The graph of a recipe as a picture: SVG or PNG with matplotlib, Mermaid as text.

Nodes stand in layers, each one below the last node that leads to it; a way back is drawn beside them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..serving.errors import MissingExtra, UsageError
from .recipe.laws import conditions
from .steps import END, Graph, Route, When, kind_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png", ".mmd")
_START = "start"


def draw(graph: Graph, file: Path) -> None:
    """Write the picture; the file's ending says its format. Raises UsageError for another ending, and
    MissingExtra without matplotlib."""
    if file.suffix not in FORMATS:
        raise UsageError(
            f"A graph is drawn as {', '.join(FORMATS)}, not {file.name!r}. Write e.g. graph.svg."
        )
    try:
        if file.suffix == ".mmd":
            file.write_text(mermaid(graph), encoding="utf-8")
        else:
            _picture(graph, file)
    except OSError as error:
        raise UsageError(f"Cannot write {file}: {error.strerror}.") from None


def mermaid(graph: Graph) -> str:
    """The graph in Mermaid's language, for Markdown pages."""
    ids = {name: f"n{i}" for i, name in enumerate([_START, *graph.nodes, END])}
    lines = ["flowchart TD", f'    {ids[_START]}(["{_START}"])']
    for name, step in graph.nodes.items():
        lines.append(f'    {ids[name]}["{_title(name, kind_of(step))}"]')
    lines.append(f'    {ids[END]}(["{END}"])')
    for source, target, label in _arrows(graph):
        arrow = f'-- "{label}" -->' if label else "-->"
        lines.append(f"    {ids[source]} {arrow} {ids[target]}")
    return "\n".join(lines) + "\n"


def _arrows(graph: Graph) -> list[tuple[str, str, str]]:
    """Source, target and condition of all arrows, those from the start and to the end included."""
    first, *_ = graph.nodes
    found = [(_START, first, "")]
    for edge in graph.edges:
        found.append((edge.source, edge.target, ", ".join(conditions(edge))))
    found += [(name, END, "") for name in graph.nodes if _may_end(graph, name)]
    return list(dict.fromkeys(found))


def _may_end(graph: Graph, name: str) -> bool:
    """Whether it may be that no edge from a node is taken."""
    step, out = graph.nodes[name], [edge for edge in graph.edges if edge.source == name]
    routed = {edge.when.route for edge in out if edge.at_most is None}
    covered = isinstance(step, Route) and routed >= set(step.ways)
    return not covered and not any(edge.when == When() and edge.at_most is None for edge in out)


def _title(name: str, kind: str) -> str:
    return name if name == kind else f"{name} ({kind})"


def layers(graph: Graph) -> Mapping[str, int]:
    """The layer of each node: one more than that of the last node before it, ways back left out.

    A way back leads to a node that was written no later than the one it comes from.
    """
    names = [_START, *graph.nodes, END]
    place = {name: i for i, name in enumerate(names)}
    layer = dict.fromkeys(names, 0)
    for name in names:
        for source, target, _ in _arrows(graph):
            if source == name and place[target] > place[source]:
                layer[target] = max(layer[target], layer[source] + 1)
    layer[END] = max(layer.values()) if layer[END] == max(layer.values()) else max(layer.values()) + 1
    return layer


# ---------------------------------------------------------------- the picture

_INK, _PAPER, _LINE = "#1f2933", "#ffffff", "#7b8794"
_FILL = {
    "solve": "#dbeafe",
    "revise": "#dbeafe",
    "branch": "#dbeafe",
    "verify": "#dcfce7",
    "route": "#fef3c7",
    "ask": "#fce7f3",
}
_WIDTH, _HEIGHT, _ACROSS, _DOWN = 1.7, 0.46, 2.3, 1.05


def _picture(graph: Graph, file: Path) -> None:
    try:
        import matplotlib

        matplotlib.use("Agg", force=False)
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "plot") from None
    places = _places(graph)
    xs, ys = [x for x, _ in places.values()], [y for _, y in places.values()]
    figure = Figure(figsize=(max(xs) - min(xs) + _WIDTH + 3, max(ys) - min(ys) + 1.2), facecolor=_PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(min(xs) - _WIDTH / 2 - 1.5, max(xs) + _WIDTH / 2 + 1.5)
    axes.set_ylim(min(ys) - 0.6, max(ys) + 0.6)
    for source, target, label in _arrows(graph):
        _arrow(axes, places[source], places[target], label)
    for name, (x, y) in places.items():
        kind = kind_of(graph.nodes[name]) if name in graph.nodes else ""
        _box(axes, x, y, _title(name, kind) if kind else name, _FILL.get(kind, "#f1f5f9"), small=not kind)
    with matplotlib.rc_context({"svg.hashsalt": "abduce"}):  # the same graph, the same file
        dated = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(file, dpi=160, metadata=dated, bbox_inches="tight", pad_inches=0.2)


def _places(graph: Graph) -> dict[str, tuple[float, float]]:
    """Layer by layer; within one, each as far to the right as those that lead to it, on average."""
    layer = layers(graph)
    rows: dict[int, list[str]] = {}
    for name, row in layer.items():
        rows.setdefault(row, []).append(name)
    places: dict[str, tuple[float, float]] = {}
    for row, names in sorted(rows.items()):
        above = {
            name: [places[s][0] for s, t, _ in _arrows(graph) if t == name and s in places] for name in names
        }
        names.sort(key=lambda name: sum(above[name]) / max(1, len(above[name])))
        for i, name in enumerate(names):
            places[name] = ((i - (len(names) - 1) / 2) * _ACROSS, -row * _DOWN)
    return places


def _box(axes: "Axes", x: float, y: float, text: str, fill: str, *, small: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    width = 0.7 if small else _WIDTH
    corner = (x - width / 2, y - _HEIGHT / 2)
    style = f"round,pad=0,rounding_size={_HEIGHT / 2 if small else 0.09}"
    axes.add_patch(
        FancyBboxPatch(corner, width, _HEIGHT, style, facecolor=fill, edgecolor=_LINE, linewidth=1)
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=9, color=_INK)


def _arrow(axes: "Axes", start: tuple[float, float], end: tuple[float, float], label: str) -> None:
    """Straight down, or around the nearer side if the target is not below, or nodes stand between."""
    from matplotlib.patches import FancyArrowPatch

    (x0, y0), (x1, y1) = start, end
    left = x0 < 0 or (x0 == 0 and y1 < y0)  # the side it goes around
    side = -1 if left else 1
    style: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 11, "color": _LINE, "linewidth": 1.1}
    if y1 < y0 and (abs(y0 - y1) < 1.5 * _DOWN or x0 != x1):
        tail, head, bend = (x0, y0 - _HEIGHT / 2), (x1, y1 + _HEIGHT / 2), 0.0
        at, where = (
            ((x0 + x1) / 2 + (0.1 if x1 >= x0 else -0.1), (y0 + y1) / 2),
            "left" if x1 >= x0 else "right",
        )
    else:
        tail, head = (x0 + side * _WIDTH / 2, y0), (x1 + side * _WIDTH / 2, y1)
        bend = 0.5 * side * (1 if y1 >= y0 else -1)
        at, where = (
            (side * (max(abs(x0), abs(x1)) + _WIDTH / 2 + 0.5), (y0 + y1) / 2),
            "right" if left else "left",
        )
    axes.add_patch(FancyArrowPatch(tail, head, connectionstyle=f"arc3,rad={bend}", **style))
    if label:
        box = {"facecolor": _PAPER, "edgecolor": "none", "pad": 1.5}
        axes.text(*at, label, fontsize=7.5, color=_INK, ha=where, va="center", bbox=box)
