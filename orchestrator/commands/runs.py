"""`abduce runs`: list, show, go on with, fork and delete what is kept; `abduce resume` is one of them."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...serving.errors import UsageError
from ...serving.flow import Usage
from ...strategies.base import Result
from ..again import again, recipe_of, task_of
from ..retention import Keep, age_s, beyond
from ..runs import Reply, Run, Runs
from ..search_view import clean
from ..services import Human
from ..trace import NodeStarted, Observer
from ..trace import read as read_trace
from .show import show, table
from .solve import fetch_models, store, watched

_SHORT = 60


# ---------------------------------------------------------------- list


def listing(chosen: argparse.Namespace) -> int:
    """The newest runs, newest last."""
    kept = store()
    names = kept.names()
    if not names:
        print(f'No runs in {kept} yet. Start one: abduce solve "7 x 8 ="')
        return 0
    rows = table("run", "age", "state", "tokens", "solved by", "question", "answer")
    for name in names[-chosen.limit :]:
        cells = (name, *_listed(Run(kept.store, name)))
        rows.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in cells))
    show(rows)
    if (older := len(names) - chosen.limit) > 0:
        print(f"abduce: {older} older; see --limit", file=sys.stderr)
    return 0


def _listed(run: Run) -> tuple[str, ...]:
    try:
        record, result = run.record, run.result
        spent = _tokens(_usage(run, result))
        state = _state(run, result)
    except UsageError:
        return (_age(run), "damaged", "", "", "", "")
    found = None if result is None else result.get("answer")
    answer = "" if found is None else _short(str(found))
    return _age(run), state, spent, _solver(record), _short(_question(record)), answer


def _state(run: Run, result: Mapping[str, Any] | None) -> str:
    if run.is_held:
        return "running"
    if result is None:
        return "unfinished"
    return "complete" if result.get("complete") else "incomplete"


def _usage(run: Run, result: Mapping[str, Any] | None) -> Usage:
    """What it consumed; of an unfinished run, what its replies say."""
    if result is not None and isinstance(result.get("usage"), Mapping):
        return Usage(**result["usage"])
    return sum((reply.usage for reply in run.replies()), Usage())


def _tokens(usage: Usage) -> str:
    return f"{usage.input_tokens + usage.output_tokens:,}"


def _solver(record: Mapping[str, Any]) -> str:
    recipe = record.get("recipe")
    if not isinstance(recipe, Mapping):
        return clean(str(record.get("strategy", "")))
    strategy = recipe.get("strategy")
    name = strategy.get("name", "") if isinstance(strategy, Mapping) else strategy
    return clean(str(name or recipe.get("name", "")))


def _question(record: Mapping[str, Any]) -> str:
    task = record.get("task")
    return str(task.get("question", "")) if isinstance(task, Mapping) else ""


def _age(run: Run) -> str:
    seconds = age_s(run)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


# ---------------------------------------------------------------- show


def showing(chosen: argparse.Namespace) -> int:
    """All that is known of one run."""
    kept = store()
    run = kept.open(chosen.run)
    if chosen.replies:
        return _show_replies(run)
    record, result = run.record, run.result
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in _facts(kept, run, record, result):
        if value:
            facts.add_row(Text(name, style="dim"), Text(value))
    show(facts)
    return 0


def _facts(
    kept: Runs, run: Run, record: Mapping[str, Any], result: Mapping[str, Any] | None
) -> Iterator[tuple[str, str]]:
    usage, replies = _usage(run, result), run.replies()
    yield "run", run.id
    yield "state", f"{_state(run, result)}, started {_age(run)} ago with abduce {record.get('version', '?')}"
    yield "question", _short(_question(record), 300)
    if result is not None:
        yield "answer", _short(str(result.get("answer")), 300)
        yield "stopped", clean(str((result.get("diagnostics") or {}).get("stopped", "")))
    yield "seed", str(record.get("seed", ""))
    if "forked_from" in record:
        changes = f", with {' '.join(record['changes'])}" if record.get("changes") else ""
        yield "forked from", f"{record['forked_from']} after {record['keep']} replies{changes}"
    yield "forks", ", ".join(_forks(kept, run))
    yield "usage", _spent(usage)
    yield "replies", _told_replies(run, replies)
    yield "visits", ", ".join(f"{i} {name}" for i, name in enumerate(_visits(run)))
    yield "kept in", f"{_places(kept, run)} ({_size(run.store.n_bytes(run.id))})"
    yield "settings", _settings(record)


def _places(kept: Runs, run: Run) -> str:
    here = str(run.folder)
    return here if str(kept) == str(kept.folder) else f"{kept}, its trace in {here}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.0f} KB"


def _spent(usage: Usage) -> str:
    parts = [f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out", f"{usage.calls:,} calls"]
    parts += [f"{usage.reward_passes:,} reward passes"] if usage.reward_passes else []
    parts += [f"{usage.tool_calls:,} tool calls"] if usage.tool_calls else []
    parts += [f"{usage.cost_usd:.4f} USD"] if usage.cost_usd else []
    return ", ".join(parts)


def _told_replies(run: Run, replies: list[Reply]) -> str:
    if not replies:
        return "none yet"
    last = replies[-1]
    inherited = sum(reply.inherited for reply in replies)
    own = f" ({inherited} inherited)" if inherited else ""
    return (
        f"{len(replies)}{own}, the last after {last.arrived:.1f} s, to request "
        f"{'.'.join(map(str, last.path))}; numbered by: abduce runs show {run.id} --replies"
    )


def _settings(record: Mapping[str, Any]) -> str:
    try:
        return recipe_of(record).yaml().rstrip()
    except UsageError:  # of Python objects, or of another version
        from ..codec import dumps

        words = {key: value for key, value in record.items() if key not in ("task", "run", "version", "seed")}
        return dumps(words).decode()


def _forks(kept: Runs, run: Run) -> Iterator[str]:
    for name in kept.names():
        if name > run.id:  # a fork is younger
            try:
                if Run(kept.store, name).record.get("forked_from") == run.id:
                    yield name
            except UsageError:
                continue


def _visits(run: Run) -> list[str]:
    """The nodes that were entered, in order, as the trace tells; none of a run that is one search."""
    if not run.trace.exists():
        return []
    events = read_trace(run.trace)
    started = {event["path"][0]: str(event["node"]) for event in events if event["event"] == NodeStarted.kind}
    return [started[visit] for visit in sorted(started)]


def _show_replies(run: Run) -> int:
    """The replies as they arrived: where a fork can begin."""
    rows = table("step", "at", "to", "tokens", "reply")
    for number, reply in enumerate(run.replies(), 1):
        tokens = f"{reply.usage.output_tokens:,}" if reply.usage.output_tokens else ""
        to = ".".join(map(str, reply.path)) + (" *" if reply.inherited else "")
        rows.add_row(*map(Text, (str(number), f"{reply.arrived:.2f} s", to, tokens, _said(reply.reply))))
    show(rows)
    print(f"abduce: fork after one of them with: abduce runs fork {run.id} --at STEP", file=sys.stderr)
    return 0


def _said(reply: Any) -> str:
    """The beginning of a reply, whatever it is."""
    if isinstance(reply, list) and reply and isinstance(reply[0], Mapping):
        more = f" (+{len(reply) - 1})" if len(reply) > 1 else ""
        return _short(str(reply[0].get("text", "")).strip()) + more
    return _short(str(reply))


# ---------------------------------------------------------------- resume, fork


def resume(chosen: argparse.Namespace) -> int:
    """Go on with a run: completed calls are replayed, not repeated."""
    return _go_on(store().open(chosen.run), chosen)


def fork(chosen: argparse.Namespace) -> int:
    """A new run that begins as another one did, and goes on with other settings."""
    kept = store()
    run = kept.open(chosen.run)
    made = kept.fork(run, keep=_step(run, chosen.at), changes=chosen.settings)
    if chosen.no_run:
        print(made.id)
        print(f"abduce: go on with: abduce resume {made.id}", file=sys.stderr)
        return 0
    return _go_on(made, chosen)


def _step(run: Run, text: str) -> int:
    """How many replies to keep."""
    replies = run.replies()
    kind, _, number = text.rpartition(":")
    if not number.isdecimal() or not number.isascii() or kind not in ("", "visit"):
        raise UsageError(
            f"--at {text}: write the number of a reply, as in `abduce runs show {run.id} --replies` numbers "
            "them, or visit:N for what was before the N-th visit of a node."
        )
    if not kind:
        return int(number)
    visits = _visits(run)
    if int(number) >= len(visits):
        told = ", ".join(f"{i} {name}" for i, name in enumerate(visits)) or "none: it is one search"
        raise UsageError(f"--at {text}: run {run.id} has no such visit. Visits: {told}.")
    return sum(reply.path < (int(number),) for reply in replies)


def _go_on(run: Run, chosen: argparse.Namespace) -> int:
    record = run.record
    task, seed = task_of(record)
    pipeline = again(record)
    fetch_models(pipeline)

    def search(observers: Iterable[Observer], human: Human) -> Result:
        return pipeline.solve(task, seed=seed, observers=observers, human=human, run=run)

    return watched(search, pipeline.budget, chosen)


# ---------------------------------------------------------------- delete


def delete(chosen: argparse.Namespace) -> int:
    """Delete runs by name, or all finished ones beyond limits."""
    kept = store()
    keep = _limits(chosen)
    if bool(chosen.runs) == (keep != Keep()):
        raise UsageError(
            "Name the runs to delete, or give limits: abduce runs delete --keep 200 --older-than 30d"
        )
    going = [kept.open(name) for name in chosen.runs] if chosen.runs else list(beyond(kept, keep))
    if not going:
        print("abduce: nothing to delete", file=sys.stderr)
        return 0
    unfinished = [run.id for run in going if kept.store.result(run.id) is None]
    if not chosen.yes and not _confirmed(going, unfinished):
        print("abduce: nothing was deleted", file=sys.stderr)
        return 1
    failed = 0
    for run in going:
        try:
            kept.delete(run)
        except UsageError as error:
            print(f"abduce: {error}", file=sys.stderr)
            failed += 1
    print(f"abduce: deleted {len(going) - failed} of {len(going)}", file=sys.stderr)
    return 2 if failed else 0


def _limits(chosen: argparse.Namespace) -> Keep:
    days = None if chosen.older_than is None else Keep.parse(chosen.older_than).days
    if chosen.older_than is not None and days is None:
        raise UsageError(f"--older-than {chosen.older_than}: write an age such as 30d, 12h or 2w.")
    return Keep(chosen.keep, days, chosen.max_mb)


def _confirmed(going: list[Run], unfinished: list[str]) -> bool:
    console = Console(stderr=True, highlight=False)
    if not sys.stdin.isatty():
        raise UsageError("Nothing is deleted without being asked: add --yes.")
    names = ", ".join(run.id for run in going[:5]) + (" …" if len(going) > 5 else "")
    console.print(f"{len(going)} to delete: {names}", markup=False, soft_wrap=True)
    if unfinished:
        console.print(f"{len(unfinished)} unfinished: {', '.join(unfinished[:5])}", markup=False)
    return input("Delete for good? [y/N] ").strip().lower() in ("y", "yes")


def _short(text: str, length: int = _SHORT) -> str:
    text = clean(text)
    return text if len(text) <= length else text[: length - 1] + "…"
