"""Hogwild's rules: when a step ends, what the next begins with, when workers are reminded, what ends it all.

    call t:  each worker's new tokens ──feed──► log p for each ──► a token each ──► steps that end ──merge──►

A worker feeds the token it drew last; where that one ended its step, the step's other tokens become finished
ones, and the token is fed anew, as the beginning of the next step, with that step's mark behind it. All of it
is without torch: `hogwild.py` keeps the blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..flow import Completion
from ..seeds import derive
from ..workers import UNFINISHED, Workers
from .decoding import Turn, pick

if TYPE_CHECKING:
    import numpy as np

    from .awrs import Vector

SENTENCE_MARKS = (".", "?", "!", "。", "？", "！", "؟", "۔", "।", "॥", "։", "።", "…")
SEPARATOR = "\n\n"


class Blocks(Protocol):
    """The workers' blocks, and the model over them."""

    def feed(self, rows: Sequence[Sequence[int]]) -> "list[Vector]":
        """Append each worker's new tokens to its block, all before any is attended to; log p of its next."""
        ...

    def merge(self, worker: int) -> None:
        """Move a worker's block behind the finished steps, and leave it empty."""
        ...


class Written(NamedTuple):
    """A transcript, the calls it took, and the tokens that were fed but not drawn."""

    completion: Completion
    n_calls: int
    n_given: int


@dataclass
class _Writer:
    index: int
    rng: "np.random.Generator"
    row: tuple[int, ...]  # what it feeds next
    text: str  # of its unfinished step
    step: int = 1
    held: bytes = b""  # of a character that is not whole yet

    def take(self, token: int, written: bytes) -> bool:
        """Write a token; whether it completes a separator."""
        self.row = (token,)
        self.held += written
        try:
            new, self.held = self.held.decode(), b""
        except UnicodeDecodeError as error:
            if len(self.held) < 4 and error.reason == "unexpected end of data":
                return False
            new, self.held = self.held.decode(errors="replace"), b""
        seam = self.text[-1:] + new
        self.text += new
        return SEPARATOR in seam


@dataclass(frozen=True)
class Group:
    """Workers and their task. `encode`: ids of a text within an answer; `banned`: tokens that none draws."""

    workers: Workers
    turn: Turn
    encode: Callable[[str], tuple[int, ...]]
    banned: tuple[int, ...] = ()
    first: tuple[int, ...] = ()  # what a single worker without a mark feeds before all else
    stopped: Callable[[], bool] = field(default=lambda: False)

    def write(self, blocks: Blocks, seed: int, *, room: int) -> Written:
        """One transcript; `room` bounds the tokens of all blocks of the workers, given and drawn."""
        writers = [self._writer(w, seed) for w in range(len(self.workers.names))]
        finished: list[str] = []
        n_calls = n_drawn = n_given = unhinted = 0
        most = self.turn.sampling.max_tokens // len(writers)
        while n_calls < most and not self.stopped():
            n_fed = sum(len(writer.row) for writer in writers)
            if n_given + n_drawn + n_fed > room:
                break
            told = blocks.feed([writer.row for writer in writers])
            n_given += n_fed - len(writers) * (n_calls > 0)
            n_calls += 1
            ended = [w for w, log_p in zip(writers, told, strict=True) if self._draw(w, log_p)]
            n_drawn += len(writers)
            unhinted += len(writers)
            for writer in ended:
                if any(mark in writer.text for mark in self.workers.until):
                    text = "".join([*finished, writer.text])
                    return Written(Completion(text, finish="stop", n_tokens=n_drawn), n_calls, n_given)
                if self.workers.layout == "contiguous":
                    continue
                finished.append(writer.text)
                blocks.merge(writer.index)
                hinted = bool(self.workers.hint) and unhinted > self.workers.hint_every
                unhinted = 0 if hinted else unhinted
                self._next_step(writer, hinted)
        text = self._unfinished("".join(finished), writers)
        return Written(Completion(text, finish="length", n_tokens=n_drawn), n_calls, n_given)

    def _writer(self, w: int, seed: int) -> _Writer:
        import numpy as np

        opening = self.workers.openings[w] if self.workers.openings else ""
        text = self.workers.mark(w, 1) + opening
        return _Writer(
            w, np.random.default_rng(derive(seed, w)), self.first + (self.encode(text) if text else ()), text
        )

    def _draw(self, writer: _Writer, log_p: "Vector") -> bool:
        """Draw a worker's next token; whether it ends its step."""
        if self.banned:
            log_p = log_p.copy()
            log_p[list(self.banned)] = -float("inf")
        token = pick(log_p, self.turn.sampling, writer.rng)
        return writer.take(token, self.turn.tokens[token]) and ends_step(writer.text, self.workers.until)

    def _next_step(self, writer: _Writer, hinted: bool) -> None:
        writer.step += 1
        writer.text = self.workers.mark(writer.index, writer.step) + (self.workers.hint if hinted else "")
        writer.row += self.encode(writer.text) if writer.text else ()

    def _unfinished(self, finished: str, writers: Sequence[_Writer]) -> str:
        """What there is of the steps that no worker could finish, behind those that are finished."""
        begun = [writer.text + UNFINISHED for writer in writers if writer.text]
        others = self.workers.others
        if finished.endswith("\n") or not finished:
            others = others.lstrip("\n")
        return finished + others + SEPARATOR.join(begun) if begun else finished


def ends_step(text: str, until: Sequence[str] = ()) -> bool:
    """Whether a text that has just been given a separator ends with it: what stands before the separator is
    a whole sentence, or has one of `until` in it, and no code and no formula is open.

    >>> ends_step("So it is 4.\\n\\n"), ends_step("We get:\\n\\n"), ends_step("```\\nx.\\n\\n")
    (True, False, False)
    """
    before, _, _ = text.rpartition(SEPARATOR)
    before = before.rstrip()
    whole = before.endswith(SENTENCE_MARKS) or any(mark in before for mark in until)
    open_ = before.count("```") % 2 or before.count("$$") % 2 or before.count("\\[") > before.count("\\]")
    return bool(whole and before and not open_)
