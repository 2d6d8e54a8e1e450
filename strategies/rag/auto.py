"""The reader that chooses its own θ."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ...serving.errors import UsageError, demand
from ...serving.flow import Flow, Note
from ..base import Result, Task
from .allocation import Allocation, from_json
from .drag import DRAG
from .forecast import Theta
from .iterdrag import IterDRAG
from .reading import Reading

_LONG = 64_000  # from here on iterations pay, in the paper's table 1


@dataclass(frozen=True, kw_only=True)
class RAG(IterDRAG):
    """Reads with the θ that an allocation model expects to be best within `budget_tokens` of input, all calls
    counted. `allocation`: a file of `abduce rag fit`, or what is in one, fitted for the model that reads;
    `like`: the task of the fit that this one is most like (None: the mean over all). `k`, `m` and `n_max` are
    bounds then. Without an allocation model they are θ, for `iterdrag` from 64,000 tokens on, and for `drag`
    below.
    """

    budget_tokens: int = 32_000
    allocation: str | Mapping[str, Any] | None = None
    like: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self.budget_tokens >= 1, "budget_tokens", self.budget_tokens, "write e.g. 32000")
        if (model := self.model) is not None:
            model.gains(self.like)
        elif self.like is not None:
            raise UsageError("like is a task of an allocation model. Give that with allocation: FILE.")

    @cached_property
    def model(self) -> Allocation | None:
        """The allocation model."""
        if self.allocation is None or isinstance(self.allocation, Mapping):
            return None if self.allocation is None else from_json(self.allocation)
        try:
            return from_json(json.loads(Path(self.allocation).expanduser().read_text(encoding="utf-8")))
        except OSError as error:
            raise UsageError(f"Cannot read {self.allocation}: {error.strerror}.") from None
        except ValueError:
            raise UsageError(f"{self.allocation} is not JSON. Make it with: abduce rag fit") from None

    def theta(self) -> Theta:
        """What is read with."""
        most_m = len(self.shots) if self.m is None else self.m
        if self.model is None:
            return Theta(self.k, most_m, 1 if self.budget_tokens < _LONG else self.n_max)
        limits = {"most_k": self.k, "most_m": most_m, "most_n": self.n_max}
        return self.model.choose(self.budget_tokens, task=self.like, **limits)

    def solve(self, task: Task, *, seed: int) -> Flow[Result]:
        """Choose, then read."""
        theta = self.theta()
        expected = None if self.model is None else round(self.model.costs.forecast(theta, hard=False))
        yield [Note("theta", {**theta._asdict(), "budget_tokens": self.budget_tokens, "forecast": expected})]
        return (yield from reader(self, theta).solve(task, seed=seed))


def reader(like: Reading, theta: Theta) -> DRAG | IterDRAG:
    """The strategy of a θ, with the other settings of `like`."""
    kind = DRAG if theta.n == 1 else IterDRAG
    settings = {f.name: getattr(like, f.name) for f in fields(kind) if hasattr(like, f.name)}
    settings |= {"k": theta.k, "m": theta.m} | ({"n_max": theta.n} if theta.n > 1 else {})
    return kind(**settings)
