"""Many decoding programs at once: their rows are collected into one batch, round after round.

    submit(program, n_slots) ──► waiting ──► admitted (n_slots kept free for it) ──► rounds ──► its value

A *slot* holds the keys and values of one row. A row that goes on with another takes over its slot; where
several go on with the same, the others get copies. Free slots keep what they hold, and a new prompt takes
over the longest beginning that it finds in any slot: the prefix cache.

One thread does all of it, and begins with the first program. It knows no torch: `Memory` carries rows out.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from ..errors import AbduceError, EngineError
from .decoding import Feed, Program

if TYPE_CHECKING:
    from .awrs import Vector

T = TypeVar("T")


class Row(NamedTuple):
    """Tokens to feed into a slot from position `start` on. `scored`: as in `Feed`."""

    slot: int
    start: int
    tokens: tuple[int, ...]
    scored: tuple[int, ...]


class Memory(Protocol):
    """The slots, and the model over them."""

    def forward(self, rows: Sequence[Row]) -> "list[Vector]":
        """The reply to each row."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Positions 0 to `length` of one slot into another."""
        ...


class Done(NamedTuple):
    """A program's value, and how many tokens of its prompt were found in a slot."""

    value: Any
    n_cached: int


@dataclass
class _Slot:
    held: tuple[int, ...] = ()
    used: bool = False
    last_used: int = 0


@dataclass(eq=False)
class _Job:
    program: Program[Any]
    n_slots: int
    result: "Future[Done]" = field(default_factory=Future)
    slots: list[int] = field(default_factory=list)  # of the rows of the last batch
    feeds: Sequence[Feed] = ()
    n_cached: int = 0


class Batcher:
    """Runs programs over `n_slots` slots. `reuse`: take over prefixes from other texts."""

    def __init__(self, memory: Memory, n_slots: int, *, reuse: bool = True) -> None:
        self._memory = memory
        self._slots = [_Slot() for _ in range(n_slots)]
        self._reuse = reuse
        self._waiting: list[_Job] = []
        self._running: list[_Job] = []
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._round = 0

    def submit(self, program: Program[Any], n_slots: int) -> "Future[Done]":
        """Run a program that yields at most `n_slots` rows at a time. Cancelling the future ends it."""
        if n_slots > len(self._slots):
            raise EngineError(f"{n_slots} rows at once need slots={n_slots}; there are {len(self._slots)}.")
        job = _Job(program, n_slots)
        with self._change:
            if self._closed:
                raise EngineError("The engine was closed.")
            self._waiting.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="abduce-batcher", daemon=True)
                self._thread.start()
            self._change.notify()
        return job.result

    def close(self) -> None:
        """End the thread after its round; what is in flight fails."""
        with self._change:
            self._closed = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join()

    # ------------------------------------------------------------ the thread

    def _work(self) -> None:
        while True:
            with self._change:
                while not (self._waiting or self._running or self._closed):
                    self._change.wait()
                if self._closed:
                    for job in (*self._waiting, *self._running):
                        self._fail(job, EngineError("The engine was closed."))
                    return
                admitted = self._admitted()
            for job in admitted:
                self._advance(job, None)
            for job in [job for job in self._running if job.result.cancelled()]:
                self._end(job)
            self._go_round()

    def _admitted(self) -> list[_Job]:
        """Waiting jobs there is room for, in order of arrival."""
        self._waiting = [job for job in self._waiting if not job.result.cancelled()]
        room = len(self._slots) - sum(job.n_slots for job in self._running)
        admitted: list[_Job] = []
        while self._waiting and self._waiting[0].n_slots <= room:
            job = self._waiting.pop(0)
            room -= job.n_slots
            admitted.append(job)
            self._running.append(job)
        return admitted

    def _go_round(self) -> None:
        """One batch of the rows of all running jobs."""
        self._round += 1
        jobs = list(self._running)
        try:
            rows = [row for job in jobs for row in self._placed(job)]
            for row in rows:  # only now: nothing may be copied that is still to be computed
                slot = self._slots[row.slot]
                slot.held = (*slot.held[: row.start], *row.tokens)
                slot.last_used = self._round
            replies = self._memory.forward(rows) if rows else []
        except Exception as error:  # such as a GPU out of memory: nobody's rows can be trusted
            for slot in self._slots:
                slot.held = ()
            for job in jobs:
                self._fail(job, EngineError(f"The model failed: {type(error).__name__}: {error}"))
            return
        first = 0
        for job in jobs:
            n = len(job.feeds)
            self._advance(job, replies[first : first + n])
            first += n

    def _advance(self, job: _Job, replies: "list[Vector] | None") -> None:
        try:
            job.feeds = next(job.program) if replies is None else job.program.send(replies)
        except StopIteration as end:
            self._end(job)
            with suppress(InvalidStateError):  # cancelled meanwhile
                job.result.set_result(Done(end.value, job.n_cached))
        except AbduceError as error:
            self._fail(job, error)
        except Exception as error:  # a fault in one program must not stop the others
            self._fail(job, error)

    def _fail(self, job: _Job, error: Exception) -> None:
        self._end(job)
        with suppress(InvalidStateError):
            job.result.set_exception(error)

    def _end(self, job: _Job) -> None:
        if job in self._running:
            self._running.remove(job)
        job.program.close()
        for slot in job.slots:
            self._slots[slot].used = False
        job.slots = []

    # ------------------------------------------------------------ slots

    def _placed(self, job: _Job) -> list[Row]:
        """A slot for each row the job feeds; those of rows that nobody goes on with become free."""
        heirs: dict[int, int] = {}  # of each parent the first row that goes on with it
        for i, feed in enumerate(job.feeds):
            if feed.parent is not None:
                heirs.setdefault(feed.parent, i)
        for place, slot in enumerate(job.slots):
            self._slots[slot].used = place in heirs
        placed: list[int] = [-1] * len(job.feeds)
        for parent, i in heirs.items():
            placed[i] = job.slots[parent]
        rows = []
        for i, feed in enumerate(job.feeds):
            if feed.parent is None:
                placed[i], start = self._beginning(feed)
                job.n_cached = max(job.n_cached, start)
            else:
                parent = job.slots[feed.parent]
                start = len(self._slots[parent].held)
                if placed[i] < 0:
                    placed[i] = self._free()
                    self._memory.copy(parent, placed[i], start)
                    self._slots[placed[i]].held = self._slots[parent].held
            self._slots[placed[i]].used = True
            fed = feed.tokens if feed.parent is not None else feed.tokens[start:]
            rows.append(Row(placed[i], start, fed, feed.scored))
        job.slots = placed
        return rows

    def _beginning(self, feed: Feed) -> tuple[int, int]:
        """A slot for a new text, and how many of its tokens are already there."""
        most = len(feed.tokens) - max(1, len(feed.scored)) if self._reuse else 0
        common = [_common(slot.held, feed.tokens, most) for slot in self._slots]
        longest = max(common)
        free = [i for i, slot in enumerate(self._slots) if not slot.used]
        mine = max(free, key=lambda i: (common[i], -self._slots[i].last_used))
        if longest > common[mine]:
            mine = self._free()
            self._memory.copy(common.index(longest), mine, longest)
            self._slots[mine].held = feed.tokens[:longest]
        return mine, longest

    def _free(self) -> int:
        """The free slot that was not used for longest."""
        free = (i for i, slot in enumerate(self._slots) if not slot.used)
        return min(free, key=lambda i: self._slots[i].last_used)


def _common(a: Sequence[int], b: Sequence[int], most: int) -> int:
    n = min(len(a), len(b), most)
    for i in range(n):
        if a[i] != b[i]:
            return i
    return max(n, 0)
