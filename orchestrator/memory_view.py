"""How a memory is shown: entries, why they were found, what is wrong, what changed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..memory.audit import Finding, Lift
from ..memory.base import Change
from ..memory.gate import Verdict
from ..serving.entries import Entry, Evidence, Match
from .memory_files import plain
from .search_view import clean, printable

_SHORT = 80


def short(text: str, length: int = _SHORT) -> str:
    """A text on one line, and not too long."""
    text = clean(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def _table(*columns: str) -> Table:
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        made.add_column(column, no_wrap=True, overflow="ellipsis")
    return made


def listed(entries: Sequence[Entry]) -> Table:
    """Entries, one a line."""
    rows = _table("name", "kind", "solved", "evidence", "text")
    for entry in entries:
        style = "dim" if entry.status == "retired" else ""
        kind = f"{short(entry.kind, 20)}{', retired' if entry.status == 'retired' else ''}"
        cells = (short(entry.name, 40), kind, _solved(entry), verifiers(entry.evidence), short(_says(entry)))
        rows.add_row(*(Text(cell) for cell in cells), style=style)
    return rows


def _says(entry: Entry) -> str:
    """What it says beyond its name."""
    return entry.text.removeprefix(entry.name).lstrip() or entry.text


def _solved(entry: Entry) -> str:
    return f"{entry.wins} of {entry.uses}" if entry.uses else ""


def verifiers(evidence: Sequence[Evidence]) -> str:
    """Who stands behind it: `tests ×3, judge`."""
    counts = Counter(told.verifier or "nobody" for told in evidence)
    return ", ".join(f"{short(kind, 20)}{f' ×{n}' if n > 1 else ''}" for kind, n in counts.items())


def card(entry: Entry, history: Sequence[Change] = ()) -> RenderableType:
    """All of one entry."""
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in _facts(entry):
        facts.add_row(Text(name, style="dim"), Text(value))
    parts: list[RenderableType] = [facts]
    if history:
        parts += [Text("history", style="dim"), changes(history)]
    return Group(*parts)


def _facts(entry: Entry) -> Iterator[tuple[str, str]]:
    yield "name", clean(entry.name)
    yield "kind", clean(", ".join(filter(None, (entry.kind, entry.domain, entry.status))))
    yield "text", printable(entry.text)
    if data := _without_blanks(plain(entry)["data"] if entry.data else {}):
        told = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
        yield "data", printable(told).rstrip()
    if entry.uses:
        yield "used", f"for {entry.uses} problems, of which {entry.wins} were solved"
    for each in entry.evidence:
        yield "evidence", _evidence(each)


def _without_blanks(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_blanks(part) for key, part in data.items() if part not in ("", None, [], {})}
    return [_without_blanks(part) for part in data] if isinstance(data, list) else data


def _evidence(told: Evidence) -> str:
    parts = [f"{told.verifier or 'nobody'} {told.confidence:g}"]
    parts += [f"run {told.run}"] if told.run else []
    parts += [f"of {short(told.source)}"] if told.source else []
    parts += [f"having read {', '.join(told.read[:5])}"] if told.read else []
    return clean(", ".join(parts))


def changes(history: Sequence[Change]) -> Table:
    """What happened, one change a line."""
    rows = _table("version", "what", "entry", "why")
    for change in history:
        cells = (f"{change.version}", short(change.action, 20), short(change.name, 40), short(change.reason))
        rows.add_row(*map(Text, cells))
    return rows


def found(matches: Sequence[Match]) -> RenderableType:
    """Matches, each with why it was found."""
    lines: list[RenderableType] = []
    for i, match in enumerate(matches, 1):
        entry = match.entry
        head = Text.assemble(
            (f"{i} {short(entry.name, 60)}", "bold"),
            f"  {short(entry.kind, 20)}  {match.score:.3g}  {_solved(entry)}",
        )
        if against := entry.data.get("contradicts"):
            head.append(
                f"  contradicts {', '.join(map(str, against))}" if isinstance(against, list) else "", "yellow"
            )
        lines += [head, Padding(Text(short(_says(entry), 300)), (0, 0, 0, 2))]
        lines.append(Padding(Text(clean(match.why), style="dim"), (0, 0, 0, 2)))
    return Group(*lines) if lines else Text("nothing", style="dim")


def audited(findings: Sequence[Finding], n: int) -> RenderableType:
    """What is wrong, and how many there are of each kind."""
    if not findings:
        return Text(f"Nothing is wrong with the {n} active entries.")
    rows = _table("what", "entries", "why")
    rows.columns[2].no_wrap = False
    for each in findings:
        names = " | ".join(short(name, 40) for name in each.names)
        rows.add_row(Text(each.fault, style="yellow"), Text(names), Text(short(each.says, 160)))
    counts = Counter(each.fault for each in findings)
    told = ", ".join(f"{n} {fault}" for fault, n in counts.items())
    return Group(rows, Text(f"{len(findings)} findings about {n} active entries: {told}", style="dim"))


def lifted(lift: Lift) -> Text:
    """What the ablation says."""
    return Text(
        f"lift {lift.mean:+.3f}  [{lift.low:+.3f}, {lift.high:+.3f}] on {lift.n} problems: {lift.verdict} "
        f"(solved {lift.with_memory:.1%} with, {lift.without:.1%} without)"
    )


def judged(verdicts: Sequence[Verdict]) -> Table:
    """What became of each entry."""
    rows = _table("entry", "what", "why")
    for each in verdicts:
        style = "yellow" if each.action == "refused" else ""
        rows.add_row(
            Text(short(each.name, 40)), Text(each.action, style=style), Text(short(each.reason, 140))
        )
    return rows


def differences(old: Mapping[str, Entry], new: Mapping[str, Entry]) -> RenderableType:
    """What another version says otherwise; counts of uses are of no version."""
    lines: list[Text] = []
    for name in sorted({*old, *new}):
        if name not in old:
            lines.append(Text(f"+ {short(name)}  {short(_says(new[name]))}", style="green"))
        elif name not in new:
            lines.append(Text(f"- {short(name)}  {short(_says(old[name]))}", style="red"))
        else:
            lines += _changed(name, plain(old[name]), plain(new[name]))
    return Group(*lines) if lines else Text("no difference", style="dim")


def _changed(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Text]:
    keys = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key) and key not in _COUNTS]
    if not keys:
        return []
    lines = [Text(f"~ {short(name)}", style="bold")]
    for key in keys:
        lines += [Text(f"  - {key}: {short(str(old[key]), 160)}", style="red")] if key in old else []
        lines += [Text(f"  + {key}: {short(str(new[key]), 160)}", style="green")] if key in new else []
    return lines


_COUNTS = ("uses", "wins")
