"""The budget: what may be spent, what is spent, what is promised to calls in flight.

Every call reserves its worst case before it starts and settles what it used after. A call whose worst
case does not fit waits until the calls in flight have settled; then it starts if anything is left, with
as many of its samples as fit but at least one (the others follow once it is known what these used), and the
search ends if nothing is. So the overshoot is at
most one sample's output cap, however many branches run at once, and a batch is admitted in the same waves
whatever the order of the replies.

    0 ─────── used ─────── reserved ─────── soft limit ── finish ── limit
                                            └ the search ends here, and may use the rest to finalise
"""

import asyncio
import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

from ..serving.errors import BudgetExhausted, SearchEnded, UsageError
from ..serving.flow import Usage

_FINISHING = frozenset({"tokens", "output_tokens", "calls"})  # what a finalising call consumes
_FINISH = 0.1


@dataclass(frozen=True, slots=True)
class Budget:
    """Any subset of limits on a run; None, or infinity, is no limit.

    `tokens` counts prompt tokens not found in the prefix cache and output tokens, of every call, judges
    and rewards included. `finish` is the share kept back for the strategy's own finalisation.

    >>> Budget.parse("8k tokens, 60 s")
    Budget(tokens=8000, seconds=60)
    """

    tokens: float | None = None
    output_tokens: float | None = None
    calls: float | None = None
    reward_passes: float | None = None
    tool_calls: float | None = None
    cost_usd: float | None = None
    joules: float | None = None
    seconds: float | None = None
    finish: float = _FINISH

    def __post_init__(self) -> None:
        for name, limit in self.limits().items():
            if not (isinstance(limit, (int, float)) and limit >= 0):
                raise UsageError(
                    f"budget.{name} must be a number ≥ 0, got {limit!r}. Write e.g. {name}=1000."
                )
            if limit == math.inf:
                object.__setattr__(self, name, None)
        if not 0 <= self.finish < 1:
            raise UsageError(
                f"budget.finish must be in [0, 1), got {self.finish}. Write 0.1 to keep back a tenth."
            )

    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: limit for name in _RESOURCES if (limit := getattr(self, name)) is not None}

    def __repr__(self) -> str:
        shown = self.limits() | ({} if self.finish == _FINISH else {"finish": self.finish})
        return f"Budget({', '.join(f'{name}={limit!r}' for name, limit in shown.items())})"

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """From words: a number (k and M allowed) and a resource, separated by commas."""
        limits: dict[str, float] = {}
        for part in text.split(","):
            match = _AMOUNT.fullmatch(_DOLLARS.sub(r"\1 usd", part.strip()))
            word = match["unit"].strip().lower().replace(" ", "_") if match else ""
            unit = _UNITS.get(word)
            if match is None or unit is None:
                near = get_close_matches(word, _UNITS, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise UsageError(
                    f"Cannot read the budget {part.strip()!r}.{hint} Write a number and one of "
                    f"{', '.join(sorted(set(_UNITS.values())))}: e.g. '8k tokens, 60 s'."
                )
            if unit in limits:
                raise UsageError(f"The budget {text!r} names {unit} twice. Write each resource once.")
            amount = float(match["number"]) * {"": 1, "k": 1e3, "m": 1e6}[match["scale"].lower()]
            amount *= _SECONDS.get(word, 1)
            limits[unit] = int(amount) if amount.is_integer() else amount
        return cls(**limits)


_AMOUNT = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<scale>[kKM]?)\s*(?P<unit>[A-Za-z_ ]+)")
_DOLLARS = re.compile(r"^\$\s*(\d[\d.]*)$")
_SECONDS = {"min": 60, "minute": 60, "minutes": 60, "h": 3600, "hour": 3600, "hours": 3600}
_RESOURCES = tuple(f.name for f in fields(Budget) if f.name != "finish")
_UNITS = {name: name for name in _RESOURCES} | {
    "token": "tokens",
    "output_token": "output_tokens",
    "call": "calls",
    "reward_pass": "reward_passes",
    "tool_call": "tool_calls",
    "usd": "cost_usd",
    "s": "seconds",
    "sec": "seconds",
    "second": "seconds",
    **dict.fromkeys(_SECONDS, "seconds"),
}


class Need(NamedTuple):
    """What a call may spend, by resource: at most, and at least if it starts at all."""

    worst: Mapping[str, float]
    output_cap: int  # of one sample
    samples: int  # it can do with fewer

    def least(self, name: str) -> float:
        """What it spends at least."""
        return self.worst[name] - (self._spare if name in _OUTPUT else 0)

    def within(self, room: Mapping[str, float]) -> "Need":
        """The need of as many of its samples as there is room for, at least one."""
        if self.samples <= 1 or not self.output_cap:
            return self
        over = max((self.worst[name] - room[name] for name in _OUTPUT if name in room), default=0.0)
        dropped = min(max(0, math.ceil(over / self.output_cap)), self.samples - 1)
        if not dropped:
            return self
        less = dropped * self.output_cap
        worst = {name: most - (less if name in _OUTPUT else 0) for name, most in self.worst.items()}
        return Need(worst, self.output_cap, self.samples - dropped)

    @property
    def _spare(self) -> int:
        """Output tokens of the worst case that it can do without."""
        return max(0, self.samples * self.output_cap - 1)

    @classmethod
    @lru_cache(maxsize=1024)  # calls of one run are much alike
    def of(
        cls,
        *,
        input_tokens: int = 0,
        output_cap: int = 0,
        samples: int = 1,
        calls: int = 1,
        tool_calls: int = 0,
    ) -> "Need":
        """The need of one call; `output_cap` is that of a sample. Money, energy and reward passes are known
        only afterwards: a call may start while anything is left of them."""
        worst = {
            "calls": calls,
            "tool_calls": tool_calls,
            "tokens": input_tokens + samples * output_cap,
            "output_tokens": samples * output_cap,
            "cost_usd": _TRACE,
            "joules": _TRACE,
            "reward_passes": _TRACE,
        }
        return cls(worst, output_cap, samples)


_UNUSED = vars(Usage())
_OUTPUT = ("tokens", "output_tokens")
_COUNTED = ("calls", "tool_calls")
_TRACE = 1e-12


class Ledger:
    """The account of one run."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        limits = budget.limits()
        limits.pop("seconds", None)
        self._limits = limits
        self._soft = {
            name: limit - math.floor(limit * budget.finish) if name in _FINISHING else limit
            for name, limit in limits.items()
        }
        self._used: dict[str, Any] = _UNUSED | {"tokens": 0}  # tokens: as `Usage.tokens`
        self._reserved = dict.fromkeys(limits, 0.0)
        self._in_flight = 0
        self._waiting: deque[tuple[Need, asyncio.Future[Need]]] = deque()

    @property
    def limited(self) -> bool:
        """Whether there is anything to reserve."""
        return bool(self._limits)

    @property
    def usage(self) -> Usage:
        """Everything spent so far."""
        return Usage(**{name: self._used[name] for name in _UNUSED})

    def is_met_by(self, end: SearchEnded) -> bool:
        """Whether a search ended by this budget, and not by a smaller one that the run had before."""
        return not isinstance(end, BudgetExhausted) or getattr(self._budget, end.resource) == end.limit

    def open_reserve(self) -> None:
        """Let finalisation use what was kept back for it."""
        self._soft = dict(self._limits)

    def reserve_at_once(self, need: Need) -> Need | None:
        """Promise the worst case to a call, if it need not wait for others. Returns what was promised, which
        may be for fewer samples. Raises BudgetExhausted if nothing is left for it."""
        if self._waiting:
            return None
        if self._fits(need.worst):
            self._promise(need)
            return need
        if not self._in_flight:
            return self._start_or_refuse(need)
        return None

    async def reserve(self, need: Need) -> Need:
        """Promise the worst case to a call, in its turn. Raises BudgetExhausted if nothing is left then."""
        if promised := self.reserve_at_once(need):
            return promised
        turn: asyncio.Future[Need] = asyncio.get_running_loop().create_future()
        self._waiting.append((need, turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.settle(turn.result(), Usage())  # admitted, then cancelled before it could start
            raise

    def promise_again(self, once: Usage) -> bool:
        """Promise another attempt to a call in flight, if it fits. Of an attempt that failed nothing but its
        number is known, so there is nothing else to look at."""
        for name in _COUNTED:
            more = getattr(once, name)
            if (
                more
                and name in self._soft
                and self._used[name] + self._reserved[name] + more > self._soft[name]
            ):
                return False
        self.take_back(once, -1)
        return True

    def take_back(self, once: Usage, times: int) -> None:
        """Take back the promise of further attempts."""
        for name in _COUNTED:
            if name in self._reserved:
                self._reserved[name] -= times * getattr(once, name)

    def settle(self, need: Need, spent: Usage) -> None:
        """Replace a promise by what was spent."""
        self.charge(spent)
        reserved, worst = self._reserved, need.worst
        for name in reserved:
            reserved[name] -= worst[name]
        self._in_flight -= 1
        if not self._in_flight:
            self._admit_waiting()

    def charge(self, spent: Usage) -> None:
        """Count what no call had reserved."""
        used = self._used
        used["input_tokens"] += spent.input_tokens
        used["output_tokens"] += spent.output_tokens
        used["tokens"] += spent.input_tokens - spent.cached_tokens + spent.output_tokens
        used["calls"] += spent.calls
        if spent.cached_tokens:  # this and what follows is mostly 0, and to look is cheaper than to add
            used["cached_tokens"] += spent.cached_tokens
        if spent.reward_passes:
            used["reward_passes"] += spent.reward_passes
        if spent.tool_calls:
            used["tool_calls"] += spent.tool_calls
        if spent.cost_usd:
            used["cost_usd"] += spent.cost_usd
        if spent.joules:
            used["joules"] += spent.joules

    def _fits(self, amount: Mapping[str, float]) -> bool:
        used, reserved = self._used, self._reserved
        for name, limit in self._soft.items():  # noqa: SIM110  `all` of a generator takes twice as long
            if used[name] + reserved[name] + amount[name] > limit:
                return False
        return True

    def _promise(self, need: Need) -> None:
        reserved, worst = self._reserved, need.worst
        for name in reserved:
            reserved[name] += worst[name]
        self._in_flight += 1

    def _start_or_refuse(self, need: Need) -> Need:
        """With nothing in flight: start what fits of a call and may overshoot by the output of one sample,
        or end the search."""
        for name, limit in self._soft.items():
            if self._used[name] + need.least(name) > limit:
                raise BudgetExhausted(name, self._limits[name])
        fitting = need.within({name: limit - self._used[name] for name, limit in self._soft.items()})
        self._promise(fitting)
        return fitting

    def _admit_waiting(self) -> None:
        while self._waiting:
            need, turn = self._waiting[0]
            if not turn.done():  # else cancelled while it waited
                if self._in_flight and not self._fits(need.worst):
                    return
                try:
                    if self._in_flight:
                        self._promise(need)
                    else:
                        need = self._start_or_refuse(need)
                    turn.set_result(need)
                except BudgetExhausted as end:
                    turn.set_exception(end)
            self._waiting.popleft()
