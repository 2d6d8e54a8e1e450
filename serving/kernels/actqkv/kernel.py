"""ActQKV's probe and page scores in Triton. Two-pass statistics in float32, and no atomics: it repeats."""

import torch
import triton
import triton.language as tl

from ..base import empty

_CHANNELS = 64
_ROWS = 64


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
    summed = probe.float().view(batch, n_kv, n_heads // n_kv, d).sum(2).contiguous()
    scores = empty(batch, width, dtype=torch.float32, device=probe.device)
    _scores_kernel[(batch, triton.cdiv(width, _ROWS))](
        summed, means.contiguous(), page_table.contiguous(), scores, width, n_kv * d,
        ROWS=_ROWS, CHANNELS=_CHANNELS,
    )  # fmt: skip
    return scores


@triton.jit
def _moments_kernel(x, mean, variance, m, d, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    b, channel = tl.program_id(0), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
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


@triton.jit
def _bias_kernel(
    x, mean, variance, floor, partial, m, d, n_tiles, CHANNELS: tl.constexpr, ROWS: tl.constexpr
):
    b, tile = tl.program_id(0), tl.program_id(1)
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


@triton.jit
def _weigh_kernel(x, weights, probe, m, d, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    b, channel = tl.program_id(0), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float32)
    for start in range(0, m, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < m)[:, None] & (channel < d)[None, :]
        value = tl.load(x + (b * m + row[:, None]) * d + channel, mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(value * tl.load(weights + b * m + row, mask=row < m, other=0.0)[:, None], 0)
    tl.store(probe + b * d + channel, total, mask=channel < d)


@triton.jit
def _scores_kernel(
    summed, means, page_table, scores, width, size, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    b, place = tl.program_id(0), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    page = tl.load(page_table + b * width + place, mask=place < width, other=-1).to(tl.int64)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, size, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        q = tl.load(summed + b * size + channel, mask=channel < size, other=0.0)
        mask = (page >= 0)[:, None] & (channel < size)[None, :]
        r = tl.load(means + page[:, None] * size + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(r * q[None, :], 1)
    tl.store(scores + b * width + place, tl.where(page >= 0, total, float("-inf")), mask=place < width)
