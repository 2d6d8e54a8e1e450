"""Local linear attention in plain PyTorch: for each query a weighted ridge regression of values on keys.

    p_j = softmax_j(c q·k_j),  k̄ = Σ p k,  v̄ = Σ p v,  C = Σ p (k - k̄)(k - k̄)ᵀ + λ I
    η = C⁻¹ (k̄ - q),  a_j = (k_j - k̄)·η,   o = Σ_j p_j (1 - a_j) v_j = v̄ - Cov_p(v, k) η

This centred form equals the published one (the intercept of min Σ w |v - b - W(k - q)|² + λ ω |W|²), without
its small denominator. λ → ∞ is softmax attention; c → 0, λ → 0 is least squares. Source: "Local Linear
Attention: An Optimal Interpolation of Linear and Softmax Attention for Test-Time Regression", arXiv
2510.01450; the centred form and its backward are this project's.
"""

from typing import Literal

import torch


def flash_lla(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lam: torch.Tensor, scale: float, window: int = 0
) -> torch.Tensor:
    """o as q; causal, and with `window` > 0 over the last `window` keys only.

    q [batch, n_q, heads, head_dim] at the last n_q of n positions; k, v [batch, n, kv_heads, head_dim];
    lam > 0, [heads] or [batch, n_q, heads].
    """
    return solved(q, k, v, lam, scale, window)


def solved(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lam: torch.Tensor,
    scale: float,
    window: int = 0,
    *,
    form: Literal["centred", "published"] = "centred",
    iterations: int = 0,
) -> torch.Tensor:
    """As `flash_lla`, in either form, solved directly or by `iterations` of conjugate gradients (not 0)."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[2] // k.shape[2]
    q_, k_, v_ = (x.to(wide).transpose(1, 2) for x in (q, k, v))
    k_, v_ = k_.repeat_interleave(group, 1), v_.repeat_interleave(group, 1)
    ridge = lam.to(wide).expand(q.shape[:3]).transpose(1, 2)[..., None]
    p = torch.softmax((q_ @ k_.transpose(2, 3) * scale).masked_fill(hidden(q, k, window), -torch.inf), -1)
    if form == "published":
        return _published(p, q_, k_, v_, ridge).transpose(1, 2).to(q.dtype)
    middle = k_.mean(2, keepdim=True)  # what all keys share would cancel in the covariance
    q_, k_ = q_ - middle, k_ - middle
    mean = p @ k_
    if iterations:
        eta, _ = conjugate_gradient(p, k_, mean, ridge, mean - q_, iterations)
    else:
        eta = torch.linalg.solve(_covariance(p, k_, mean, ridge), mean - q_)
    a = eta @ k_.transpose(2, 3) - (eta * mean).sum(-1, keepdim=True)
    return (p * (1 - a) @ v_).transpose(1, 2).to(q.dtype)


def conjugate_gradient(
    p: torch.Tensor,
    k: torch.Tensor,
    mean: torch.Tensor,
    ridge: torch.Tensor,
    b: torch.Tensor,
    iterations: int,
    enough: float = 1e-12,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x with C x = b, by products with C alone, and how many of them each row took.

    A row stops at |r|² ≤ enough · max(1e-12, |b|²). p [..., n_q, n], k [..., n, head_dim], the rest
    [..., n_q, head_dim or 1]; the second result [..., n_q].
    """
    x, r = torch.zeros_like(b), b
    direction, rr = r, (r * r).sum(-1, keepdim=True)
    limit = enough * rr.clamp_min(1e-12)
    taken = torch.zeros_like(rr)
    for _ in range(iterations):
        along = direction @ k.transpose(-1, -2) - (mean * direction).sum(-1, keepdim=True)
        product = (p * along) @ k + ridge * direction
        active = rr > limit
        taken = taken + active
        alpha = torch.where(active, rr / ((direction * product).sum(-1, keepdim=True) + 1e-30), 0.0)
        x, r = x + alpha * direction, r - alpha * product
        new = (r * r).sum(-1, keepdim=True)
        direction = torch.where(active, r + new / rr.clamp_min(1e-30) * direction, direction)
        rr = torch.where(active, new, rr)
    return x, taken[..., 0]


def decode(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
    lam: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """One query a sequence over listed slots; a row without slots gives 0.

    q [batch, heads, head_dim]; lam [heads]; the rest as in `paged`.
    """
    o = torch.zeros(*q.shape[:2], v_cache.shape[2], dtype=q.dtype, device=q.device)
    group = q.shape[1] // k_cache.shape[1]
    for b in range(len(q)):
        for h in range(q.shape[1]):
            listed = slots[b, min(h // group, slots.shape[1] - 1)]
            listed = listed[listed >= 0].long()
            if listed.numel():
                k, v = (x[listed, h // group][None, :, None] for x in (k_cache, v_cache))
                o[b, h] = flash_lla(q[b, h][None, None, None], k, v, lam[h : h + 1], scale)[0, 0, 0]
    return o


def hidden(q: torch.Tensor, k: torch.Tensor, window: int) -> torch.Tensor:
    """Which keys a query may not see, bool [n_q, n]."""
    n_q, n = q.shape[1], k.shape[1]
    i = torch.arange(n - n_q, n, device=q.device)[:, None]
    j = torch.arange(n, device=q.device)
    return (j > i) | ((i - j >= window) if window else torch.zeros_like(j, dtype=torch.bool))


def _covariance(p: torch.Tensor, k: torch.Tensor, mean: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
    """C, [..., n_q, head_dim, head_dim], by second moments: no tensor of rows × keys × head_dim.

    In float32 it is off by some 1e-7 |k|², which a small λ does not cover where keys are very long.
    """
    second = p @ (k[..., :, None] * k[..., None, :]).flatten(-2)
    eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    outer = mean[..., :, None] * mean[..., None, :]
    return second.unflatten(-1, eye.shape) - outer + ridge[..., None] * eye


def _published(
    p: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ridge: torch.Tensor
) -> torch.Tensor:
    z = k[:, :, None] - q[:, :, :, None]
    mu = torch.einsum("bhij,bhijc->bhic", p, z)
    sigma = torch.einsum("bhij,bhijc,bhije->bhice", p, z, z)
    sigma = sigma + ridge[..., None] * torch.eye(q.shape[3], dtype=q.dtype, device=q.device)
    rho = torch.linalg.solve(sigma, mu)
    s = p * (1 - torch.einsum("bhijc,bhic->bhij", z, rho)) / (1 - (mu * rho).sum(-1, keepdim=True))
    return s @ v
