"""What a sitting shows: trees, nodes, runs and comparisons, as rich text.

Functions of a branch; nothing here knows a terminal. Model text is shown as text: no markup is read in it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..ledger import Budget
from ..live import budget_gauges, tree_lines
from ..search_view import SearchView, clean
from .branch import Branch, State, strategy_of
from .evidence import Row

MARKS: Mapping[State, tuple[str, str]] = {
    "running": ("●", "green"),
    "pausing": ("◐", "yellow"),
    "paused": ("‖", "yellow"),
    "asking": ("?", "magenta"),
    "ended": ("✓", "blue"),
    "failed": ("✗", "red"),
    "stopped": ("■", "red"),
}


_ROOMY = (64, 12)  # columns and rows from which gauges are shown


def pane(branch: Branch, budget: Budget, *, height: int, width: int, hint: str = "") -> list[Text | Table]:
    """What is kept before the eyes while a run goes on: tree, last tool call, gauges, figures. `hint` says
    what can be done now."""
    with branch.lock:
        roomy = width >= _ROOMY[0] and height >= _ROOMY[1]
        gauges = budget_gauges(branch.view, budget) if roomy else []
        last = [line for line in (_visits(branch), _tool_line(branch)) if line is not None]
        room = max(2, height - len(gauges) - len(last) - 2)
        lines = tree_lines(branch.view, max_lines=max(1, room - 1), numbered=True)[:room]
        figures = figures_line(branch)
    for line in (*lines, *last, figures):
        line.truncate(width - 1, overflow="ellipsis")
    return [headline(branch, width, hint), *lines, *last, *gauges, figures]


def headline(branch: Branch, width: int, hint: str = "") -> Text:
    """Which run this is and how it stands, as a rule across the screen."""
    mark, colour = MARKS[branch.state]
    line = Text.assemble(("── ", "dim"))
    line.append(f"{mark} {branch.name}", style=f"bold {colour}")
    line.append(f" {standing(branch)}", style=colour)
    told = strategy_of(branch.record)
    line.append(f" · {clean(told)}" if told else "", style="dim")
    if branch.parent:
        line.append(f" · from {branch.parent}", style="dim")
    told = f" {hint} ──" if hint and line.cell_len + len(hint) + 8 < width else ""
    line.append(" ")
    line.append("─" * max(2, width - line.cell_len - len(told) - 1), style="dim")
    line.append(told, style="dim")
    return line


def standing(branch: Branch) -> str:
    """How a run stands, in words."""
    at = f"step {branch.steps}"
    if branch.state == "running":
        return at
    if branch.state == "pausing":
        return f"pausing at {at}"
    why = f": {clean(branch.why)}" if branch.why else ""
    if branch.state == "ended":
        return f"ended after {at}"
    if branch.state == "asking":
        return f"asks{why}"
    return f"{branch.state} at {at}{why}" if branch.state != "failed" else f"failed{why}"


def figures_line(branch: Branch) -> Text:
    """Nodes, tokens, speed, calls, time."""
    view = branch.view
    out = view.usage.output_tokens
    speed = f" ({out / view.t:.0f}/s)" if view.t > 0.5 else ""
    parts = [counted(len(view.nodes), "node"), f"{len(view.finished)} finished", f"{out} tokens{speed}"]
    parts += [counted(view.usage.calls, "call"), f"{view.t:.1f} s"]
    if view.usage.tool_calls:
        parts.append(counted(view.usage.tool_calls, "tool call"))
    if view.failures:
        parts.append(f"{view.failures} failed")
    return Text(" · ".join(parts), style="dim")


def tree(branch: Branch) -> RenderableType:
    """The whole tree."""
    with branch.lock:
        lines = tree_lines(branch.view, numbered=True)
    return Group(*lines, figures_line(branch)) if lines else Text("nothing yet", style="dim")


def gauges(branch: Branch, budget: Budget) -> RenderableType:
    """What a run has spent, against its limits."""
    with branch.lock:
        bars = budget_gauges(branch.view, budget)
        return Group(*bars, figures_line(branch))


def ending(branch: Branch) -> RenderableType:
    """What came of a run that stands still."""
    mark, colour = MARKS[branch.state]
    told = Text(f"{mark} {branch.name} {standing(branch)}", style=colour)
    if branch.parent and branch.state == "paused":
        told.append(f" · from {branch.parent}", style="dim")
    end = branch.view.ended
    if branch.state != "ended" or end is None:
        return told
    lines = [told]
    if end.answer is not None:
        lines.append(Text.assemble(("  answer  ", "dim"), (clean(str(end.answer)), "bold green")))
    else:
        lines.append(Text("  no answer", style="yellow"))
    if not end.complete:
        reason = clean(str(end.diagnostics.get("stopped", "ended early")))
        lines.append(Text(f"  incomplete: {reason}", style="yellow"))
    return Group(*lines)


def counted(n: int, what: str) -> str:
    """A number with its noun."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def score(value: float | None) -> str:
    """A score in three digits."""
    return "--" if value is None else f"{value:.3f}"


# ---------------------------------------------------------------- calls


def calls(rows: Iterable[Row], n: int) -> RenderableType:
    """The last calls, a line each."""
    last = [call_line(row) for row in rows if row["event"] == "called"][-n:]
    return Group(*last) if last else Text("no call yet", style="dim")


def call_line(row: Row) -> Text:
    """One call: when, what was asked, what came back."""
    line = Text.assemble((f"{row['t']:7.2f} s ", "dim"))
    line.append(f"{_CALLED.get(row['call'], row['call'].lower()):<9}", style="cyan")
    line.append(_asked(row))
    line.append(" → ", style="dim")
    reply, failed = _replied(row)
    line.append(reply, style="red" if failed else "")
    line.append(f"  {row['seconds']:.2f} s{' replayed' if row.get('replayed') else ''}", style="dim")
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def asked_and_told(row: Row) -> str:
    """One call without its times."""
    return f"{_CALLED.get(row['call'], row['call'].lower())} {_asked(row)} → {_replied(row)[0]}"


_CALLED = {"CallTool": "tool", "LogProb": "log-prob"}


def _asked(row: Row) -> str:
    request = row["request"]
    if row["call"] == "CallTool":
        arguments = ", ".join(f"{key}={value}" for key, value in request["arguments"].items())
        return short(f"{request['name']}({arguments})", 40)
    if "prompt" in request:
        prompt = request["prompt"]
        text = prompt["prefix"] or (prompt["messages"][-1]["content"] if prompt["messages"] else "")
        times = f" ×{request['n']}" if request.get("n", 1) > 1 else ""
        return f"…{clean(text)[-20:]}{times}"
    if row["call"] in ("Recall", "Remember"):  # a query, or what is written or read by name
        told = [entry["name"] for entry in request.get("entries", ())] or request.get("names")
        return short(request.get("query") or ", ".join(told or request.get("credit") or ["everything"]), 40)
    return short(str(next(iter(request.values()), "")), 40)


def _replied(row: Row) -> tuple[str, bool]:
    reply = row["reply"]
    if isinstance(reply, Mapping):
        failed = reply.keys() == {"kind", "message"}
        if "logprobs" in reply:
            return f"{sum(x for x in reply['logprobs'] if x is not None):.2f}", False
        return short(str(reply.get("text", reply.get("message", reply))), 48), failed
    if isinstance(reply, list) and reply and isinstance(reply[0], Mapping):
        texts = (done["entry"]["name"] if "entry" in done else done["text"] for done in reply[:3])
        shown = " │ ".join(short(str(text), 20) or "(end)" for text in texts)
        found = "found" if row["call"] == "Recall" else "samples"
        return shown + (f" │ … {len(reply)} {found}" if len(reply) > 3 else ""), False
    if isinstance(reply, float):
        return f"{reply:.3f}", False
    return short(str(reply), 48), False


def _tool_line(branch: Branch) -> Text | None:
    return None if branch.tool is None else call_line(branch.tool)


def _visits(branch: Branch) -> Text | None:
    """The nodes of the recipe's graph that were visited, in order."""
    if not branch.visits:
        return None
    line = Text()
    for i, (node, over) in enumerate(branch.visits[-8:]):
        line.append(" → " if i else "", style="dim")
        line.append(clean(node), style="dim" if over else "bold green")
    return line


# ---------------------------------------------------------------- runs


def runs_table(branches: Iterable[Branch], current: Branch | None) -> RenderableType:
    """The runs of a sitting."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for i, column in enumerate(
        ("", "run", "from", "strategy", "question", "state", "answer", "best", "tokens")
    ):
        table.add_column(column, no_wrap=i < 4, justify="right" if i >= 7 else "left")
    for each in branches:
        with each.lock:
            mark, colour = MARKS[each.state]
            best = each.view.best
            table.add_row(
                Text("▸" if each is current else " ", style="bold cyan"),
                Text(each.name, style="bold"),
                Text(each.parent, style="dim"),
                Text(clean(strategy_of(each.record))),
                Text(short(question_of(each.record), 32)),
                Text(f"{mark} {short(standing(each), 32)}", style=colour),
                Text(short(_answer(each.view), 20)),
                Text(score(best.score if best else None)),
                Text(f"{each.view.usage.output_tokens}"),
            )
    return table


def comparison(a: Branch, b: Branch, parted: str) -> RenderableType:
    """Two runs side by side; what differs is bold."""
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for column in ("", a.name, b.name):
        table.add_column(column)
    for name, left, right in zip(_COMPARED, _compared(a), _compared(b), strict=True):
        style = "" if left == right else "bold"
        table.add_row(Text(name, style="dim"), Text(left, style=style), Text(right, style=style))
    return Group(table, Text(parted, style="cyan", no_wrap=True, overflow="ellipsis"))


_COMPARED = (
    *("question", "strategy", "state", "answer", "best score", "nodes", "finished", "steps"),
    *("output tokens", "input tokens", "calls", "tool calls", "seconds"),
)


def _compared(branch: Branch) -> tuple[str, ...]:
    with branch.lock:
        view, used = branch.view, branch.view.usage
        best = view.best
        return (
            *(short(question_of(branch.record), 40), clean(strategy_of(branch.record)), branch.state),
            *(short(_answer(view), 40) or "--", score(best.score if best else None)),
            *(str(len(view.nodes)), str(len(view.finished)), str(branch.steps)),
            *(f"{used.output_tokens:,}", f"{used.input_tokens:,}", str(used.calls), str(used.tool_calls)),
            f"{view.t:.2f}",
        )


def question_of(record: Mapping[str, Any]) -> str:
    """What a run was asked."""
    task = record.get("task")
    return str(task.get("question", "")) if isinstance(task, Mapping) else ""


def _answer(view: SearchView) -> str:
    return "" if view.ended is None or view.ended.answer is None else str(view.ended.answer)


def short(text: str, most: int) -> str:
    """Text on one line, cut to a length."""
    text = clean(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def ascii_only(text: str) -> str:
    """For terminals that show nothing else."""
    for ours, plain in _ASCII.items():
        text = text.replace(ours, plain)
    return re.sub(r"[^\x00-\x7f]", "?", text)


_ASCII = {
    "│": "|",
    "├": "|",
    "└": "`",
    "─": "-",
    "·": ".",
    "✓": "*",
    "…": "...",
    "→": "->",
    "▸": ">",
    "●": "o",
    "◐": "o",
    "‖": "=",
    "✗": "x",
    "■": "#",
    "×": "x",
    "╭": "+",
    "╮": "+",
    "╰": "+",
    "╯": "+",
}
