"""A memory as a file: all of it written, and read strictly, since it may come from anybody.

    JSON lines                                          YAML
    {"abduce_memory": 1, "version": 7}                  abduce_memory: 1
    {"entry": {"name": …, "text": …, …}}                entries: [{name: …, text: …, …}, …]
    {"change": {"version": 1, "action": …, …}}          history: [{version: 1, action: …, …}, …]

What a field says by default is left out. YAML of concepts alone (`memory/concepts/exchange.py`) is read too.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from ..memory.base import Change, Store, changed
from ..memory.checking import checked
from ..serving.entries import Entry, Evidence
from ..serving.errors import UsageError
from . import strict_yaml

MAX_YAML_BYTES = 4_000_000
MAX_LINE_BYTES = 2_000_000
MAX_LINES = 4_000_000
MAX_BYTES = 1_000_000_000
FORMAT = 1


@dataclass(frozen=True)
class Kept:
    """What a file holds; `history` is empty unless it was exported too."""

    entries: tuple[Entry, ...]
    history: tuple[Change, ...] = ()


# ---------------------------------------------------------------- written


def written(kept: Kept, *, form: str) -> Iterator[str]:
    """The file's text, in parts; `form` is "jsonl" or "yaml"."""
    entries = map(plain, kept.entries)
    history = map(_plain_change, kept.history)
    head = {"abduce_memory": FORMAT}
    if form == "jsonl":
        yield _line(head)
        yield from (_line({"entry": each}) for each in entries)
        yield from (_line({"change": each}) for each in history)
        return
    parts = {**head, "entries": [*entries], **({"history": [*history]} if kept.history else {})}
    yield yaml.dump(parts, Dumper=strict_yaml.Dumper, sort_keys=False, allow_unicode=True, width=100)


def plain(entry: Entry) -> dict[str, Any]:
    """An entry as data, without what is as by default."""
    found = {f.name: getattr(entry, f.name) for f in fields(Entry)}
    found["data"] = dict(entry.data)
    found["evidence"] = [_short(each) for each in entry.evidence]
    default = {f.name: f.default for f in fields(Entry)} | {"data": {}, "evidence": []}
    return {key: value for key, value in found.items() if key in ("name", "text") or value != default[key]}


def _short(told: Evidence) -> dict[str, Any]:
    found = {f.name: getattr(told, f.name) for f in fields(Evidence) if getattr(told, f.name) != f.default}
    return found | ({"read": list(told.read)} if told.read else {})


def _plain_change(change: Change) -> dict[str, Any]:
    told = {"version": change.version, "action": change.action, "reason": change.reason}
    return {**told, "entry": plain(change.entry)}


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------- read


def read(file: Path) -> Kept:
    """What a file holds. Raises UsageError, with the line or the entry, for anything else."""
    try:
        with file.open("rb") as opened:
            size = file.stat().st_size
            if size > MAX_BYTES:
                raise UsageError(
                    f"{file} has {size / 1e6:.0f} MB, more than {MAX_BYTES / 1e6:.0f}. Split it."
                )
            head = opened.read(64).lstrip(b"\xef\xbb\xbf \r\n\t")
            if head.startswith(b"{"):
                opened.seek(0)
                return _read_lines(file, opened)
        if size > MAX_YAML_BYTES:
            raise UsageError(
                f"{file} has {size / 1e6:.1f} MB, more than {MAX_YAML_BYTES / 1e6:g} MB of YAML. Export it "
                "as .jsonl."
            )
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    if not any(line.startswith("abduce_memory:") for line in text.splitlines()):
        return _read_concepts(file, text)
    said = strict_yaml.parse(text, file=str(file), max_values=MAX_YAML_BYTES).data
    _version_of(said, str(file))
    _known(said, ("abduce_memory", "entries", "history"), str(file))
    entries = [_entry(each, f"{file}: entry {i}") for i, each in _rows(said, "entries", file)]
    history = [_change(each, f"{file}: change {i}") for i, each in _rows(said, "history", file)]
    return Kept(_unique(entries, file), tuple(history))


def _read_concepts(file: Path, text: str) -> Kept:
    from ..memory.concepts import exchange

    try:
        found = exchange.load(text)
    except UsageError as error:
        told = "It should begin with abduce_memory: 1, as abduce memory export writes it, or hold concepts"
        raise UsageError(f"{file}: {error} {told}.") from None
    return Kept(found.library.entries())


def _read_lines(file: Path, opened: Any) -> Kept:
    entries: list[Entry] = []
    history: list[Change] = []
    for number in range(1, MAX_LINES + 2):
        raw = opened.readline(MAX_LINE_BYTES + 1)
        where = f"{file}:{number}"
        if not raw:
            return Kept(_unique(entries, file), tuple(history))
        if len(raw) > MAX_LINE_BYTES:
            raise UsageError(f"{where}: the line is longer than {MAX_LINE_BYTES:,} bytes.")
        if not raw.strip():
            continue
        row = _json(raw, where)
        if number == 1:
            _version_of(row, where)
        elif row.keys() == {"entry"}:
            entries.append(_entry(row["entry"], where))
        elif row.keys() == {"change"}:
            history.append(_change(row["change"], where))
        else:
            raise UsageError(
                f'{where}: a line is {{"entry": …}} or {{"change": …}}, got keys {sorted(row)!r:.80}.'
            )
    raise UsageError(f"{file} has more than {MAX_LINES:,} lines. Split it.")


def _json(raw: bytes, where: str) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items):
            raise ValueError("a key stands twice")
        return found

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    try:
        row = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=pairs, parse_constant=constant)
    except UnicodeDecodeError:
        raise UsageError(f"{where}: the line is not UTF-8 text.") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: the line is no JSON: {error}.") from None
    if not isinstance(row, dict):
        raise UsageError(f"{where}: a line is a JSON object, got {raw.decode()!r:.60}.")
    return row


def _version_of(said: Mapping[str, Any], where: str) -> None:
    if said.get("abduce_memory") != FORMAT:
        raise UsageError(
            f"{where}: this is no memory of format {FORMAT}: it does not begin with abduce_memory: {FORMAT}."
        )


def _rows(said: Mapping[str, Any], key: str, file: Path) -> Iterator[tuple[int, Any]]:
    rows = said.get(key, [])
    if not isinstance(rows, list):
        raise UsageError(f"{file}: {key} is a list, got {rows!r:.60}.")
    return enumerate(rows, 1)


def _unique(entries: Sequence[Entry], file: Path) -> tuple[Entry, ...]:
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise UsageError(f"{file}: the entry {entry.name!r:.80} stands twice. Keep one.")
        seen.add(entry.name)
    return tuple(entries)


def _change(said: Any, where: str) -> Change:
    if not isinstance(said, dict):
        raise UsageError(f"{where}: a change is a mapping, got {said!r:.60}.")
    _known(said, ("version", "action", "reason", "entry"), where)
    entry = _entry(said.get("entry"), where)
    version = _of(said, "version", int, where)
    return Change(
        version, entry.name, _of(said, "action", str, where), _of(said, "reason", str, where), entry
    )


def _entry(said: Any, where: str) -> Entry:
    if not isinstance(said, dict):
        raise UsageError(f"{where}: an entry is a mapping with name and text, got {said!r:.60}.")
    _known(said, tuple(f.name for f in fields(Entry)), where)
    for key in ("name", "text"):
        if key not in said:
            raise UsageError(f"{where}: an entry needs {key}.")
    texts = {
        key: _of(said, key, str, where) for key in ("name", "text", "kind", "domain", "status") if key in said
    }
    counts = {key: _of(said, key, int, where) for key in ("uses", "wins") if key in said}
    rows = _of(said, "evidence", list, where) if "evidence" in said else []
    evidence = tuple(_evidence(each, where) for each in rows)
    data = _of(said, "data", dict, where) if "data" in said else {}
    try:
        [entry] = checked([Entry(**texts, **counts, data=data, evidence=evidence)])
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return entry


def _evidence(said: Any, where: str) -> Evidence:
    if not isinstance(said, dict):
        raise UsageError(
            f"{where}: evidence is a mapping such as {{verifier: tests, confidence: 1}}, got {said!r:.60}."
        )
    _known(said, tuple(f.name for f in fields(Evidence)), where)
    texts = {key: _of(said, key, str, where) for key in ("run", "source", "verifier") if key in said}
    sure = float(_of(said, "confidence", (int, float), where)) if "confidence" in said else 0.0
    read = _of(said, "read", list, where) if "read" in said else []
    if not all(isinstance(name, str) for name in read):
        raise UsageError(f"{where}: read is a list of names, got {read!r:.60}.")
    return Evidence(**texts, confidence=sure, read=tuple(read))


def _of(said: Mapping[str, Any], key: str, kind: Any, where: str) -> Any:
    value = said.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = {str: "a text", int: "a whole number", list: "a list", dict: "a mapping"}
        raise UsageError(f"{where}: {key} is {names.get(kind, 'a number')}, got {value!r:.60}.")
    return value


def _known(said: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in said:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"{where}: there is no field {key!r:.40}.{hint} Known: {', '.join(known)}.")


# ---------------------------------------------------------------- restored


async def restore(store: Store, kept: Kept) -> int:
    """Write everything as it is, ungated: a memory of one's own. A history is written again, version by
    version, into an empty store. Returns the version."""
    if kept.history:
        if await store.version():
            raise UsageError(
                "A history can only be restored into a new memory: name one that does not exist."
            )
        await _replay(store, kept.history)
    if not kept.entries:
        return await store.version()
    return await store.write(kept.entries, reason="restored")


async def _replay(store: Store, history: Iterable[Change]) -> None:
    """Versions in order. What was removed, and what came back with it, is rolled back again."""
    states: list[dict[str, Entry]] = [{}]
    for _, group in groupby(sorted(history, key=lambda each: each.version), key=lambda each: each.version):
        changes = [*group]
        now = dict(states[-1])
        for change in changes:
            now.pop(change.name, None)
            if change.action != "removed":
                now[change.name] = change.entry
        action, reason = changes[0].action, changes[0].reason
        if action in ("removed", "rolled back"):
            past = [i for i, state in enumerate(states) if _same(state, now)]
            if not past:
                raise UsageError("This history takes back what it does not hold. Import it without --trust.")
            await store.rollback(past[-1], reason=reason)
        else:
            await store.write([change.entry for change in changes], action=action, reason=reason)
        states.append(now)


def _same(one: Mapping[str, Entry], other: Mapping[str, Entry]) -> bool:
    return one.keys() == other.keys() and not any(changed(one[name], other[name]) for name in one)
