"""ActQKV's probe, page scores and selection in Triton. Statistics in two passes, no atomics: it repeats."""

import torch
import triton
import triton.language as tl

from ..base import empty
from . import reference

_CHANNELS = 64
_ROWS = 64
_PAGES = 8  # whose means a program has under way at once
_PLACES = 8192  # the most that one program can rank


def probe_query(x: torch.Tensor, power: float = 1.0) -> torch.Tensor:
    """As `reference.probe_query`, for x [batch, m, D]."""
    batch, m, d = x.shape
    x = x.contiguous()
    n_tiles = triton.cdiv(d, _CHANNELS)
    variance = empty(batch, d, dtype=torch.float32, device=x.device)
    mean = empty(batch, d, dtype=torch.float32, device=x.device)
    partial = empty(batch, n_tiles, m, dtype=torch.float32, device=x.device)
    probe = empty(batch, d, dtype=x.dtype, device=x.device)
    tiles = {"CHANNELS": _CHANNELS, "ROWS": _ROWS}
    _moments_kernel[(batch, n_tiles)](x, mean, variance, m, d, **tiles)
    floor = 1e-12 * variance.amax(-1) + 1e-30
    _bias_kernel[(batch, n_tiles)](x, mean, variance, floor, partial, m, d, n_tiles, **tiles)
    weights = (partial.sum(1) / d) ** power
    total = weights.sum(-1, keepdim=True)
    weights = torch.where(total > 0, weights / total.clamp_min(1e-30), 1.0 / m).contiguous()
    _weigh_kernel[(batch, n_tiles)](x, weights, probe, m, d, **tiles)
    return probe


def page_scores(probe: torch.Tensor, means: torch.Tensor, page_table: torch.Tensor) -> torch.Tensor:
    """As `reference.page_scores`; each mean is read once."""
    batch, n_heads, d = probe.shape
    n_kv, width = means.shape[1], page_table.shape[1]
    scores = empty(batch, width, dtype=torch.float32, device=probe.device)
    _scores_kernel[(batch, triton.cdiv(width, _PAGES))](
        probe.contiguous(), means.contiguous(), page_table.contiguous(), scores, width, d, n_kv * d,
        G=n_heads // n_kv, ROWS=_PAGES, CHANNELS=min(1024, triton.next_power_of_2(n_kv * d)),
    )  # fmt: skip
    return scores


def chosen_slots(
    scores: torch.Tensor, n_tokens: torch.Tensor, k: torch.Tensor, table: torch.Tensor, rows: torch.Tensor, *,
    page: int, width: int, n_first: int, n_last: int,
) -> torch.Tensor:  # fmt: skip
    """As `reference.chosen_slots`: one program per sequence finds the lowest score that is chosen, digit by
    digit, and looks up the slots of what is not below it."""
    batch, places = scores.shape
    sizes = {"page": page, "width": width, "n_first": n_first, "n_last": n_last}
    if places > _PLACES:
        return reference.chosen_slots(scores, n_tokens, k, table, rows, **sizes)
    selected = empty(batch, width, dtype=torch.int32, device=scores.device)
    slots = empty(batch, 1, width * page, dtype=table.dtype, device=scores.device)
    _choose_kernel[(batch,)](
        scores.float().contiguous(), n_tokens.contiguous(), k.contiguous(), table, rows.contiguous(),
        selected, slots, places, table.stride(0), **sizes, PLACES=triton.next_power_of_2(places),
        BLOCK=min(4096, triton.next_power_of_2(width * page)), num_warps=8,
    )  # fmt: skip
    return slots


@triton.jit(do_not_specialize=["m"])
def _moments_kernel(x, mean, variance, m, d, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    b, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float32)
    for start in range(0, m, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < m)[:, None] & (channel < d)[None, :]
        total += tl.sum(
            tl.load(x + (b * m + row[:, None]) * d + channel, mask=mask, other=0.0).to(tl.float32), 0
        )
    middle = total / m
    square = tl.zeros([CHANNELS], tl.float32)
    for start in range(0, m, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < m)[:, None] & (channel < d)[None, :]
        value = tl.load(x + (b * m + row[:, None]) * d + channel, mask=mask, other=0.0).to(tl.float32)
        away = tl.where(mask, value - middle[None, :], 0.0)
        square += tl.sum(away * away, 0)
    tl.store(mean + b * d + channel, middle, mask=channel < d)
    tl.store(variance + b * d + channel, square / tl.maximum(m - 1, 1), mask=channel < d)


@triton.jit(do_not_specialize=["m"])
def _bias_kernel(
    x, mean, variance, floor, partial, m, d, n_tiles, CHANNELS: tl.constexpr, ROWS: tl.constexpr
):
    b, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tile * CHANNELS + tl.arange(0, CHANNELS)
    middle = tl.load(mean + b * d + channel, mask=channel < d, other=0.0)
    var = tl.load(variance + b * d + channel, mask=channel < d, other=0.0)
    safe = var + tl.load(floor + b)
    for start in range(0, m, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < m)[:, None] & (channel < d)[None, :]
        value = tl.load(x + (b * m + row[:, None]) * d + channel, mask=mask, other=0.0).to(tl.float32)
        away = value - middle[None, :]
        bias = tl.where(mask & (var > 0)[None, :], away * away / safe[None, :], 0.0)
        tl.store(partial + (b * n_tiles + tile) * m + row, tl.sum(bias, 1), mask=row < m)


@triton.jit(do_not_specialize=["m"])
def _weigh_kernel(x, weights, probe, m, d, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    b, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float32)
    for start in range(0, m, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < m)[:, None] & (channel < d)[None, :]
        value = tl.load(x + (b * m + row[:, None]) * d + channel, mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(value * tl.load(weights + b * m + row, mask=row < m, other=0.0)[:, None], 0)
    tl.store(probe + b * d + channel, total, mask=channel < d)


@triton.jit(do_not_specialize=["width"])
def _scores_kernel(
    probe, means, page_table, scores, width, d, size,
    G: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    b, place = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    page = tl.load(page_table + b * width + place, mask=place < width, other=-1).to(tl.int64)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, size, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        mask = (page >= 0)[:, None] & (channel < size)[None, :]
        r = tl.load(means + page[:, None] * size + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        q = tl.zeros([CHANNELS], tl.float32)
        for g in tl.static_range(G):
            of_head = probe + b * size * G + (channel // d * G + g) * d + channel % d
            q += tl.load(of_head, mask=channel < size, other=0.0).to(tl.float32)
        total += tl.sum(r * q[None, :], 1)
    tl.store(scores + b * width + place, tl.where(page >= 0, total, float("-inf")), mask=place < width)


@triton.jit(do_not_specialize=["places", "width"])
def _choose_kernel(
    scores, n_tokens, k, table, rows, selected, slots, places, table_s, page, width, n_first, n_last,
    PLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, place = tl.program_id(0), tl.arange(0, PLACES)
    n = tl.load(n_tokens + b).to(tl.int32)
    n_pages = (n + page - 1) // page
    used = (place < n_pages) & (place < places)
    kept = used & ((place < n_first) | (place >= n_pages - n_last))
    between = used & (place >= n_first) & (place < n_pages - n_last)
    score = tl.load(scores + b * places + place, mask=between, other=0.0)
    score = tl.where(score == 0, 0.0, score)  # of either sign
    bits = score.to(tl.int32, bitcast=True)
    # As integers in the order of the scores; the least of all for what cannot be chosen.
    rank = tl.where(between, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), -2147483648)
    n_best = tl.load(k + b).to(tl.int32)

    # The lowest rank that is chosen: the highest that n_best places reach, found two bits at a time.
    lowest = tl.full([], -2147483648, tl.int32)
    for i in range(16):
        unit = tl.full([], 1, tl.int32) << (30 - 2 * i)
        one, two, three = lowest + unit, lowest + unit + unit, lowest + unit + unit + unit
        counts = tl.sum((rank >= one).to(tl.int32) + ((rank >= two).to(tl.int32) << 16), 0)  # two in a sum
        lowest = tl.where((counts & 0xFFFF) >= n_best, one, lowest)
        lowest = tl.where((counts >> 16) >= n_best, two, lowest)
        lowest = tl.where(tl.sum((rank >= three).to(tl.int32), 0) >= n_best, three, lowest)
    above = rank > lowest
    equal = between & (rank == lowest)
    n_equal = n_best - tl.sum(above.to(tl.int32), 0)
    chosen = kept | above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= n_equal))

    at = tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(selected + b * width + at, place, mask=chosen & (at < width))
    tl.debug_barrier()  # other threads read what this one has stored
    n_chosen = tl.minimum(tl.sum(chosen.to(tl.int32), 0), width)
    row = tl.load(rows + b).to(tl.int64)
    for start in range(0, width * page, BLOCK):
        to = start + tl.arange(0, BLOCK)
        there = to // page < n_chosen
        position = tl.load(selected + b * width + to // page, mask=there, other=0) * page + to % page
        slot = tl.load(table + row * table_s + position, mask=there & (position < n), other=-1)
        tl.store(slots + b * width * page + to, slot, mask=to < width * page)
