"""What one request asks of a white-box model, and plain sampling as the first example.

A *program* is a generator. It yields rows to feed and is sent, for each, the model's log-probs of the next
token; `batching.py` runs many programs at once and batches their rows. It calls no model, so a test drives
it by hand:

>>> import numpy as np
>>> def greedy(prompt: tuple[int, ...], n: int) -> Program[list[int]]:
...     drawn: list[int] = []
...     [log_p] = yield [Feed(None, prompt)]
...     while len(drawn) < n:
...         drawn.append(int(log_p.argmax()))
...         [log_p] = yield [Feed(0, (drawn[-1],))]
...     return drawn
>>> program = greedy((7, 8), 1)
>>> program.send(None)
[Feed(parent=None, tokens=(7, 8), scored=())]
>>> program.send([np.array([0.1, 0.9])])
[Feed(parent=0, tokens=(1,), scored=())]
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

from ..flow import Completion, Sampling
from .awrs import log_total

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector: TypeAlias = NDArray[np.float64]

T = TypeVar("T")


class Feed(NamedTuple):
    """A row: tokens that go on with row `parent` of the last batch, or begin a text where it is None.

    The reply is log p of the next token, float64 `[vocabulary]`; with `scored` it is log p of each of these,
    float64 `[scored]`: all but the last of them end `tokens`, the last comes next and is not fed.
    """

    parent: int | None
    tokens: tuple[int, ...]
    scored: tuple[int, ...] = ()


Program: TypeAlias = Generator[Sequence[Feed], "Sequence[Vector]", T]


class Merged:
    """Rows of one batch, equal ones only once: samples that agree so far share their work."""

    def __init__(self) -> None:
        self.feeds: list[Feed] = []
        self._places: dict[Feed, int] = {}

    def place(self, feed: Feed) -> int:
        """The row's index in the batch."""
        place = self._places.setdefault(feed, len(self.feeds))
        if place == len(self.feeds):
            self.feeds.append(feed)
        return place


@dataclass(frozen=True)
class Turn:
    """What all samples of a request share. `tokens`: what each token writes. `ends`: tokens that end a turn.
    `logprobs` and `top`: what to tell of each token."""

    prompt: tuple[int, ...]
    tokens: Sequence[bytes]
    ends: tuple[int, ...]
    sampling: Sampling
    logprobs: bool = False
    top: int = 0
    stops: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stops", tuple(stop.encode() for stop in self.sampling.stop if stop))


@dataclass
class Draft:
    """A sample that is being drawn. `feed` is what it feeds next, `row` where it stood in the last batch."""

    turn: Turn
    rng: "np.random.Generator"
    feed: Feed
    row: int = 0
    ids: tuple[int, ...] = ()
    text: bytes = b""
    logprobs: tuple[float, ...] = ()
    tops: tuple[tuple[float, ...], ...] = ()
    finish: Literal["", "eos", "stop", "length"] = ""
    stop: str = ""

    @classmethod
    def begin(cls, turn: Turn, seed: int) -> "Draft":
        """Nothing drawn yet."""
        import numpy as np

        return cls(turn, np.random.default_rng(seed), Feed(None, turn.prompt))

    def take(self, token: int, log_p: "Vector") -> None:
        """Write a token; the sample may end with it. `log_p` is the model's own."""
        turn = self.turn
        if token in turn.ends:
            self.finish = "eos"
            return
        self.ids += (token,)
        if turn.logprobs:
            self.logprobs += (min(0.0, float(log_p[token])),)
        if turn.top:
            self.tops += (best(log_p, turn.top),)
        more = turn.tokens[token]
        longest = max((len(stop) for stop in turn.stops), default=0)
        tail = self.text[max(0, len(self.text) - longest + 1) :] + more if longest else b""
        self.text += more
        found = [(tail.index(stop), stop) for stop in turn.stops if stop in tail]
        if found:
            self.finish, self.stop = "stop", min(found)[1].decode()
        elif len(self.ids) >= turn.sampling.max_tokens:
            self.finish = "length"
        self.feed = Feed(self.row, (token,))

    def completion(self, log_weight: float = 0.0) -> Completion:
        """The sample as it is."""
        return Completion(
            self.text.decode("utf-8", "replace"),
            self.ids,
            self.logprobs,
            self.finish or "length",
            self.stop,
            len(self.ids) + (self.finish == "eos"),
            self.tops,
            log_weight,
        )


def sample(turn: Turn, seeds: Sequence[int]) -> Program[list[Completion]]:
    """One independent sample for each seed."""
    drafts = [Draft.begin(turn, seed) for seed in seeds]
    while live := [draft for draft in drafts if not draft.finish]:
        batch = Merged()
        for draft in live:
            draft.row = batch.place(draft.feed)
        told = yield batch.feeds
        for draft in live:
            log_p = told[draft.row]
            draft.take(pick(log_p, turn.sampling, draft.rng), log_p)
    return [draft.completion() for draft in drafts]


def score(prompt: tuple[int, ...], continuation: tuple[int, ...]) -> Program[tuple[float, ...]]:
    """log p of each token of a continuation. The last is not fed, since nothing follows it."""
    [told] = yield [Feed(None, prompt + continuation[:-1], continuation)]
    return tuple(min(0.0, x) for x in told.tolist())


# ---------------------------------------------------------------- distributions


def pick(log_p: "Vector", sampling: Sampling, rng: "np.random.Generator") -> int:
    """A token, from the distribution that `sampling` makes of p; the most likely one at temperature 0."""
    import numpy as np

    if sampling.temperature <= 0:
        return int(log_p.argmax())
    q = np.exp(shaped(log_p, sampling))
    cumulative = np.cumsum(q)
    point = rng.random() * cumulative[-1]
    return min(int(np.searchsorted(cumulative, point, side="right")), int(np.flatnonzero(q)[-1]))


def shaped(log_p: "Vector", sampling: Sampling) -> "Vector":
    """log q, normalised: temperature, then the `top_k` best, then the fewest with `top_p` of the mass, then
    those with at least `min_p` times the largest probability."""
    import numpy as np

    log_q = log_p / sampling.temperature if sampling.temperature != 1 else log_p
    if 0 < sampling.top_k < log_q.size:
        kept = np.argpartition(log_q, -sampling.top_k)[-sampling.top_k :]
        log_q = _only(log_q, kept)
    if sampling.top_p < 1:
        order = np.argsort(-log_q, kind="stable")
        mass = np.cumsum(np.exp(log_q[order] - log_total(log_q)))
        log_q = _only(log_q, order[: int(np.searchsorted(mass, sampling.top_p)) + 1])
    if sampling.min_p > 0:
        log_q = _only(log_q, np.flatnonzero(log_q >= log_q.max() + np.log(sampling.min_p)))
    return log_q if log_q is log_p else log_q - log_total(log_q)


def best(log_p: "Vector", k: int) -> tuple[float, ...]:
    """The `k` largest log-probs, falling."""
    import numpy as np

    k = min(k, log_p.size)
    return tuple(float(x) for x in -np.sort(-np.partition(log_p, -k)[-k:]))


def _only(log_q: "Vector", kept: Any) -> "Vector":
    import numpy as np

    cut = np.full_like(log_q, -math.inf)
    cut[kept] = log_q[kept]
    return cut
