"""Every error of abduce.

AbduceError
├── UsageError            the caller's mistake; the message says what to write instead
│   ├── UnknownName       no such strategy, reward, engine, check …, with the nearest spelling
│   ├── MissingExtra      an optional dependency is absent, with the install line
│   └── MissingCapability the engine cannot do what the strategy or reward needs
├── EngineError           a call failed for good: the same request would fail again
│   └── TransientError    a call failed in passing: the driver may try again
├── SearchEnded           thrown *into* a flow: stop searching, return the best so far
│   ├── BudgetExhausted   a limit of the budget was reached
│   └── RewardUnavailable no state could be scored, with the reason
└── JournalError          a journal does not fit the run it should resume
"""

from collections.abc import Iterable
from difflib import get_close_matches

from . import redact


class AbduceError(Exception):
    """Root of all errors raised on purpose by this package. Their messages hold no secrets (`redact.py`)."""

    def __init__(self, *said: object) -> None:
        super().__init__(*(redact.text(each) if isinstance(each, str) else each for each in said))


class UsageError(AbduceError):
    """The caller's mistake. The message says what was wrong and what to write instead."""


class UnknownName(UsageError):
    """A name that is not registered.

    >>> print(UnknownName("strategy", "best_of_m", ["beam", "best_of_n"]))
    No strategy named 'best_of_m'. Did you mean 'best_of_n'? Known: beam, best_of_n.
    """

    def __init__(self, what: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"No {what} named {name!r}.{hint} Known: {', '.join(names) or 'none'}.")


class MissingExtra(UsageError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed. Install it with: pip install 'abduce[{extra}]'")


class MissingCapability(UsageError):
    """The engine of a role lacks something the run needs; found before the run starts."""


class EngineError(AbduceError):
    """A call failed and would fail again: never retried."""


class TransientError(EngineError):
    """A call failed in passing (connection lost, server busy): retried a bounded number of times."""


class SearchEnded(AbduceError):
    """Thrown into a flow at its yield. The flow returns its best result so far, marked incomplete."""


class BudgetExhausted(SearchEnded):
    """A limit was reached. `resource` is the name of the `Budget` field."""

    def __init__(self, resource: str, limit: float) -> None:
        self.resource = resource
        self.limit = limit
        super().__init__(f"budget of {limit:g} {resource} is used up")


class RewardUnavailable(SearchEnded):
    """The reward could not score anything; the message says why."""


class JournalError(AbduceError):
    """The journal holds another run than the one that is being resumed."""


def demand(good: bool, name: str, value: object, instead: str) -> None:
    """Raise a UsageError that names a parameter, its value and what to write instead.

    >>> demand(0 >= 1, "particles", 0, "write at least 1, such as 8")
    Traceback (most recent call last):
    abduce.serving.errors.UsageError: particles cannot be 0: write at least 1, such as 8.
    """
    if not good:
        raise UsageError(f"{name} cannot be {value!r}: {instead}.")
