"""`abduce memory`: look into a memory, look after it, carry it elsewhere. The REPL's `memory` does the same.

Each verb is a function of a store and of what was typed, and returns what is shown.
"""

import argparse
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import RenderableType
from rich.text import Text

from ...memory import graph
from ...memory.audit import Lift, audit, lift
from ...memory.base import Store
from ...memory.decay import Decay
from ...memory.gate import Gate, Verdict, admit
from ...serving import settings
from ...serving.entries import Entry, Evidence, Status
from ...serving.errors import UnknownName, UsageError
from .. import memory_files as files
from .. import memory_view as view
from ..background import wait_for
from .show import show


@dataclass(frozen=True)
class Shown:
    """What a verb shows: for people, as data, and the exit code."""

    parts: Sequence[RenderableType]
    data: Any = None
    code: int = 0


Verb: TypeAlias = Callable[[Store, argparse.Namespace], Awaitable[Shown]]


def run(chosen: argparse.Namespace) -> int:
    """Carry out a verb on the store that was named, or on the only one there is."""
    store = _store(chosen)
    shown = wait_for(carried_out(store, chosen))
    if getattr(chosen, "json", False):
        print(as_json(shown))
        return shown.code
    for part in shown.parts:
        show(part)
    return shown.code


def as_json(shown: Shown) -> str:
    """The data of what is shown."""
    return json.dumps(shown.data, ensure_ascii=False, indent=2, default=str)


async def carried_out(store: Store, chosen: argparse.Namespace) -> Shown:
    """What the verb shows. The store is closed after it."""
    try:
        return await VERBS[chosen.verb](store, chosen)
    finally:
        await store.close()


def _store(chosen: argparse.Namespace) -> Store:
    """By name, by file, or by URL. Only an import makes a new one."""
    from ...memory.registry import file_of, open_store
    from ...memory.sqlite import SqliteStore

    folder = settings.home() / "memory"
    known = sorted(
        file.name for file in folder.glob("*") if file.suffix not in ("-wal", "-shm") and file.is_file()
    )
    known = [name for name in known if not name.endswith(("-wal", "-shm", "-journal", ".lock"))]
    where = chosen.store
    if where is None:
        if len(known) == 1:
            return open_store(known[0])
        if not known:
            raise UsageError(
                "There is no memory yet. A recipe with memory: {store: concepts.db} makes one; so does "
                "abduce memory import FILE --store concepts.db."
            )
        raise UsageError(f"Which memory? Write e.g. --store {known[0]}. Known: {', '.join(known)}.")
    if "://" in where:
        return open_store(where)
    named = "/" not in where and not where.startswith(".") and not Path(where).exists()
    path = file_of(where) if named else Path(where).expanduser()
    if not path.exists() and chosen.verb != "import":
        raise UnknownName("memory", where, known)
    return open_store(where) if named else SqliteStore(path)


# ---------------------------------------------------------------- looking


async def _list(store: Store, chosen: argparse.Namespace) -> Shown:
    version = await store.version()
    if chosen.at is not None and chosen.at > version:
        raise UsageError(f"--at {chosen.at}: the newest version is {version}.")
    every = await store.everything(kinds=chosen.kind, at=chosen.at)
    entries = [e for e in every if chosen.retired or e.status == "active"]
    first = entries[: chosen.limit]
    retired = sum(e.status == "retired" for e in every)
    told = f"version {version if chosen.at is None else chosen.at}: {len(every) - retired} active"
    told += f", {retired} retired{'' if chosen.retired else ' (--retired shows them)'}" if retired else ""
    told += f"; the first {len(first)}, see --limit" if len(first) < len(entries) else ""
    parts: list[RenderableType] = [view.listed(first)] if first else []
    return Shown([*parts, Text(told, style="dim")], [files.plain(e) for e in first])


async def _show(store: Store, chosen: argparse.Namespace) -> Shown:
    entry = await _named(store, chosen.name)
    history = await store.history(entry.name) if chosen.history else ()
    data = files.plain(entry) | ({"history": [asdict(each) for each in history]} if history else {})
    return Shown([view.card(entry, history)], data)


async def _search(store: Store, chosen: argparse.Namespace) -> Shown:
    query = " ".join(chosen.query)
    if chosen.graph:
        found = await graph.search(store, query, chosen.k, kinds=chosen.kind)
    else:
        found = await store.search(query, chosen.k, kinds=chosen.kind)
    data = [{"score": m.score, "why": m.why, "entry": files.plain(m.entry)} for m in found]
    return Shown([view.found(found)], data)


async def _audit(store: Store, chosen: argparse.Namespace) -> Shown:
    """Exit code 1 if something is wrong."""
    measured = _lift(chosen)
    base = chosen.base if chosen.base is not None or measured is None else measured.without
    entries = await store.everything()
    findings = audit(entries, rule=_rule(base))
    n = sum(entry.status == "active" for entry in entries)
    parts: list[RenderableType] = [view.audited(findings, n)]
    parts += [view.lifted(measured)] if measured else []
    harm = measured is not None and measured.high < 0
    data = {"findings": [asdict(each) for each in findings], "lift": measured and asdict(measured)}
    wrong = any(each.fault != "similar" for each in findings)
    return Shown(parts, data, int(wrong or harm))


def _rule(base: float | None) -> Decay:
    return Decay(base if base is None else min(base, 0.999))


def _lift(chosen: argparse.Namespace) -> Lift | None:
    given = [chosen.with_memory, chosen.without]
    if given == [None, None]:
        return None
    if None in given:
        raise UsageError("The lift needs both: --with FILE --without FILE, as abduce eval --out writes them.")
    (data, with_memory), (other, without) = map(_outcomes, map(Path, given))
    if data != other:
        raise UsageError(
            f"{given[0]} and {given[1]} are of different problems: evaluate both on the same file."
        )
    return lift(with_memory, without)


def _outcomes(file: Path) -> tuple[str, dict[str, float]]:
    """The problems' digest, and which were solved, of a file of `abduce eval`."""
    try:
        head, *rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        return str(head["eval"]["sha256"]), {str(row["id"]): float(row["correct"] is True) for row in rows}
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{file} is no file of results. abduce eval --out FILE writes one.") from None


async def _diff(store: Store, chosen: argparse.Namespace) -> Shown:
    newest = await store.version()
    old = newest - 1 if chosen.old is None else chosen.old
    new = newest if chosen.new is None else chosen.new
    for each in (old, new):
        if not 0 <= each <= newest:
            raise UsageError(f"There is no version {each}. The memory has 0 to {newest}.")
    one, other = [{e.name: e for e in await store.everything(at=at)} for at in (old, new)]
    told = Text(f"version {old} to {new}", style="dim")
    return Shown([told, view.differences(one, other)])


# ---------------------------------------------------------------- files


async def _export(store: Store, chosen: argparse.Namespace) -> Shown:
    kept = files.Kept(await store.everything(), await store.history() if chosen.history else ())
    name = chosen.out or ""
    form = chosen.format or ("yaml" if name.endswith((".yaml", ".yml")) else "jsonl")
    if not name:
        for part in files.written(kept, form=form):
            sys.stdout.write(part)
        return Shown([])
    _write(Path(name), files.written(kept, form=form))
    history = f" and {len(kept.history)} changes" if kept.history else ""
    return Shown([Text(f"{len(kept.entries)} entries{history} written to {name}", style="dim")])


def _write(file: Path, parts: Iterable[str]) -> None:
    try:
        with file.open("w", encoding="utf-8", newline="\n") as out:
            out.writelines(parts)
    except OSError as error:
        raise UsageError(f"Cannot write {file}: {error.strerror}.") from None


async def _import(store: Store, chosen: argparse.Namespace) -> Shown:
    file = Path(chosen.file)
    kept = files.read(file)
    if chosen.trust:
        if chosen.dry_run:
            return Shown([Text(f"{len(kept.entries)} entries would be written as they are")])
        version = await files.restore(store, kept)
        return Shown(
            [Text(f"{len(kept.entries)} entries written as they are: version {version}", style="dim")]
        )
    entries = [_foreign(entry, file.name, vouch=chosen.vouch) for entry in kept.entries]
    target: Store = store
    if chosen.dry_run:
        from ...memory.in_memory import InMemory

        target = InMemory()
        await target.write(await store.everything(), reason="copy")
    verdicts: list[Verdict] = []
    for batch in _batches(entries):
        verdicts += await admit(target, batch, reason=f"imported from {file.name}")
    refused = sum(each.action == "refused" for each in verdicts)
    told = f"{len(verdicts) - refused} of {len(verdicts)} entries passed the gate"
    told += ", nothing was written (--dry-run)" if chosen.dry_run else f"; version {await store.version()}"
    unverified = any("no verifier" in each.reason or "no evidence" in each.reason for each in verdicts)
    told += (
        ". --vouch believes those without a verifier on your word" if unverified and not chosen.vouch else ""
    )
    data = [{"name": each.name, "action": each.action, "reason": each.reason} for each in verdicts]
    return Shown([view.judged(verdicts), Text(told, style="dim")], data, int(refused == len(verdicts) > 0))


def _batches(entries: Sequence[Entry]) -> list[tuple[Entry, ...]]:
    return [tuple(entries[i : i + _BATCH]) for i in range(0, len(entries), _BATCH)]


def _foreign(entry: Entry, file: str, *, vouch: bool) -> Entry:
    """An entry of a file from anybody: its counts say nothing here, its evidence is what it claims, and first
    stands where it came from."""
    run = f"import of {file}"
    if vouch and not any(map(Gate().sufficient, entry.evidence)):
        origin = Evidence(run, verifier="user", confidence=1.0)
    else:
        origin = Evidence(run, verifier="import")  # which suffices for nothing
    return replace(entry, uses=0, wins=0, evidence=(origin, *entry.evidence))


# ---------------------------------------------------------------- looking after


async def _forget(store: Store, chosen: argparse.Namespace) -> Shown:
    """For good, history included."""
    names = [entry.name for entry in [await _named(store, name, exact=True) for name in chosen.names]]
    if not chosen.yes and not _confirmed(names):
        return Shown([Text("nothing was forgotten", style="dim")], code=1)
    n = await store.forget(names)
    return Shown([Text(f"{n} forgotten, with their history", style="dim")])


def _confirmed(names: Sequence[str]) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(
            "Nothing is forgotten without being asked: add --yes. To keep it out of sight: retire."
        )
    told = ", ".join(view.short(name, 60) for name in names)
    return input(f"Forget {told} for good, with the history? [y/N] ").strip().lower() in ("y", "yes")


async def _retire(store: Store, chosen: argparse.Namespace) -> Shown:
    """No longer found, but kept; or active again."""
    if bool(chosen.names) == chosen.unhelpful:
        raise UsageError("Name the entries to retire, or write --unhelpful for those that do not help.")
    if chosen.unhelpful:
        if chosen.undo:
            raise UsageError("--undo is for entries that are named.")
        going: Sequence[Entry] = _rule(chosen.base).going(await store.everything())
    else:
        going = [await _named(store, name, exact=True) for name in chosen.names]
    status: Status = "active" if chosen.undo else "retired"
    action = "revived" if chosen.undo else "retired"
    going = [entry for entry in going if entry.status != status]
    if not going:
        return Shown([Text(f"nothing to be {action}", style="dim")])
    changed = [replace(entry, status=status) for entry in going]
    reason = chosen.reason or ("unhelpful" if chosen.unhelpful else "by hand")
    version = await store.write(changed, action=action, reason=reason)
    names = ", ".join(view.short(entry.name, 60) for entry in going)
    return Shown([Text(f"{action}: {names}; version {version}", style="dim")])


async def _rollback(store: Store, chosen: argparse.Namespace) -> Shown:
    before = await store.version()
    version = await store.rollback(
        chosen.version, reason=chosen.reason or f"back to version {chosen.version}"
    )
    told = f"as in version {chosen.version}; this is version {version}, rollback {before} takes it back"
    return Shown([Text(told if version != before else "no difference", style="dim")])


async def _named(store: Store, name: str, *, exact: bool = False) -> Entry:
    """An entry by its name, or by the beginning of it if there is one such."""
    if whole := await store.get([name]):
        return whole[0]
    names = [entry.name for entry in await store.everything()]
    begun = [each for each in names if each.startswith(name)]
    if len(begun) == 1 and not exact:
        return (await store.get(begun))[0]
    if 1 < len(begun) <= _MOST_NAMES:
        raise UsageError(f"{name!r} begins {len(begun)} names: {', '.join(map(repr, begun))}.")
    if len(names) <= _MOST_NAMES:
        raise UnknownName("entry", name, names)
    raise UsageError(f"No entry named {name!r}. Find it with: abduce memory search {name}")


VERBS: Mapping[str, Verb] = {
    "list": _list,
    "show": _show,
    "search": _search,
    "audit": _audit,
    "export": _export,
    "import": _import,
    "forget": _forget,
    "diff": _diff,
    "retire": _retire,
    "rollback": _rollback,
}
_MOST_NAMES = 20
_BATCH = 500
