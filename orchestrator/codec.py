"""Requests and replies as JSON and back: what the journal stores and the trace shows.

A dataclass becomes an object of its fields. Coming back, a reply is built by the type of its request
(table in `serving/flow.py`); nothing else is ever decoded into an object, so a journal from elsewhere
can do no more than hold odd text. JSON has neither infinities nor NaN, and UTF-8 no lone surrogates: the
trace shows null and "?", replies hold them as text and as escapes, since a replayed reply must be the same.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import orjson

from ..memory.checking import load_entry
from ..serving.entries import Match
from ..serving.errors import BudgetExhausted, JournalError
from ..serving.flow import (
    Ask,
    CallTool,
    Completion,
    Failure,
    Generate,
    Hidden,
    LogLikelihood,
    LogProb,
    Rate,
    Recall,
    Remember,
    ToolResult,
)


def dumps(value: Any) -> bytes:
    """One line of JSON."""
    try:
        return orjson.dumps(value, default=_plain)
    except TypeError:  # keys that are no text, or what JSON cannot hold
        return orjson.dumps(_mended(value), default=_plain, option=orjson.OPT_NON_STR_KEYS)


def dump_reply(reply: Any) -> bytes:
    """A reply; failures and refusals are marked, since any request may get one."""
    if type(reply) is Failure:
        return _dump_exact({"failure": [reply.kind, reply.message]})
    if type(reply) is BudgetExhausted:
        return _dump_exact({"exhausted": [reply.resource, reply.limit]})
    return _dump_exact({"reply": reply})


def load_reply(request: type, text: bytes) -> Any:
    """The reply to a request of this type. Raises JournalError if `dump_reply` cannot have made the text."""
    try:
        loads = json.loads if _ESCAPE in text else orjson.loads
        [(mark, value)] = loads(text).items()
        if mark == "failure":
            return Failure(*value)
        if mark == "exhausted":
            return BudgetExhausted(*value)
        return _REPLIES[request](value)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise JournalError(f"The journal holds a reply that cannot be read: {error}") from error


def refusal(text: bytes) -> BudgetExhausted | None:
    """What `dump_reply` wrote, if it is a refusal."""
    if not text.startswith(b'{"exhausted":'):
        return None
    return BudgetExhausted(*orjson.loads(text)["exhausted"])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return _ADDRESS.sub("", str(value))


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # differs from run to run


def _dump_exact(value: Any) -> bytes:
    try:
        text = orjson.dumps(value, default=_plain)
    except TypeError:  # lone surrogates, which only this one escapes
        return json.dumps(_exact(value), default=_plain).encode()
    return orjson.dumps(_exact(value), default=_plain) if b"null" in text else text


_ESCAPE = b"\\ud"  # begins a surrogate


def _exact(value: Any) -> Any:
    """With numbers that JSON lacks as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return _mapped(_exact, value)


def _mended(value: Any) -> Any:
    """With what JSON cannot hold replaced: integers beyond 64 bits by text, lone surrogates by "?"."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, int) and value.bit_length() > 63:
        return str(value)
    return _mapped(_mended, value)


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """A value of plain data with `change` applied to its parts."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: change(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {change(key): change(part) for key, part in value.items()}
    return [change(part) for part in value] if isinstance(value, (tuple, list)) else value


def _numbers(values: list[float | str]) -> tuple[float, ...]:
    return tuple(map(float, values))


def _completion(row: dict[str, Any]) -> Completion:
    row = row | {"ids": tuple(row["ids"]), "logprobs": _numbers(row["logprobs"])}
    row["top_logprobs"] = tuple(map(_numbers, row["top_logprobs"]))
    return Completion(**row | {"log_weight": float(row["log_weight"])})


def _match(row: dict[str, Any]) -> Match:
    return Match(load_entry(row["entry"]), float(row["score"]), row["why"])


_REPLIES: dict[type, Callable[[Any], Any]] = {
    Generate: lambda rows: tuple(map(_completion, rows)),
    LogProb: lambda row: LogLikelihood(_numbers(row["logprobs"])),
    Hidden: _numbers,
    Rate: float,
    CallTool: lambda row: ToolResult(**row),
    Recall: lambda rows: tuple(map(_match, rows)),
    Remember: int,
    Ask: str,
    tuple: lambda row: (tuple(row[0]), tuple(map(tuple, row[1]))),  # of a race: see `Driver._race`
}
