"""Engram's table in the host's memory: rows are fetched while earlier layers compute, the frequent ones kept.

    prefetch(rows) ──► a thread: rows that are kept │ rows gathered from the table into staging ──► device
    take(ticket)   ──► e, after a wait that is counted

Rows follow from token ids alone, so `prefetch` can be called before the forward, and `take` in the layer.
Values are copied, never rounded: the result equals `lookup` bit for bit. Texts follow Zipf's law, so keeping
the rows used last on the device saves most of the copies.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import torch


@dataclass
class Counts:
    """`asked`: rows, each call's equal ones once. `wait_s`: time that `take` stood still."""

    asked: int = 0
    hits: int = 0
    copied_bytes: int = 0
    wait_s: float = 0.0

    @property
    def hit_rate(self) -> float:
        """Share of rows that were on the device."""
        return self.hits / self.asked if self.asked else 0.0


class HostTable:
    """A table [rows, width] that stays where it is, and `n_kept` of its rows on `device`.

    Fetches are carried out one after another, in the order of `prefetch`. Not for several threads at once.
    """

    def __init__(self, table: torch.Tensor, *, device: torch.device | str = "cpu", n_kept: int = 0) -> None:
        self.device, self.counts = torch.device(device), Counts()
        self._on_gpu = self.device.type == "cuda"
        self._table = table.pin_memory() if self._on_gpu else table
        self._stream = torch.cuda.Stream(self.device) if self._on_gpu else None
        with torch.cuda.stream(self._stream):  # memory of the stream that will write to it
            self._kept = torch.empty(n_kept, table.shape[1], dtype=table.dtype, device=self.device)
        self._slot_of = torch.full((len(table),), -1, dtype=torch.int32)  # row → its slot in `_kept`
        self._row_of = torch.full((n_kept,), -1, dtype=torch.int64)
        self._used = torch.zeros(n_kept, dtype=torch.int64)  # when a slot was last read
        self._now = 0
        self._thread = ThreadPoolExecutor(1, "engram")

    @property
    def n_bytes(self) -> int:
        """Of the table on the host."""
        return self._table.numel() * self._table.element_size()

    def prefetch(self, rows: torch.Tensor) -> "Future[_Fetched]":
        """Begin to fetch rows int64 [tokens, columns]; the ticket is for `take`. Rows that are on a GPU are
        waited for here: better compute them on the host."""
        return self._thread.submit(self._fetch, rows.cpu())

    def take(self, ticket: "Future[_Fetched]") -> torch.Tensor:
        """e [tokens, columns · width], on the device."""
        begun = perf_counter()
        fetched = ticket.result()
        self.counts.wait_s += perf_counter() - begun
        if fetched.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(fetched.copied)
            fetched.e.record_stream(torch.cuda.current_stream(self.device))
        return fetched.e

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Fetch and take at once."""
        return self.take(self.prefetch(rows))

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    @torch.no_grad()
    def _fetch(self, rows: torch.Tensor) -> "_Fetched":
        with torch.cuda.stream(self._stream):
            distinct, place = rows.unique(return_inverse=True)
            slots = self._slot_of[distinct].long()
            there, absent = (slots >= 0).nonzero()[:, 0], (slots < 0).nonzero()[:, 0]
            kept, missing = slots[there], distinct[absent]
            parts = torch.empty(
                len(distinct), self._table.shape[1], dtype=self._table.dtype, device=self.device
            )
            new = self._table[missing]
            if self._on_gpu:
                new = new.pin_memory().to(self.device, non_blocking=True)
            parts[there.to(self.device)] = self._kept[kept.to(self.device)]
            parts[absent.to(self.device)] = new
            self._keep(kept, missing, new)
            e = parts[place.to(self.device)].flatten(1)
            self.counts.asked += len(distinct)
            self.counts.hits += len(kept)
            self.counts.copied_bytes += new.numel() * new.element_size()
            return _Fetched(e, self._stream.record_event() if self._stream else None)

    def _keep(self, read: torch.Tensor, missing: torch.Tensor, new: torch.Tensor) -> None:
        """Note what was read, and put new rows in place of those used longest ago."""
        self._now += 1
        self._used[read] = self._now
        n = min(len(missing), len(self._used))
        if not n:
            return
        slots = self._used.topk(n, largest=False).indices
        slots = slots[self._used[slots] < self._now]  # what this call read stays
        n = len(slots)
        old = self._row_of[slots]
        self._slot_of[old[old >= 0]] = -1
        self._slot_of[missing[:n]] = slots.to(torch.int32)
        self._row_of[slots], self._used[slots] = missing[:n], self._now
        self._kept[slots.to(self.device)] = new[:n]


@dataclass(frozen=True)
class _Fetched:
    e: torch.Tensor
    copied: "torch.cuda.Event | None"
