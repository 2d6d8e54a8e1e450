"""Local linear attention as a layer: projections, a ridge that each head learns, a cache for decoding.

    q, k, v = x Wq, x Wk, x Wv      λ_h = 1e-4 + softplus(raw_h)      y = flash_lla(q, k, v, λ) Wo

Takes the place of a transformer's causal self-attention. The projections have the names that transformers
gives them in Llama-like models, so their weights load; with a large ridge the layer is that attention.
"""

from dataclasses import dataclass
from math import expm1, log

import torch
from torch import nn
from torch.nn import functional as F

from . import decode, flash_lla

LEAST_RIDGE = 1e-4


@dataclass
class Cache:
    """Keys and values of what a layer has read, [batch, room, kv_heads, head_dim], up to `length`."""

    k: torch.Tensor
    v: torch.Tensor
    length: int = 0

    def extend(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write behind what is there. Raises ValueError where the room is spent."""
        end = self.length + k.shape[1]
        if end > self.k.shape[1]:
            raise ValueError(
                f"local linear attention: the cache has room for {self.k.shape[1]} tokens, got {end}. "
                f"Write layer.cache(batch, {end})."
            )
        self.k[:, self.length : end], self.v[:, self.length : end] = k, v
        self.length = end


class LocalLinearAttention(nn.Module):  # type: ignore[misc,unused-ignore]
    """Causal self-attention on x [batch, tokens, width].

    `ridge` is where each head's λ starts: 10 is near softmax, 0.1 near a local regression (the source's code
    has 10 as its default and 0.1 in its first example). `window` > 0 attends to the last `window` tokens.
    `scale` is that of the logits, head_dim ** -0.5 if not given.
    """

    def __init__(
        self,
        width: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        ridge: float = 1.0,
        window: int = 0,
        scale: float | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        n_kv_heads, head_dim = n_kv_heads or n_heads, head_dim or width // n_heads
        if n_heads % n_kv_heads:
            raise ValueError(
                f"local linear attention: {n_heads} heads do not share {n_kv_heads} KV heads evenly. "
                f"Write a divisor of {n_heads}."
            )
        if ridge <= LEAST_RIDGE:
            raise ValueError(f"local linear attention: the ridge must be above {LEAST_RIDGE}, got {ridge}.")
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.window, self.scale = window, head_dim**-0.5 if scale is None else scale
        self.q_proj = nn.Linear(width, n_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(width, n_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(width, n_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(n_heads * head_dim, width, bias=bias)
        self.raw_ridge = nn.Parameter(torch.full((n_heads,), _before_softplus(ridge - LEAST_RIDGE)))

    @property
    def ridge(self) -> torch.Tensor:
        """λ of each head, [heads], float32 or wider, never below `LEAST_RIDGE`."""
        raw = self.raw_ridge
        return LEAST_RIDGE + F.softplus(raw.to(torch.promote_types(raw.dtype, torch.float32)))

    def cache(self, batch: int, room: int) -> Cache:
        """An empty cache for `room` tokens of `batch` sequences of equal length."""
        weight = self.k_proj.weight
        k, v = (weight.new_zeros(batch, room, self.n_kv_heads, self.head_dim) for _ in range(2))
        return Cache(k, v)

    def forward(
        self,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """y as x. `rotary`: cosines and sines of x's positions, [batch or 1, tokens, head_dim], halves paired
        as in Llama. With a `cache` x follows what is in it and is added; one token alone takes `decode`.

        Gradients do not pass through a cache.
        """
        q = self.q_proj(x).unflatten(-1, (self.n_heads, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (self.n_kv_heads, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (self.n_kv_heads, self.head_dim))
        if rotary is not None:
            q, k = _rotated(q, *rotary), _rotated(k, *rotary)
        if cache is None:
            o = flash_lla(q, k, v, self.ridge, self.scale, self.window)
        else:
            cache.extend(k, v)
            o = self._cached(q, cache)
        y: torch.Tensor = self.o_proj(o.flatten(2))
        return y

    def _cached(self, q: torch.Tensor, cache: Cache) -> torch.Tensor:
        if q.shape[1] > 1:
            k, v = cache.k[:, : cache.length], cache.v[:, : cache.length]
            return flash_lla(q, k, v, self.ridge, self.scale, self.window)
        first = max(cache.length - self.window, 0) if self.window else 0
        begin = torch.arange(len(q), device=q.device)[:, None, None] * cache.k.shape[1]
        slots = begin + torch.arange(first, cache.length, device=q.device)
        k, v = cache.k.flatten(0, 1), cache.v.flatten(0, 1)
        return decode(q[:, 0], k, v, slots, self.ridge, self.scale)[:, None]


def _before_softplus(y: float) -> float:
    return y if y > 20 else log(expm1(y))


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, -1)
    return x * cos[:, :, None] + torch.cat([-right, left], -1) * sin[:, :, None]
