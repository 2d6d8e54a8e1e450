"""ActQKV 7: a step over chosen pages of 128k tokens, what choosing costs of it, and a long answer."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from abduce.serving.kernels import actqkv, paged
from abduce.serving.kernels.actqkv import reference
from abduce.serving.kernels.paged import reference as paged_reference

from .base import Bar, Machine, Part, right
from .pools import Pool, both, us

BUDGET, FIRST, LAST = 2048, 128, 1024  # tokens that are chosen, and always read at both ends


class Reading(NamedTuple):
    """A step's calls: pages are scored by the step's own query and chosen, then attended."""

    choose: Callable[[], Any]
    attend: Callable[[], Any]
    step: Callable[[], Any]
    dense: Callable[[], Any]


def parts(machine: Machine) -> Iterator[Part]:
    """By batch size and size of a page, then the long answer."""
    for page in [16] if machine.small else [128, 64]:
        for batch in [2] if machine.small else [1, 8, 32]:
            yield partial(of_step, machine, batch, page)
    yield partial(long_answer, machine)


def reading(machine: Machine, pool: Pool, batch: int, n: int, page: int) -> Reading:
    """The calls of a step of `batch` sequences that hold n tokens each."""
    budget, first, last = (32, 16, 48) if machine.small else (BUDGET, FIRST, LAST)
    places, device = n // page, machine.device
    sizes = {"page": page, "n_first": first // page, "n_last": last // page}
    sizes["width"] = sizes["n_first"] + budget // page + sizes["n_last"]
    means = torch.empty(batch * places, *pool.k.shape[1:], device=device, dtype=pool.k.dtype).normal_()
    pages = torch.randperm(batch * places, device=device).view(batch, places)
    q, rows = pool.queries(batch), torch.arange(batch, device=device)
    n_tokens, k = (torch.full((batch,), x, device=device) for x in (n, budget // page))
    listed = pool.table[:batch, None, :n].contiguous()

    def choose() -> torch.Tensor:
        scores = actqkv.page_scores(q, means, pages)
        return actqkv.chosen_slots(scores, n_tokens, k, pool.table, rows, **sizes)

    def attend(slots: torch.Tensor) -> torch.Tensor:
        return paged.decode(q, pool.k, pool.v, slots, pool.scale)[0]

    scores, slots = actqkv.page_scores(q, means, pages), choose()
    right(scores, reference.page_scores(q, means, pages), 1e-4)
    right(slots, reference.chosen_slots(scores, n_tokens, k, pool.table, rows, **sizes), 0.0)
    should, _ = paged_reference.decode(q[:1], pool.k, pool.v, slots[:1], pool.scale)
    right(attend(slots)[:1], should, 2e-2)
    return Reading(choose, partial(attend, slots), lambda: attend(choose()), partial(attend, listed))


def of_step(machine: Machine, batch: int, page: int) -> Iterator[Bar]:
    """The two points of a step."""
    n = 512 if machine.small else 131_072
    pool = Pool.of(machine, batch, n)
    calls = reading(machine, pool, batch, n, page)
    (choose, choose_launched), (step, step_launched) = both(machine, calls.choose), both(machine, calls.step)
    attend, dense = machine.replayed(calls.attend), machine.replayed(calls.dense)
    what = f"{n:,} tokens in pages of {page}, batch {batch}"
    yield Bar(
        f"ActQKV 7: a step's attention, {what}",
        "< 0.25 of every token's",
        f"{step / dense:.3f}: {us(step)} ({step_launched}) of {us(dense)} "
        f"(floor {us(machine.floor(batch * pool.n_bytes(n)))})",
        machine.verdict(step < 0.25 * dense),
    )
    yield Bar(
        f"ActQKV 7: scores and index, {what}",
        "< 0.30 of the sparse attention",
        f"{choose / attend:.2f}: {us(choose)} ({choose_launched}) beside {us(attend)}",
        machine.verdict(choose < 0.3 * attend),
    )


def long_answer(machine: Machine) -> Iterator[Bar]:
    """A prompt of 4k tokens that is answered by 16k: the layer's steps added up, timed every so many."""
    start, end, stride, page = (128, 256, 64, 16) if machine.small else (4096, 20_480, 1024, 128)
    pool = Pool.of(machine, 1, end)
    middles = range(start + stride // 2, end, stride)
    sparse = whole = sparse_launched = whole_launched = 0.0
    for n in middles:
        calls = reading(machine, pool, 1, n, page)
        sparse += machine.replayed(calls.step) * stride
        whole += machine.replayed(calls.dense) * stride
        sparse_launched += machine.seconds(calls.step) * stride
        whole_launched += machine.seconds(calls.dense) * stride
    keys = pool.k[:page][None]
    filled = torch.full((1,), page, device=machine.device)
    mean = machine.seconds(partial(actqkv.page_means, keys, filled)) * (end - start) / page
    yield Bar(
        f"ActQKV 7: {start:,} tokens answered by {end - start:,}, one sequence, a layer",
        "reported",
        f"{sparse:.2f} s (launched {sparse_launched:.2f} s), every token read {whole:.2f} s (launched "
        f"{whole_launched:.2f} s); the means of its new pages {mean * 1e3:.1f} ms",
        None,
    )
