"""EMS 5: a step over what is left of 32k tokens against its bytes; what scoring a prompt costs."""

from collections.abc import Iterator
from functools import partial

import torch

from abduce.serving.kernels import ems, paged
from abduce.serving.kernels.base import dense
from abduce.serving.kernels.paged import reference

from .base import Bar, Machine, Part, right
from .pools import Pool, both, us

BUDGET, TAIL, WINDOW = 256, 128, 32  # of the method: entries, tokens since at most, queries that score
WIDTH, MLP = 4096, 14_336  # of the layer that a prompt's cost is compared with


def parts(machine: Machine) -> Iterator[Part]:
    """The steps by batch size, then the scoring by length of the prompt."""
    for batch in [2] if machine.small else [1, 16, 64, 256]:
        yield partial(step, machine, batch)
    for n in [64] if machine.small else [8192, 32_768]:
        yield partial(scoring, machine, n)


def step(machine: Machine, batch: int) -> Iterator[Bar]:
    """One softmax over entries in a pool of their own and the tokens since, by one kernel."""
    n, budget, tail = (128, 40, 20) if machine.small else (32_768, BUDGET, TAIL)
    pool = Pool.of(machine, batch, n)
    q = pool.queries(batch)
    k_side, v_side = (torch.empty_like(pool.k[: batch * budget]).normal_() for _ in range(2))
    entries = torch.randperm(batch * budget, device=machine.device).view(batch, 1, budget)
    since = pool.table[:, None, n - tail :].long().contiguous()  # as a step lists them
    sides = {"k_side": k_side, "v_side": v_side, "mass": None, "scale": pool.scale}
    attend = partial(paged.decode_beside, q, pool.k, pool.v, since, side_slots=entries, **sides)
    should = reference.decode_beside(q[:1], pool.k, pool.v, since[:1], side_slots=entries[:1], **sides)
    right(attend()[0][:1], should[0], 2e-2)
    every = partial(paged.decode, q, pool.k, pool.v, pool.table[:, None], pool.scale)
    floor = machine.floor(batch * pool.n_bytes(budget + tail))
    taken, launched = both(machine, attend)
    yield Bar(
        f"EMS 5: a step's attention, {n:,} tokens held, batch {batch}",
        "≤ 1.5 × the floor by bytes",
        f"{us(taken)} = {taken / floor:.2f} × {us(floor)}; {launched}; "
        f"the whole cache {us(machine.replayed(every))}",
        machine.verdict(taken <= 1.5 * floor),
    )


def scoring(machine: Machine, n: int) -> Iterator[Bar]:
    """What a layer's scores and entries cost once a prompt, beside the layer itself."""
    device, width, mlp = machine.device, *((64, 128) if machine.small else (WIDTH, MLP))
    n_kv, group, d = (2, 2, 16) if machine.small else (8, 4, 128)
    dtype = torch.float32 if machine.small else torch.bfloat16
    q, k, v = (torch.randn(n, heads, d, device=device, dtype=dtype) for heads in (n_kv * group, n_kv, n_kv))
    x = torch.randn(n, width, device=device, dtype=dtype)
    hidden = torch.randn(n, mlp, device=device, dtype=dtype)
    heads = n_kv * (group + 2) * d
    weights = [torch.randn(width, out, device=device, dtype=dtype) for out in (heads, width, mlp, mlp)]
    down = torch.randn(mlp, width, device=device, dtype=dtype)
    config = ems.Config(BUDGET, WINDOW) if not machine.small else ems.Config(24, 8)

    def score() -> torch.Tensor:
        return ems.score(q, k, config, d**-0.5)

    def compress() -> None:
        ems.compress(k, v, s, config)

    def products() -> None:
        for weight in weights:
            x @ weight
        hidden @ down

    s = score()
    total, _ = ems.column_sums(q, k, config.window, d**-0.5)
    right(total.sum(1), torch.full((n_kv,), float(n), device=device), 1e-3)  # each query gives 1 away
    attention = machine.seconds(partial(dense, q, k, v))
    layer = attention + machine.seconds(products)
    scores, entries = machine.seconds(score), machine.seconds(compress)
    yield Bar(
        f"EMS 5: scoring a prompt of {n:,} tokens, a layer",
        "reported",
        f"{us(scores)}: {scores / attention:.0%} of its attention (SDPA), {scores / layer:.0%} of the "
        f"prefill of a layer of width {width}; with making the entries, {(scores + entries) / layer:.0%}",
        None,
    )
