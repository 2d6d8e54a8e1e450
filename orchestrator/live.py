"""A run on the screen: a live tree on a terminal, concise lines anywhere else.

    with watch(budget) as observer:
        pipeline.solve(task, observers=[observer])

Both are observers over one `SearchView`. Model text is shown as plain text: no markup is read in it, and
control characters are dropped.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .ledger import Budget
from .search_view import SearchView, Seen, clean
from .trace import Event, Noted, Observer, RunEnded, RunStarted

_PLAIN_EVERY_S = 1.0
_WIDTH = 100  # of lines that go to a file or a pipe


@contextmanager
def watch(budget: Budget | None = None, console: Console | None = None) -> Iterator[Observer]:
    """An observer that shows a run: a live tree on a terminal, else lines."""
    console = console or Console(stderr=True, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield Lines(console, budget)
        return
    screen = Screen(console, budget)
    screen.start()
    try:
        yield screen
    finally:
        screen.stop()


class Screen:
    """The live tree. Events come from the run's thread, drawing happens in the terminal's own."""

    def __init__(self, console: Console, budget: Budget | None = None) -> None:
        self._console = console
        self._budget = budget or Budget()
        self._view = SearchView()
        self._lock = threading.Lock()
        self._t0 = perf_counter()
        self._live: Live | None = None  # what draws it

    def __call__(self, event: Event) -> None:
        """Take an event in; drawing follows by itself."""
        with self._lock:
            self._view(event)
            if isinstance(event, RunStarted):
                self._t0 = perf_counter()

    def start(self) -> None:
        """Draw from here on, below what stands on the terminal: a `Live` that was stopped would go back up
        and over it, so each time it is another one."""
        self._live = Live(
            get_renderable=self.render,
            console=self._console,
            refresh_per_second=8,
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)

    def stop(self) -> None:
        """Draw no more; what is drawn stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the terminal to somebody else for a while. The run's clock stands, and so does ours."""
        self.stop()
        left = perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._t0 += perf_counter() - left
            self.start()

    def render(self) -> RenderableType:
        """The whole picture: tree above, gauges below."""
        with self._lock:
            if self._view.started is not None and self._view.ended is None:
                self._view.t = max(self._view.t, perf_counter() - self._t0)  # time goes on between events
            gauges = budget_gauges(self._view, self._budget)
            room = max(4, self._console.height - len(gauges) - 3)
            lines = tree_lines(self._view, max_lines=room, plain=_ascii(self._console))
            status = status_line(self._view)
        for line in lines:
            line.truncate(self._console.width - 1, overflow="ellipsis")
        return Group(*lines, *gauges, status)


class Lines:
    """Progress in words, for files, pipes and terminals that cannot redraw."""

    def __init__(self, console: Console, budget: Budget | None = None) -> None:
        self._console = console
        self._view = SearchView()
        self._limits = (budget or Budget()).limits()
        self._best: Seen | None = None
        self._said = (0.0, 0)  # when, and how many nodes there were

    def __call__(self, event: Event) -> None:
        """Say what changed, but not too often."""
        view = self._view
        view(event)
        if isinstance(event, RunStarted):
            limits = ", ".join(f"{limit:g} {name}" for name, limit in self._limits.items()) or "no limit"
            self._say(f"{clean(event.question)}   (seed {event.seed}, budget: {limits})")
        elif isinstance(event, RunEnded):
            self._say(status_line(view).plain)
        elif isinstance(event, Noted):
            self._progress()

    def _progress(self) -> None:
        view, (when, count) = self._view, self._said
        best = view.best
        if best is not None and (self._best is None or (best.score or 0.0) > (self._best.score or 0.0)):
            self._best = best
            mark = "✓" if best.terminal else "·"
            self._say(f"{view.t:6.1f} s  best {best.score:.2f} {mark} {clean(best.text)}")
        if view.t - when >= _PLAIN_EVERY_S and len(view.nodes) > count:
            self._said = (view.t, len(view.nodes))
            done = len(view.finished)
            self._say(f"{view.t:6.1f} s  {len(view.nodes)} steps, {done} finished, {_tokens(view)}")

    def _say(self, line: str) -> None:
        text = Text(_encodable(line, self._console))
        text.truncate(max(_WIDTH, self._console.width), overflow="ellipsis")
        self._console.print(text, soft_wrap=True)


# ---------------------------------------------------------------- the tree


def tree_lines(
    view: SearchView, *, max_lines: int = 0, plain: bool = False, numbered: bool = False
) -> list[Text]:
    """The tree as lines of text; with `max_lines`, what matters most of it, the rest counted; `numbered` in
    order of appearance, from 1.

    What matters: the best path first, then what was found last, then what scores best.
    """
    best = set(view.best.path()) if view.best else set()
    shown = set(view.nodes) if not max_lines else _chosen(view, max_lines)
    lines: list[Text] = []
    if view.started is not None:
        lines.append(Text(clean(view.started.question), style="bold"))
    width = len(str(len(view.nodes))) if numbered else 0
    lines += _drawn(view.roots, shown, best, _ASCII if plain else _GLYPHS, width)
    if plain:
        lines = [Text(line.plain.encode("ascii", "replace").decode()) for line in lines]
    return lines


_GLYPHS = {"mid": "├ ", "end": "└ ", "bar": "│ ", "gap": "  ", "done": "✓", "more": "…", "open": "·"}
_ASCII = {"mid": "|-", "end": "`-", "bar": "| ", "gap": "  ", "done": "*", "more": "...", "open": "."}


def _chosen(view: SearchView, max_lines: int) -> set[Seen]:
    """The nodes to show, so that they and the lines for what is left out fit."""
    path = (view.best or view.nodes[-1]).path() if view.nodes else []
    half = max(2, max_lines // 2 - 1)
    if len(path) > 2 * half:  # its beginning and its end
        return {*path[: half - 1], *path[-half:]}
    by_score = sorted(view.nodes, key=lambda n: (not n.pruned, n.terminal, n.score or 0.0), reverse=True)
    shown = set(path)
    parents = {id(node) for node in path}  # each may need a line of its own for what is left out below it
    for node in (*view.nodes[: -(max_lines // 3) : -1], *by_score):
        fresh = [n for n in node.path() if n not in shown]
        above = {id(n.parent) for n in fresh} | {id(n) for n in fresh if n.children}
        if len(shown) + len(fresh) + len(parents | above) >= max_lines:
            continue
        shown.update(fresh)
        parents |= above
    return shown


def _drawn(
    roots: Sequence[Seen], shown: set[Seen], best: set[Seen], glyphs: dict[str, str], width: int
) -> Iterator[Text]:
    """Depth first, without recursion: a path may be thousands of steps long."""
    pending = _level(roots, "", shown, glyphs)
    while pending:
        item = pending.pop()
        if isinstance(item, Text):
            yield item
            continue
        node, indent, last = item
        guide = indent + glyphs["end" if last else "mid"]
        yield _line(node, guide, node in best, glyphs, width)
        pending += _level(node.children, indent + glyphs["gap" if last else "bar"], shown, glyphs)


def _level(
    siblings: Sequence[Seen], indent: str, shown: set[Seen], glyphs: dict[str, str]
) -> "list[Text | tuple[Seen, str, bool]]":
    """What to draw of some siblings, last first: those shown, then one line for the others, then what is
    shown again further below (the end of a path too long to show)."""
    visible = [node for node in siblings if node in shown]
    hidden = [node for node in siblings if node not in shown]
    items: list[Text | tuple[Seen, str, bool]] = []
    if hidden:
        line, below = _left_out(hidden, indent, shown, glyphs)
        items = [*((node, indent + glyphs["gap"], i == 0) for i, node in enumerate(below)), line]
    for node in reversed(visible):
        items.append((node, indent, not items))
    return items


def _line(node: Seen, guide: str, best: bool, glyphs: dict[str, str], width: int) -> Text:
    line = Text()
    line.append(guide, style="dim")
    if width:
        line.append(f"{node.number + 1:>{width}} ", style="cyan" if best else "dim cyan")
    mark = glyphs["done"] if node.terminal else glyphs["open"]
    score = " -- " if node.score is None else f"{node.score:.2f}"
    style = "dim" if node.pruned else "bold" if best else ""
    line.append(f"{score} ", style=f"{style} {_colour(node.score)}".strip())
    line.append(f"{mark} ", style=f"{style} {_colour(node.score)}".strip() or "default")
    line.append(clean(node.text) or "(empty)", style=style or "default")
    return line


def _left_out(
    nodes: Sequence[Seen], indent: str, shown: set[Seen], glyphs: dict[str, str]
) -> tuple[Text, list[Seen]]:
    """The line that counts what is not shown below some nodes, and the nodes where it is shown again."""
    count = finished = 0
    top: float | None = None
    again: list[Seen] = []
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node in shown:
            again.append(node)
            continue
        count += 1
        finished += node.terminal
        if node.score is not None:
            top = node.score if top is None else max(top, node.score)
        pending += node.children
    told = f"{glyphs['more']} {count} more"
    told += f", {finished} {glyphs['done']}" if finished else ""
    told += f", best {top:.2f}" if top is not None else ""
    return Text(f"{indent}{glyphs['end']}{told}", style="dim"), again


def _colour(score: float | None) -> str:
    if score is None:
        return ""
    return "green" if score >= 0.7 else "yellow" if score >= 0.3 else "red"


# ---------------------------------------------------------------- gauges


def budget_gauges(view: SearchView, budget: Budget) -> list[Table]:
    """One bar for each limit."""
    bars = []
    for name, limit in budget.limits().items():
        used = view.t if name == "seconds" else float(getattr(view.usage, name))
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=14)
        grid.add_column(width=30)
        grid.add_column()
        share = used / limit if limit else 1.0
        colour = "red" if share >= 1 else "yellow" if share >= 0.8 else "green"
        bar = ProgressBar(
            total=limit or 1,
            completed=min(used, limit),
            width=30,
            complete_style=colour,
            finished_style=colour,
        )
        grid.add_row(Text(name, style="dim"), bar, Text(f"{used:,.0f} of {limit:,.0f}"))
        bars.append(grid)
    return bars


def status_line(view: SearchView) -> Text:
    """Counts, speed and how the run ended."""
    parts = [f"{len(view.nodes)} steps", f"{len(view.finished)} finished", _tokens(view)]
    parts += [f"{view.usage.calls} calls", f"{view.t:.1f} s"]
    if view.failures:
        parts.append(f"{view.failures} failed")
    stopped = view.ended.diagnostics.get("stopped", view.stopped) if view.ended else view.stopped
    if stopped:
        parts.append(f"stopped: {clean(str(stopped))}")
    return Text(" · ".join(parts), style="yellow" if stopped else "dim")


def _tokens(view: SearchView) -> str:
    out = view.usage.output_tokens
    speed = f" ({out / view.t:.0f}/s)" if view.t > 0.5 else ""
    return f"{out} tokens{speed}"


def _ascii(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")


def _encodable(line: str, console: Console) -> str:
    return line.encode(console.encoding, "replace").decode(console.encoding)
