"""DeltaLLM 6: a step over runs, a token in 2.5 of 32k, against one over every token."""

from collections.abc import Iterator
from functools import partial

import torch

from abduce.serving.kernels import paged
from abduce.serving.kernels.paged import reference

from .base import Bar, Machine, Part, right
from .pools import Pool, both, us

SHARE, LOCAL, SINK = 0.4, 128, 4  # runs per token; what stays exact: the window, the first tokens


def parts(machine: Machine) -> Iterator[Part]:
    """By batch size."""
    for batch in [2] if machine.small else [1, 8, 32]:
        yield partial(step, machine, batch)
    yield elements


def elements() -> Iterator[Bar]:
    """The other two forms, of which the specification asks no time."""
    yield Bar(
        "DeltaLLM 6: keys as elements that changed, and packed",
        "bytes and products saved, no speed claimed",
        "rows encode, attend_packed and hybrid_attention of the first table",
        None,
    )


def step(machine: Machine, batch: int) -> Iterator[Bar]:
    """The step looks up each run's length and weighs the run by it, as a server's does."""
    n, local = (128, 12) if machine.small else (32_768, LOCAL)
    runs = int(SHARE * n)
    pool = Pool.of(machine, batch, n)
    q, (_, n_kv, _) = pool.queries(batch), pool.k.shape
    k_side, v_side = (torch.empty_like(pool.k[: batch * runs]).normal_() for _ in range(2))
    mass = torch.randint(1, 5, (batch * runs, n_kv), device=machine.device).float()
    listed = torch.randperm(batch * runs, device=machine.device).view(batch, 1, runs)
    exact = torch.cat([pool.table[:, :SINK], pool.table[:, n - local :]], 1)[:, None].long()
    sides = {"k_side": k_side, "v_side": v_side, "mass": mass, "scale": pool.scale}
    attend = partial(paged.decode_beside, q, pool.k, pool.v, exact, side_slots=listed, **sides)
    should = reference.decode_beside(q[:1], pool.k, pool.v, exact[:1], side_slots=listed[:1], **sides)
    right(attend()[0][:1], should[0], 2e-2)
    every = partial(paged.decode, q, pool.k, pool.v, pool.table[:, None], pool.scale)
    (taken, launched), whole = both(machine, attend), machine.replayed(every)
    floor = machine.floor(batch * (pool.n_bytes(runs + local + SINK) + 4 * runs * n_kv))
    yield Bar(
        f"DeltaLLM 6: a step over {runs:,} runs of {n:,} tokens, batch {batch}",
        "≤ 0.55 of every token's",
        f"{taken / whole:.2f}: {us(taken)} (floor {us(floor)}; {launched}) of {us(whole)} "
        f"(floor {us(machine.floor(batch * pool.n_bytes(n)))})",
        machine.verdict(taken <= 0.55 * whole),
    )
