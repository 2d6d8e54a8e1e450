"""The contract between what thinks and what does.

A *flow* is a generator. It yields a batch of requests and is sent one reply for each, in order;
the requests of a batch run concurrently. Strategies, rewards, judges and policies are flows,
composed by `yield from`; none of them calls a model, a tool, a clock or a global random generator.
The driver (`orchestrator/driver.py`) carries requests out. Because a flow is deterministic given
its seed and its replies, resuming is replaying, and a test needs no model:

>>> def ask_twice(prompt: Prompt) -> Flow[str]:
...     [samples] = yield [Generate(prompt, n=2)]
...     return min(samples, key=lambda sample: len(sample.text)).text
>>> flow = ask_twice(Prompt.user("2+2?"))
>>> flow.send(None)[0].n
2
>>> try: flow.send([(Completion("four"), Completion("4"))])
... except StopIteration as end: print(end.value)
4

| request    | reply                                         |
|------------|-----------------------------------------------|
| `Generate` | `tuple[Completion, ...]`, one for each sample  |
| `LogProb`  | `LogLikelihood` of the given continuation      |
| `Hidden`   | `tuple[float, ...]`, state of the last token   |
| `Rate`     | `float`, the reward model's score              |
| `CallTool` | `ToolResult`                                   |
| `Recall`   | `tuple[Match, ...]`, what the memory found     |
| `Remember` | `int`, the memory's version after it           |
| `Ask`      | `str`, what the human said                     |
| `Note`     | `None`                                         |
| `Wait`     | the value of the promise, once it is given     |
| `Fork`     | `tuple`, one result for each sub-flow          |

A request that cannot be carried out is answered with a `Failure`, never with an exception: one
failed call must not end a search.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, TypeVar

from .constraints import Constraint
from .entries import Entry
from .workers import Workers

T = TypeVar("T")

# ---------------------------------------------------------------- what is said to a model


Effect: TypeAlias = Literal["pure", "idempotent", "once"]
"""What a tool does to the world: nothing; something that may be done twice; something that must not."""


@dataclass(frozen=True)
class ToolSpec:
    """A tool the model may ask for; `parameters` is the JSON schema of its arguments, `requires` names tools
    that it is of no use without. `history` is an argument that the model is not told of: what this branch
    of a search gave its first parameter in earlier calls."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    effect: Effect = "once"
    requires: tuple[str, ...] = ()
    history: str = ""


@dataclass(frozen=True)
class ToolCall:
    """A call the model asked for. `arguments` is JSON text, as the model wrote it; it may be invalid."""

    id: str
    name: str
    arguments: str = "{}"


@dataclass(frozen=True)
class Message:
    """One chat message. A "tool" message answers the call `tool_call_id` of an earlier assistant's."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True)
class Prompt:
    """Chat messages, and the beginning of the assistant's turn that is to be continued.

    `prefix_ids` are the tokens of `prefix` as the engine drew them; where given they are sent in
    its place, so that a continuation hits the prefix cache exactly and log-probs belong to the text.
    Without messages, `prefix` is sent as it is, with no chat template. `tools` are offered to the model,
    whose calls stand in its text as `serving/tool_calls.py` writes them.
    """

    messages: tuple[Message, ...] = ()
    prefix: str = ""
    prefix_ids: tuple[int, ...] = ()
    tools: tuple[ToolSpec, ...] = ()

    @classmethod
    def user(cls, text: str, *, system: str | None = None) -> "Prompt":
        """A question to be answered from the beginning."""
        head = (Message("system", system),) if system is not None else ()
        return cls((*head, Message("user", text)))


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The defaults sample the model's own distribution (no top-k, no top-p)
    at temperature 0.8, the setting of the particle-filtering paper (arXiv 2502.01618). With `min_p` a token
    is dropped whose probability, after the temperature, is below `min_p` times that of the likeliest."""

    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    min_p: float = 0.0


# ---------------------------------------------------------------- what comes back


@dataclass(frozen=True)
class Completion:
    """One sample. `text` is the decoding of `ids`, up to and including the token that completed the
    stop string."""

    text: str
    ids: tuple[int, ...] = ()  # empty where the engine gives none
    logprobs: tuple[float, ...] = ()  # one for each id, natural log; empty unless asked for
    finish: Literal["eos", "stop", "length"] = "eos"
    stop: str = ""  # the stop string found
    n_tokens: int = 0
    top_logprobs: tuple[tuple[float, ...], ...] = ()  # for each token the best ones, falling
    log_weight: float = 0.0  # of a constrained sample that is properly weighted: see `Generate`

    @property
    def content(self) -> str:
        """The text before the stop string."""
        return self.text[: self.text.rindex(self.stop)] if self.stop else self.text


@dataclass(frozen=True)
class LogLikelihood:
    """log p(continuation | prompt), token by token, natural log."""

    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation."""
        return sum(self.logprobs)


@dataclass(frozen=True)
class ToolResult:
    """What a tool returned. `ok` is false where `text` tells the model what went wrong; `value` is what it
    returned where that is JSON other than a text."""

    text: str
    ok: bool = True
    value: Any = field(default=None, compare=False)


@dataclass(frozen=True)
class Failure:
    """The reply to a request that could not be carried out.

    `kind`: "engine" (the call failed), "budget" (it was not affordable), "cancelled" (another branch
    of the `Fork` won), "tool", "reward".
    """

    kind: str
    message: str


# ---------------------------------------------------------------- what it cost


@dataclass(frozen=True)
class Usage:
    """What calls consumed. Judges, rewards and retries count like everything else."""

    input_tokens: int = 0  # prompt tokens sent, cached ones included
    cached_tokens: int = 0  # of these, served from the prefix cache
    output_tokens: int = 0
    calls: int = 0
    reward_passes: int = 0  # distinct states scored; told by the search, not by an engine
    tool_calls: int = 0
    cost_usd: float = 0.0
    joules: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens computed: prompt tokens not found in the cache, and output tokens."""
        return self.input_tokens - self.cached_tokens + self.output_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Usage)))


# ---------------------------------------------------------------- requests


@dataclass(frozen=True)
class Generate:
    """Draw `n` completions, independent of each other. `model` is a role of the run ("policy", "reward",
    "judge" …). Without a seed the driver derives one from the run's seed and the request's path in the flow.

    Log-probs are those of the model's own distribution, at temperature 1 and before any constraint;
    `top_logprobs` asks for the so many best at each token. A `constraint` holds for the assistant's whole
    turn, `prompt.prefix` included. Engines mask the tokens that break it; the transformers engine draws
    properly weighted samples instead, so that E[exp(log_weight) · f(text)] is the sum of p(text) · f(text)
    over all texts that keep it. `extra` are further fields for the engine's server, sent as they are.

    With `workers` each sample is written by several workers side by side, who read each other's text as it
    grows; `max_tokens` holds for all of them together, and the sample has no ids.
    """

    prompt: Prompt
    n: int = 1
    sampling: Sampling = Sampling()
    seed: int | None = None
    logprobs: bool = False
    model: str = "policy"
    top_logprobs: int = 0
    constraint: Constraint | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    workers: Workers | None = None


@dataclass(frozen=True)
class LogProb:
    """Log-likelihood of exactly this continuation: its ids where known, else its text."""

    prompt: Prompt
    continuation: str = ""
    continuation_ids: tuple[int, ...] = ()
    model: str = "policy"


@dataclass(frozen=True)
class Hidden:
    """Last-layer hidden state of the last prompt token."""

    prompt: Prompt
    model: str = "policy"


@dataclass(frozen=True)
class Rate:
    """Score of a (partial) answer by a served reward model; higher is better."""

    prompt: Prompt
    model: str = "reward"


@dataclass(frozen=True)
class CallTool:
    """Call a registered tool. `arguments` is a JSON object. A call is `speculative` where what it leads to
    may be dropped: then only a tool without effects is run, and others answer that they were not. In a race
    (`Fork` with `until`) every call is."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    speculative: bool = False


@dataclass(frozen=True)
class Recall:
    """The `k` memory entries most useful for the query, of these kinds if any are named.

    With `names`, those entries, in this order. With neither a query nor `k`, every active entry, by name.
    """

    query: str = ""
    k: int = 4
    kinds: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Remember:
    """Write entries into the memory, all or none, and count for those in `credit` that they were used, and
    whether what they were used for was solved.

    The reply is the memory's newest version. With `after`, it is 0 and nothing is changed or counted if that
    is no longer the newest: another writer was faster. What is there already may be written again.
    """

    entries: tuple[Entry, ...] = ()
    credit: Mapping[str, bool] = field(default_factory=dict)
    reason: str = ""
    after: int | None = None


@dataclass(frozen=True)
class Ask:
    """Ask the human."""

    question: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Note:
    """A trace event of the strategy's own; `data` must be JSON. `reward_passes` states scored are
    charged to the budget, since a reward may be computed without any call."""

    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    reward_passes: int = 0


@dataclass(frozen=True)
class Fork:
    """Run sub-flows concurrently, each at its own pace.

    `until` is called after each branch that ends, with the results so far by branch index, in the
    order in which they ended; once it returns true, the others are cancelled and answered with
    `Failure("cancelled", …)`. Which branches win such a race is recorded in the journal.
    """

    flows: "tuple[Flow[Any], ...]"
    until: Callable[[Mapping[int, Any]], bool] | None = None


class Promise:
    """A value that one flow of a run gives, once, and that other flows of it wait for.

    What a flow sees of it does not depend on when it was given, so a run with promises is replayed like any
    other. Whoever promises gives it whatever happens (`finally`), or those who wait do so for ever.
    """

    __slots__ = ("_then", "given", "value")

    def __init__(self) -> None:
        self.given = False
        self.value: Any = None
        self._then: list[Callable[[], None]] = []

    def give(self, value: Any = None) -> None:
        """Give it."""
        assert not self.given
        self.given, self.value = True, value
        then, self._then = self._then, []
        for call in then:
            call()

    def then(self, call: Callable[[], None]) -> None:
        """Have something called when it is given. For the driver."""
        self._then.append(call)


@dataclass(frozen=True)
class Wait:
    """Wait for a promise."""

    promise: Promise


Request: TypeAlias = (
    Generate | LogProb | Hidden | Rate | CallTool | Recall | Remember | Ask | Note | Fork | Wait
)
# A reply's type follows from its request (table above); a static union would only force casts.
Reply: TypeAlias = Any
Flow: TypeAlias = Generator[Sequence[Request], Sequence[Reply], T]
