"""Engram 4: a table in the host's memory beside one on the device: bits, waits, hits, tokens a second."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from abduce.serving.kernels.engram import gate, lookup
from abduce.serving.kernels.engram.host_table import Counts, HostTable

from .base import Bar, Machine, Part
from .pools import us

TOKENS, COLUMNS, ROW = 256, 16, 80  # decoded together; rows a token reads; numbers of a row: the paper's 27B
ROWS, KEPT = 4_000_000, 0.05  # of the table; of them on the device, where some are kept
WIDTH, MLP, BEFORE = 4096, 14_336, 14  # of the model, and its layers before the one that reads the table
WARM, TIMED = 100, 48  # steps that fill what is kept, and steps at most that a form is timed with
ON_DEVICE, PREFETCHED, FEW_KEPT = "on the device", "prefetched", f"prefetched, {KEPT:.0%} kept"


class Form(NamedTuple):
    """How rows become e: `begin` before the layers, whose result `end` takes in the layer that reads."""

    begin: Callable[[torch.Tensor], Any]
    end: Callable[[Any], torch.Tensor]
    table: HostTable | None = None


def parts(machine: Machine) -> Iterator[Part]:
    """One: all forms of the table are timed beside each other."""
    yield partial(steps_of_zipf, machine)


def steps_of_zipf(machine: Machine) -> Iterator[Bar]:
    """Steps of tokens whose n-grams follow Zipf's law."""
    small = machine.small
    n_rows, n_tokens = (300, 4) if small else (ROWS, TOKENS)
    trace = zipf(n_rows, (6 if small else WARM + 2 + TIMED) * n_tokens, 1.0).split(n_tokens)
    on_device = torch.empty(n_rows, ROW, device=machine.device, dtype=torch.bfloat16).normal_()
    every = forms(on_device)
    held = every[FEW_KEPT].table
    assert held is not None
    n_warm = 2 if small else WARM
    warm, checked, rest = trace[:n_warm], trace[n_warm : n_warm + 2], trace[n_warm + 2 :]
    for rows in warm:
        held(rows)
    step = Step(machine, n_tokens)
    wanted = [step(every[ON_DEVICE], rows) for rows in checked]
    for name, form in every.items():
        equal = all(bool((step(form, rows) == out).all()) for rows, out in zip(checked, wanted, strict=True))
        yield Bar(
            f"Engram 4: the model's output, table {name}",
            "equal bits",
            "equal" if equal else "NOT equal",
            machine.verdict(equal),
        )
    taken, held.counts = {}, Counts()
    for name, form in every.items():
        steps = iter([*rest] * 20)  # each step reads other rows
        taken[name] = machine.seconds(lambda form=form, steps=steps: step(form, next(steps)))
    first = taken[ON_DEVICE]
    for name, seconds in taken.items():
        wait = seconds / first - 1
        judged = name == PREFETCHED
        yield Bar(
            f"Engram 4: {n_tokens} tokens a step, {BEFORE} layers before, table {name}",
            "< 3 % of the step exposed" if judged else "reported",
            f"{n_tokens / seconds:,.0f} tokens/s, a step {us(seconds)}, {max(0.0, wait):.1%} exposed",
            machine.verdict(wait < 0.03) if judged else None,
        )
    yield Bar(
        f"Engram 4: Zipf's law (exponent 1) over {n_rows:,} rows, {KEPT:.0%} of them kept",
        "reported",
        f"{held.counts.hit_rate:.1%} of a step's distinct rows were there",
        None,
    )
    for form in every.values():
        if form.table is not None:
            form.table.close()


def forms(on_device: torch.Tensor) -> dict[str, Form]:
    """The table on the device; read by the kernel over the bus; fetched by `HostTable` in the layer, before
    the layers, and so with some rows kept."""
    device, table = on_device.device, on_device.cpu()
    table = table.pin_memory() if device.type == "cuda" else table
    plain, ahead = (HostTable(table, device=device) for _ in range(2))
    held = HostTable(table, device=device, n_kept=int(KEPT * len(table)))
    moved = partial(torch.Tensor.to, device=device, non_blocking=True)
    return {
        ON_DEVICE: Form(moved, partial(lookup, on_device)),
        "read over the bus": Form(moved, partial(lookup, table)),
        "fetched in the layer": Form(lambda rows: rows, plain, plain),
        PREFETCHED: Form(ahead.prefetch, ahead.take, ahead),
        FEW_KEPT: Form(held.prefetch, held.take, held),
    }


def zipf(n_rows: int, n_tokens: int, power: float) -> torch.Tensor:
    """Rows of tokens, int64 [tokens, COLUMNS]: the k-th frequent by k^-power, scattered over the table as a
    hash does it."""
    rng = torch.Generator().manual_seed(0)
    weights = torch.arange(1, n_rows + 1, dtype=torch.float64) ** -power
    drawn = torch.multinomial(weights, n_tokens * COLUMNS, True, generator=rng)
    return torch.randperm(n_rows, generator=rng)[drawn].view(n_tokens, COLUMNS)


class Step:
    """Layers of products, one that reads the table, and one more."""

    def __init__(self, machine: Machine, n_tokens: int) -> None:
        width, mlp = (32, 64) if machine.small else (WIDTH, MLP)
        like = {"device": machine.device, "dtype": torch.float32 if machine.small else torch.bfloat16}

        def drawn(*size: int) -> torch.Tensor:
            return torch.empty(size, **like).normal_(std=size[-1] ** -0.5)

        sizes = ((width, width), (width, width), (mlp, width), (mlp, width), (width, mlp))
        self.layers = [[drawn(*size) for size in sizes] for _ in range(4)]  # more than a cache holds
        self.project, self.x = drawn(2 * width, COLUMNS * ROW), drawn(n_tokens, width)
        self.ones = torch.ones(1, width, **like)

    def __call__(self, form: Form, rows: torch.Tensor) -> torch.Tensor:
        """The last layer's output. It begins when the step before has ended, from which the rows follow."""
        if self.x.is_cuda:
            torch.cuda.synchronize()
        ticket = form.begin(rows)
        h = self.x
        for i in range(BEFORE):
            h = self.layer(h, i)
        kv = F.linear(form.end(ticket).to(h.dtype), self.project)
        h = h + gate(h[:, None], kv, self.ones, self.ones)[:, 0]
        return self.layer(h, BEFORE)

    def layer(self, h: torch.Tensor, i: int) -> torch.Tensor:
        """A llama's layer without its attention."""
        a, b, up, across, down = self.layers[i % len(self.layers)]
        h = h + F.linear(F.linear(F.rms_norm(h, h.shape[1:]), a), b)
        normed = F.rms_norm(h, h.shape[1:])
        return h + F.linear(F.silu(F.linear(normed, up)) * F.linear(normed, across), down)
