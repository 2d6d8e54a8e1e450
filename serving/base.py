"""The contract of an engine: what serves a model.

An engine answers `Generate`, `LogProb`, `Hidden` and `Rate`, those it can: `capabilities` says which.
It is given one request at a time, many concurrently, and batches as it sees fit. It reports what the
call consumed; the driver does budgets, retries and concurrency.
"""

from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from .errors import EngineError
from .flow import Completion, Generate, Hidden, LogLikelihood, LogProb, Prompt, Rate, Usage

T = TypeVar("T")

Capability: TypeAlias = Literal[
    "generate",  # text
    "logprobs",  # log-probs of drawn tokens
    "top_logprobs",  # the best log-probs at each token
    "logprob",  # log-likelihood of a given continuation
    "hidden",  # hidden states
    "rate",  # reward-model scores
    "token_ids",  # ids travel with text
    "seed",  # the same request and seed give the same reply
    "json_schema",  # text that keeps a JSON schema
    "constraint",  # text that keeps any constraint
    "workers",  # one text by several workers side by side
]


class Served(NamedTuple, Generic[T]):
    """A reply and what it consumed."""

    value: T
    usage: Usage


class Engine:
    """Base of all engines. A subclass says what it can do and overrides those methods.

    Methods raise `TransientError` where trying again may help and `EngineError` where it won't.
    """

    name: str = "engine"
    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    max_concurrency: int | None = None  # requests in flight that make sense; None: no limit

    async def ready(self) -> None:
        """Do what takes long and is done once, such as loading a model, before a run's clock starts."""

    async def generate(self, request: Generate, *, seed: int) -> Served[tuple[Completion, ...]]:
        """`request.n` independent samples."""
        raise self._cannot("generate")

    async def logprob(self, request: LogProb) -> Served[LogLikelihood]:
        """Log-likelihood of the given continuation under the model's own distribution (temperature 1).
        Nothing follows its last token: that is told of, not read, and is no input token."""
        raise self._cannot("score a given continuation")

    async def hidden(self, request: Hidden) -> Served[tuple[float, ...]]:
        """Last-layer hidden state of the last prompt token."""
        raise self._cannot("return hidden states")

    async def rate(self, request: Rate) -> Served[float]:
        """The reward model's score."""
        raise self._cannot("rate answers")

    def priced(self) -> bool:
        """Whether replies tell what they cost. A limit in money holds only where they do."""
        return True

    def count_tokens(self, prompt: Prompt) -> int:
        """Prompt tokens, for reserving budget before a call; an upper estimate will do."""
        characters = len(prompt.prefix) + sum(len(m.content) + 16 for m in prompt.messages)
        return characters // 3 + 1

    async def close(self) -> None:
        """Free what the engine holds. Safe to call twice."""

    async def __aenter__(self) -> "Engine":
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()

    def _cannot(self, what: str) -> EngineError:
        return EngineError(f"The engine {self.name!r} cannot {what}.")
