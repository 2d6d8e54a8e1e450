"""Hogwild 9: attention and tokens a second of a group of workers, beside those of one."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from abduce.serving.kernels import paged
from abduce.serving.kernels.hogwild import kernel, reference
from abduce.serving.kernels.hogwild.suite import blocks

from .base import Bar, Machine, Part, right
from .pools import us

STEP, HEADER = 200, 8  # tokens of a worker's unfinished step, about, and of a heading
ASKED = {2: 1.6, 4: 2.8}  # tokens a second of a group, in those of one worker
LAYERS, WIDTH, MLP = 4, 4096, 14_336  # of the model that takes a step: 32 heads of 128, 8 KV heads

Attend = Callable[..., torch.Tensor]


def parts(machine: Machine) -> Iterator[Part]:
    """Attention over a long common block, then steps of a model, by the length of the common block."""
    yield partial(attention, machine)
    for n in [20] if machine.small else [8192, 16_384]:
        yield partial(throughput, machine, n)


def attention(machine: Machine) -> Iterator[Bar]:
    """Two and four workers beside one, and beside ordinary decoding over the common block alone."""
    n = 70 if machine.small else 16_384
    taken = {}
    for n_workers in (1, *ASKED):
        call = workers(machine, n_workers, n)
        right(kernel.attend(**call), reference.attend(**call), 2e-2)
        taken[n_workers] = machine.replayed(partial(kernel.attend, **call))
    q, common = call["q"][0], call["slots"][:1, None].contiguous()  # no worker's slots are more
    alone = machine.replayed(partial(paged.decode, q, call["k_pool"], call["v_pool"], common, call["scale"]))
    for n_workers in ASKED:
        ratio = taken[n_workers] / taken[1]
        yield Bar(
            f"Hogwild 9: attention of {n_workers} workers over a common block of {n:,}",
            "< 1.3 of one worker's",
            f"{ratio:.2f}: {us(taken[n_workers])} of {us(taken[1])}; {taken[n_workers] / alone:.2f} of "
            f"paged.decode over the common block, {us(alone)}",
            machine.verdict(ratio < 1.3),
        )


def throughput(machine: Machine, n: int) -> Iterator[Bar]:
    """Steps of a model with random weights, from a CUDA graph and as Python launches them."""
    model = Model(machine)
    clocks = {"from a CUDA graph": machine.replayed, "launched": machine.seconds}
    taken: dict[tuple[int, str], float] = {}
    for n_workers in (1, *ASKED):
        call = workers(machine, n_workers, n)
        step = model.step_of(call)
        right(step(kernel.attend), step(reference.attend), 3e-2)
        for name, clock in clocks.items():
            taken[n_workers, name] = clock(partial(step, kernel.attend))
    for n_workers, asked in ASKED.items():
        for name in clocks:
            one, group = taken[1, name], taken[n_workers, name]
            gain = n_workers * one / group
            yield Bar(
                f"Hogwild 9: tokens/s of {n_workers} workers, prefix {n:,}, {LAYERS} layers {name}",
                f"≥ {asked} of one worker's",
                f"{gain:.2f}: {n_workers / group:,.0f} tokens/s, a step {us(group)} of {us(one)}",
                machine.verdict(gain >= asked),
            )


def workers(machine: Machine, n_workers: int, common: int) -> dict[str, Any]:
    """Arguments of a step's attention. Each worker sees the common block, the others' steps and its own."""
    own = range(3, 3 + n_workers)
    views = [[0, 1, *(other for other in own if other != mine), 2, mine] for mine in own]
    step, header = (5, 2) if machine.small else (STEP, HEADER)
    lengths = [common, header, header, *(step + 7 * w for w in range(n_workers))]
    shape = (1, 4, 16) if machine.small else (8, 4, 128)
    dtype = torch.float32 if machine.small else torch.bfloat16
    return blocks(views, lengths, 1, *shape, dtype, machine.device)


class Model:
    """A llama's layers with random weights: what a step costs does not depend on what was learnt."""

    def __init__(self, machine: Machine) -> None:
        width, mlp = (64, 128) if machine.small else (WIDTH, MLP)
        heads, kv = (64, 16) if machine.small else (WIDTH, 1024)
        like = {"device": machine.device, "dtype": torch.float32 if machine.small else torch.bfloat16}
        self.width = width
        sizes = {
            "q": (heads, width), "k": (kv, width), "v": (kv, width), "o": (width, heads),
            "gate": (mlp, width), "up": (mlp, width), "down": (width, mlp),
        }  # fmt: skip
        self.layers = [
            {name: torch.empty(size, **like).normal_(std=size[1] ** -0.5) for name, size in sizes.items()}
            for _ in range(1 if machine.small else LAYERS)
        ]

    def step_of(self, call: dict[str, Any]) -> Callable[[Attend], torch.Tensor]:
        """One token of each worker through all layers; a call's arguments say what is there already. Each
        layer has pools of its own, into which the new keys and values are written."""
        (n_workers, _, n_heads, d), n_kv = call["q"].shape, call["k_pool"].shape[1]
        pools = [{name: call[name].clone() for name in ("k_pool", "v_pool")} for _ in self.layers]
        rest = {name: call[name] for name in ("slots", "loc", "frequency", "scale")}
        x = call["q"].new_empty(n_workers, self.width).normal_()
        own = rest["slots"][3:]
        last = (own >= 0).sum(1) - 1
        new = own.gather(1, last[:, None])[:, 0].long()
        angle = last[:, None, None] * rest["frequency"].float()
        norm = partial(F.rms_norm, normalized_shape=(self.width,))

        def step(attend: Attend) -> torch.Tensor:
            h = x
            for weights, pool in zip(self.layers, pools, strict=True):
                w = partial(_projected, norm(h), weights)
                key = reference.rotate(w("k").view(n_workers, n_kv, d), angle)
                pool["k_pool"].index_copy_(0, new, key)
                pool["v_pool"].index_copy_(0, new, w("v").view(n_workers, n_kv, d))
                seen = attend(w("q").view(n_workers, 1, n_heads, d), **pool, **rest)
                h = h + F.linear(seen.reshape(n_workers, -1), weights["o"])
                w = partial(_projected, norm(h), weights)
                h = h + F.linear(F.silu(w("gate")) * w("up"), weights["down"])
            return h

        return step


def _projected(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return F.linear(x, weights[name])
