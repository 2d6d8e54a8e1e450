"""What may be kept of an entry: the same for every store, so that each gives back what another would."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from math import isfinite
from typing import Any, get_args

from ..serving import redact
from ..serving.entries import Entry, Evidence, Status
from ..serving.errors import UsageError, demand

LONGEST_NAME = 200
LONGEST_TEXT = 100_000
LONGEST_DATA = 1_000_000


def checked(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The entries as a store keeps them: secrets replaced, and what no database holds (lone surrogates,
    U+0000). Raises UsageError for what cannot be kept, and for a name that is there twice."""
    kept = tuple(map(_checked, entries))
    names = [entry.name for entry in kept]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"The entry {twice!r:.80} is written twice at once. Write it once.")
    return kept


def check_action(action: str) -> None:
    """Raises UsageError for an action that a write must not have."""
    demand(bool(action) and action != "removed", "action", action, "write another, such as 'written'")


def clean(text: str) -> str:
    """A text as it is kept."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()
    return redact.known(text).replace("\0", "\ufffd")


def dump_entry(entry: Entry) -> str:
    """An entry as JSON."""
    return json.dumps(asdict(entry), ensure_ascii=False, separators=(",", ":"))


def load_entry(row: Mapping[str, Any]) -> Entry:
    """An entry from its fields, as JSON has them."""
    evidence = (Evidence(**each | {"read": tuple(each.get("read", ()))}) for each in row["evidence"])
    return Entry(**{**row, "evidence": tuple(evidence)})


def _checked(entry: Entry) -> Entry:
    name = clean(entry.name)
    if not name.strip() or len(name) > LONGEST_NAME:
        raise UsageError(f"An entry's name has 1 to {LONGEST_NAME} characters, got {name!r:.80}.")
    where = f"of the entry {name!r:.80}"
    demand(entry.status in get_args(Status), f"status {where}", entry.status, "write 'active' or 'retired'")
    demand(0 <= entry.wins <= entry.uses, f"wins {where}", entry.wins, f"write 0 to {entry.uses}, its uses")
    text = clean(entry.text)
    if len(text) > LONGEST_TEXT:
        raise UsageError(f"The text {where} has {len(text)} characters. Keep at most {LONGEST_TEXT}.")
    return replace(
        entry,
        name=name,
        text=text,
        kind=clean(entry.kind),
        domain=clean(entry.domain),
        data=_data(entry.data, where),
        evidence=tuple(_evidence(each, where) for each in entry.evidence),
    )


def _data(data: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    if not data:
        return {}
    try:
        text = json.dumps(dict(data), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"The data {where} cannot be kept: {error}. Write plain JSON.") from None
    if len(text) > LONGEST_DATA:
        raise UsageError(f"The data {where} take {len(text)} characters. Keep at most {LONGEST_DATA}.")
    kept: Mapping[str, Any] = _clean_data(json.loads(text))
    return kept


def _clean_data(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): _clean_data(part) for key, part in value.items()}
    return [_clean_data(part) for part in value] if isinstance(value, list) else value


def _evidence(evidence: Evidence, where: str) -> Evidence:
    sure = float(evidence.confidence)
    demand(isfinite(sure) and 0 <= sure <= 1, f"confidence {where}", sure, "write 0 to 1")
    run, source, read = clean(evidence.run), clean(evidence.source), tuple(map(clean, evidence.read))
    return Evidence(run, source, clean(evidence.verifier), sure, read)
