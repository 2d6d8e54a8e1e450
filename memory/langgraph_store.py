"""A memory as LangGraph's `BaseStore`, for graphs compiled with `store=` and for libraries that use one.

    namespace, key ──► an entry of kind "item"          put ──► a version          delete ──► retired

What LangGraph deletes is no longer there for it, but stays in the memory's history; `Store.forget` erases. An
item put with `index=False` has the kind "item, not searched". Importing this file imports LangGraph.
"""

import asyncio
import json
import operator
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    get_text_at_path,
    tokenize_path,
)

from ..serving.entries import Entry
from ..serving.errors import UnknownName
from .base import Store
from .checking import LONGEST_NAME, clean

KIND, SILENT = "item", "item, not searched"


class LangGraphStore(BaseStore):
    """Items in a memory of ours. A search with a query ranks by words and, if the memory has an embedder, by
    vectors; items that match neither are not found. `ttl` is not supported."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """`abatch`, in a loop of its own."""
        with ThreadPoolExecutor(1, "abduce-langgraph-store") as thread:
            return thread.submit(asyncio.run, self.abatch(ops)).result()

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations: all reads see what was there before the writes, which share a version."""
        results: list[Result] = []
        puts: dict[str, PutOp] = {}
        for op in ops:
            if isinstance(op, GetOp):
                results.append(_item(await self._get(_name(op.namespace, op.key))))
            elif isinstance(op, SearchOp):
                results.append(await self._search(op))
            elif isinstance(op, ListNamespacesOp):
                results.append(await self._namespaces(op))
            else:
                puts[_name(op.namespace, op.key)] = op
                results.append(None)
        if puts:
            await self._put(puts)
        return results

    async def _get(self, name: str) -> Entry | None:
        return next((e for e in await self._store.get([name]) if e.status == "active"), None)

    async def _put(self, puts: Mapping[str, PutOp]) -> None:
        old = {entry.name: entry for entry in await self._store.get(list(puts))}
        entries = []
        for name, op in puts.items():
            there = old.get(name)
            if op.value is not None:
                born = there.data["created_at"] if there is not None and there.status == "active" else _now()
                entries.append(_entry(name, op, op.value, born))
            elif there is not None:
                entries.append(replace(there, status="retired"))
        await self._store.write(entries, reason="LangGraph")

    async def _search(self, op: SearchOp) -> list[SearchItem]:
        end = op.offset + op.limit
        if not op.query:
            entries = await self._items()
            found: list[tuple[Entry, float | None]] = [(entry, None) for entry in entries if _fits(entry, op)]
        else:
            k = 4 * end
            while True:  # until there are enough in the namespace, or no more at all
                matches = await self._store.search(op.query, k, kinds=(KIND,))
                found = [(match.entry, match.score) for match in matches if _fits(match.entry, op)]
                if len(found) >= end or len(matches) < k:
                    break
                k *= 4
        return [SearchItem(**_fields(entry), score=score) for entry, score in found[op.offset : end]]

    async def _items(self) -> list[Entry]:
        found = await self._store.everything(kinds=(KIND, SILENT))
        return sorted((e for e in found if e.status == "active"), key=lambda e: str(e.data["created_at"]))

    async def _namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        spaces = {tuple(entry.data["namespace"]) for entry in await self._items()}
        able = {space for space in spaces if all(_matches(space, c) for c in op.match_conditions or ())}
        cut = sorted({space[: op.max_depth] for space in able})
        return cut[op.offset : op.offset + op.limit]


def _name(namespace: tuple[str, ...], key: str) -> str:
    """The entry's name, which tells one item from all others: a part of a namespace holds no dot."""
    name = clean(f"{'.'.join(namespace)}/{key}")
    if len(name) <= LONGEST_NAME and "\ufffd" not in name:
        return name
    digest = sha256(json.dumps([namespace, key]).encode()).hexdigest()[:16]
    return f"{name[: LONGEST_NAME - 17]}-{digest}"


def _entry(name: str, op: PutOp, value: Mapping[str, Any], born: str) -> Entry:
    paths = op.index if isinstance(op.index, list) else []
    texts = [text for path in paths for text in get_text_at_path(value, tokenize_path(path))]
    text = "\n".join(texts if paths else _texts(value))[:100_000]
    data = {"namespace": list(op.namespace), "key": op.key, "value": dict(value)}
    data |= {"created_at": born, "updated_at": _now()}
    return Entry(name, text, SILENT if op.index is False else KIND, data, domain=".".join(op.namespace))


def _texts(value: Any) -> Iterable[str]:
    """What can be read in a value."""
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
    elif value is not None:
        yield str(value)


def _fields(entry: Entry) -> dict[str, Any]:
    said = dict(entry.data)
    times = {name: datetime.fromisoformat(said[name]) for name in ("created_at", "updated_at")}
    return {"namespace": tuple(said["namespace"]), "key": said["key"], "value": said["value"], **times}


def _item(entry: Entry | None) -> Item | None:
    return None if entry is None else Item(**_fields(entry))


def _fits(entry: Entry, op: SearchOp) -> bool:
    space, value = tuple(entry.data["namespace"]), entry.data["value"]
    wanted = (op.filter or {}).items()
    return space[: len(op.namespace_prefix)] == tuple(op.namespace_prefix) and all(
        _holds(value.get(key), condition) for key, condition in wanted
    )


def _holds(value: Any, condition: Any) -> bool:
    """Whether a value meets a filter's condition: signs such as `$gte`, parts of a mapping, or equality."""
    if not isinstance(condition, dict):
        return bool(value == condition)
    if any(sign.startswith("$") for sign in condition):
        return all(_compared(value, sign, other) for sign, other in condition.items())
    return isinstance(value, dict) and all(_holds(value.get(key), part) for key, part in condition.items())


def _compared(value: Any, sign: str, other: Any) -> bool:
    if sign in ("$eq", "$ne"):
        return bool((value == other) is (sign == "$eq"))
    if sign not in _ORDER:
        raise UnknownName("operator of a filter", sign, ["$eq", "$ne", *_ORDER])
    try:
        return bool(_ORDER[sign](float(value), float(other)))
    except (TypeError, ValueError):  # no numbers
        return False


_ORDER = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}


def _matches(space: tuple[str, ...], condition: MatchCondition) -> bool:
    path = tuple(condition.path)
    part = space[: len(path)] if condition.match_type == "prefix" else space[len(space) - len(path) :]
    return len(path) <= len(space) and all(want in ("*", got) for want, got in zip(path, part, strict=True))


def _now() -> str:
    return datetime.now(UTC).isoformat()
