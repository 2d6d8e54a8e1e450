"""What each key has spent and may still spend, in all and today (UTC).

A request reserves its worst case before it starts and settles what it used at its end. It starts while
anything is left beside all that is reserved; so, however many run at once, a key overshoots by one request at
most. A request that nothing bounds reserves all that is left, and the key's next one has to wait for its end.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

import orjson

from ...serving.flow import Usage
from .errors import ApiError
from .keys import Allowance, Key

_RESOURCES = ("tokens", "usd")
_DAY_S = 24 * 60 * 60


@dataclass
class Account:
    """One key's account."""

    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_RESOURCES, 0.0))
    today: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_RESOURCES, 0.0))
    day: str = ""
    reserved: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_RESOURCES, 0.0))


@dataclass
class Hold:
    """What a request has `spent` when it ends, however it ends."""

    spent: Usage = field(default_factory=Usage)


class Accounts:
    """All accounts. With a `file` what was spent outlives the process."""

    def __init__(self, file: File | None = None) -> None:
        self._file = file
        self._changed = False
        self._accounts: dict[str, Account] = {}
        for name, row in _stored(file).items():
            self._accounts[name] = Account(**row)

    def account(self, name: str) -> Account:
        """The account of a key, today's part of it emptied if the day is new."""
        account = self._accounts.setdefault(name, Account())
        today = time.strftime("%Y-%m-%d", time.gmtime())
        if account.day != today:
            account.day, account.today = today, dict.fromkeys(_RESOURCES, 0.0)
        return account

    @contextmanager
    def hold(self, key: Key | None, tokens: float | None, usd: float | None, hold: Hold) -> Iterator[None]:
        """Reserve the worst case of a request (None: unbounded), and settle what `hold` says in the end.
        Raises ApiError 429 if nothing is left."""
        if key is None:
            yield
            return
        account = self.account(key.name)
        reserved: dict[str, float] = {}
        for name, worst in zip(_RESOURCES, (tokens, usd), strict=True):
            left, limit = _left(account, key.allowance, name)
            if left is not None:
                _admit(key, account, name, left, limit)
                reserved[name] = max(0.0, left - account.reserved[name]) if worst is None else worst
        for name, amount in reserved.items():
            account.reserved[name] += amount
        try:
            yield
        finally:
            for name, amount in reserved.items():
                account.reserved[name] -= amount
            account = self.account(key.name)
            for name, amount in {"tokens": float(hold.spent.tokens), "usd": hold.spent.cost_usd}.items():
                account.spent[name] += amount
                account.today[name] += amount
            self._changed = True

    def save(self) -> None:
        """Write what was spent, if that changed; the old file stays until the new one is whole."""
        if self._file is None or not self._changed:
            return
        rows = {
            name: {"spent": a.spent, "today": a.today, "day": a.day} for name, a in self._accounts.items()
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_suffix(".new")
        fresh.write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
        fresh.replace(self._file)
        self._changed = False


def _left(account: Account, allowance: Allowance, name: str) -> tuple[float | None, str]:
    """What is left of a resource before anything running is counted, by the tighter of its limits."""
    limits = {
        f"{name} in all": (getattr(allowance, name), account.spent[name]),
        f"{name} a day": (getattr(allowance, f"{name}_per_day"), account.today[name]),
    }
    left = {told: limit - spent for told, (limit, spent) in limits.items() if limit is not None}
    if not left:
        return None, ""
    tightest = min(left, key=lambda told: left[told])
    return left[tightest], f"{limits[tightest][0]:g} {tightest}"


def _admit(key: Key, account: Account, name: str, left: float, limit: str) -> None:
    if left <= 0:
        tomorrow = _DAY_S - int(time.time()) % _DAY_S if limit.endswith("a day") else None
        raise ApiError(
            429,
            f"The key {key.name!r} has used up its budget of {limit}.",
            code="insufficient_quota",
            retry_after_s=tomorrow,
        )
    if left - account.reserved[name] <= 0:
        raise ApiError(
            429,
            f"The key {key.name!r} has a budget of {limit}, and its running requests may use up the rest. "
            "Try again when they have ended.",
            code="quota_reserved",
            retry_after_s=1,
        )


def _stored(file: File | None) -> Mapping[str, Any]:
    if file is None or not file.exists():
        return {}
    rows: dict[str, Any] = orjson.loads(file.read_bytes())
    return rows
