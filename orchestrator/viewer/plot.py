"""Pictures for papers: the tree, the timeline and the curves of a run, drawn with matplotlib."""

from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ...serving.errors import MissingExtra
from .picture import BEST, PRUNED, SPECULATIVE, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

What: TypeAlias = Literal["tree", "timeline", "curves"]
FORMATS = (".svg", ".png", ".pdf")

_ACCENT, _BEST, _SCORE, _LINE, _QUIET = "#3f51b5", "#9a4f06", "#0b6b5d", "#cbc5ba", "#686d75"
_RAMP = ("#d8d3c8", "#6fb3a4", "#0b6b5d")  # scores 0 to 1
_STYLE: Any = {  # matplotlib names each key a type of its own
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _QUIET,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "svg.fonttype": "none",  # words stay words
    "svg.hashsalt": "abduce",  # same run, same file
}


def drawn(picture: Picture, what: What, form: str) -> bytes:
    """The picture as a file of the given form: "svg", "png" or "pdf".

    Raises MissingExtra without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "plot") from None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZES[what], layout="constrained")
        _DRAW[what](picture, figure)
        out = BytesIO()
        dated = {"svg": "Date", "pdf": "CreationDate"}
        figure.savefig(out, format=form, dpi=200, metadata={dated[form]: None} if form in dated else None)
        return out.getvalue()


# ---------------------------------------------------------------- the tree


def _tree(picture: Picture, figure: "Figure") -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    axes = figure.subplots()
    x, y = _places(picture)
    fates = picture.fates()
    lines: dict[bool, list[Any]] = {True: [], False: []}
    top = (sum(x) / len(x) if x else 0.0, 0.0)
    for i, node in enumerate(picture.nodes):
        start = (x[node.parent], y[node.parent]) if node.parent >= 0 else top
        lines[fates[i] == BEST].append([start, (x[i], y[i])])
    axes.add_collection(LineCollection(lines[False], colors=_LINE, linewidths=0.6, zorder=1))
    axes.add_collection(LineCollection(lines[True], colors=_BEST, linewidths=1.6, zorder=2))
    axes.plot(*top, marker="s", color=_QUIET, markersize=3)
    ramp = LinearSegmentedColormap.from_list("score", _RAMP)
    size = max(2.0, min(26.0, 4000 / (len(x) + 1)))
    looks: dict[str, tuple[str, list[int]]] = {
        "open": ("o", []),
        "finished": ("o", []),
        "pruned": ("x", []),
        "speculative": ("o", []),
    }
    for i, node in enumerate(picture.nodes):
        name = {PRUNED: "pruned", SPECULATIVE: "speculative"}.get(
            fates[i], "finished" if node.seen.terminal else "open"
        )
        looks[name][1].append(i)
    for name, (marker, members) in looks.items():
        if members:
            scores = [picture.nodes[i].seen.score or 0.0 for i in members]
            colours = ramp(scores)
            hollow = {"facecolors": "white", "edgecolors": colours, "linestyle": "-"}
            hollow |= {"linestyle": (0, (1.5, 1))} if name == "speculative" else {}
            given = hollow if name in ("open", "speculative") else {"color": colours}
            where = ([x[i] for i in members], [y[i] for i in members])
            axes.scatter(*where, s=size, marker=marker, linewidths=0.7, zorder=3, label=name, **given)
    axes.set_axis_off()
    if x:
        axes.legend(loc="lower left", ncols=4, frameon=False, bbox_to_anchor=(0, -0.08))


def _places(picture: Picture) -> tuple[list[float], list[float]]:
    """Leaves side by side in the order of a walk, each node above the middle of its children."""
    x = [0.0] * len(picture.nodes)
    children: list[list[int]] = [[] for _ in x]
    roots: list[int] = []
    for i, node in enumerate(picture.nodes):
        (children[node.parent] if node.parent >= 0 else roots).append(i)
    column = 0.0
    pending = [(root, False) for root in reversed(roots)]
    while pending:
        i, below_done = pending.pop()
        if not children[i]:
            x[i], column = column, column + 1
        elif below_done:
            x[i] = (x[children[i][0]] + x[children[i][-1]]) / 2
        else:
            pending.append((i, True))
            pending += [(child, False) for child in reversed(children[i])]
    return x, [-float(node.seen.depth) for node in picture.nodes]


# ---------------------------------------------------------------- the timeline


def _timeline(picture: Picture, figure: "Figure") -> None:
    lanes, flight = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    colours = {"draws": _ACCENT, "scores": "#6fb3a4", "tools and memory": _BEST}
    ends: list[float] = []
    bars: dict[str, list[tuple[int, tuple[float, float]]]] = {name: [] for name in colours}
    for call in sorted(picture.calls.rows, key=lambda call: call["t"]):
        lane = next((i for i, end in enumerate(ends) if end <= call["t"]), len(ends))
        ends[lane : lane + 1] = [call["t"] + call["s"]]
        bars[_group(call)].append((lane, (call["t"], call["s"])))
    for name, rows in bars.items():
        if rows:
            at, spans = [lane + 0.5 for lane, _ in rows], [span for _, span in rows]
            left, width = zip(*spans, strict=True)
            lanes.barh(at, width, left=left, height=0.8, color=colours[name], label=name)
    lanes.set_ylabel("lane")
    lanes.set_ylim(max(1, len(ends)), 0)
    lanes.locator_params(axis="y", integer=True)
    if picture.calls.rows:
        lanes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    edges = sorted(edge for c in picture.calls.rows for edge in ((c["t"], 1), (c["t"] + c["s"], -1)))
    n, xs, ys = 0, [0.0], [0]
    for t, by in edges:
        n += by
        xs.append(t)
        ys.append(n)
    flight.fill_between(xs, ys, step="post", color=_ACCENT, alpha=0.25, linewidth=0)
    flight.set_ylabel("in flight")
    flight.set_xlabel("seconds")


def _group(call: Mapping[str, Any]) -> str:
    if call["kind"] in ("CallTool", "Recall", "Remember", "Ask"):
        return "tools and memory"
    judging = call["scores"] or call["kind"] != "Generate" or call["role"] in ("reward", "judge")
    return "scores" if judging else "draws"


# ---------------------------------------------------------------- the curves


def _curves(picture: Picture, figure: "Figure") -> None:
    particles = bool(picture.resamplings)
    axes: list[Axes] = list(figure.subplots(2 if particles else 1, 2, squeeze=False).flat)
    ends = sorted((call["t"] + call["s"], call["spent"]) for call in picture.calls.rows)
    used, total = [(0.0, 0.0)], 0.0
    for t, spent in ends:
        total += spent[0] - spent[1] + spent[2]
        used.append((t, total))
    _line(axes[0], "tokens", used, colour=_ACCENT, step=True)
    if limit := picture.run.get("limits", {}).get("tokens"):
        axes[0].axhline(limit, color="#b3261e", linestyle="--", linewidth=0.8)
    scored = sorted(
        (n.scored, n.seen.score) for n in picture.nodes if n.scored is not None and n.seen.score is not None
    )
    axes[1].scatter([t for t, _ in scored], [s for _, s in scored], s=4, color="#6fb3a4", alpha=0.5)
    best, top = [], -1.0
    for t, score in scored:
        top = max(top, score)
        best.append((t, top))
    _line(axes[1], "reward", best, colour=_BEST, step=True)
    for axis, name, title in zip(
        axes[2:], ("ess", "log_evidence"), ("effective sample size", "log evidence"), strict=False
    ):
        axis.set_title(title)
        for points in _populations(picture, name):
            _line(axis, title, points, colour=_SCORE, marker=".")
    for axis in axes[-2:]:
        axis.set_xlabel("seconds")


def _line(
    axis: "Axes",
    title: str,
    points: Iterable[tuple[float, float]],
    *,
    colour: str,
    step: bool = False,
    **more: Any,
) -> None:
    x, y = zip(*points, strict=True) if (points := list(points)) else ((), ())
    axis.set_title(title)
    axis.plot(x, y, color=colour, linewidth=1.2, drawstyle="steps-post" if step else "default", **more)


def _populations(picture: Picture, name: str) -> list[list[tuple[float, float]]]:
    groups: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for row in picture.resamplings:
        if row[name] is not None:
            groups.setdefault((row["visit"], row["population"]), []).append((row["t"], row[name]))
    return list(groups.values())


_SIZES: Mapping[What, tuple[float, float]] = {"tree": (7, 3.2), "timeline": (7, 3.2), "curves": (7, 4)}
_DRAW: "Mapping[What, Callable[[Picture, Figure], None]]" = {
    "tree": _tree,
    "timeline": _timeline,
    "curves": _curves,
}
