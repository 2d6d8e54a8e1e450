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
    mean = p @ k_
    away = k_[:, :, None] - mean[:, :, :, None]  # [batch, heads, n_q, n, d]
    if iterations:
        eta = conjugate_gradient(p, away, ridge, mean - q_, iterations)
    else:
        covariance = torch.einsum("bhij,bhijc,bhije->bhice", p, away, away)
        covariance = covariance + ridge[..., None] * torch.eye(q.shape[3], dtype=wide, device=q.device)
        eta = torch.linalg.solve(covariance, mean - q_)
    a = torch.einsum("bhijc,bhic->bhij", away, eta)
    return (p * (1 - a) @ v_).transpose(1, 2).to(q.dtype)


def conjugate_gradient(
    p: torch.Tensor, away: torch.Tensor, ridge: torch.Tensor, b: torch.Tensor, iterations: int
) -> torch.Tensor:
    """x with C x = b, by products with C alone; a row stops at |r|² ≤ 1e-12 max(1e-12, |b|²)."""
    x, r = torch.zeros_like(b), b
    direction, rr = r, (r * r).sum(-1, keepdim=True)
    enough = 1e-12 * rr.clamp_min(1e-12)
    for _ in range(iterations):
        along = torch.einsum("bhijc,bhic->bhij", away, direction)
        product = torch.einsum("bhij,bhijc->bhic", p * along, away) + ridge * direction
        active = rr > enough
        alpha = torch.where(active, rr / ((direction * product).sum(-1, keepdim=True) + 1e-30), 0.0)
        x, r = x + alpha * direction, r - alpha * product
        new = (r * r).sum(-1, keepdim=True)
        direction = torch.where(active, r + new / rr.clamp_min(1e-30) * direction, direction)
        rr = torch.where(active, new, rr)
    return x


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
