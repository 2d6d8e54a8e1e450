"""What a kernel is, and what it is judged by.

    reference (float64) ◄── same arguments ──► fast (Triton, any dtype)
             └─────────── disagreement ≤ TOLERANCE[dtype] ───────────┘

Axes, everywhere: `[tokens, heads, head_dim]`, with `batch` in front where there is one; caches
`[slots, kv_heads, head_dim]`, or `[pages, page_size, kv_heads, head_dim]` (the same memory). Query head h
belongs to KV head `h // (n_heads // n_kv_heads)`. Softmax, statistics and sums are float32 in every kernel,
whatever comes in.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import torch

Tensors: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""The largest error of an output's element, as a share of the output's largest element."""


class Work(NamedTuple):
    """What the arguments of a call demand at least: bytes moved to and from memory, and multiply-adds × 2."""

    n_bytes: float
    flops: float


@dataclass(frozen=True)
class Kernel:
    """One function with a reference. Both take the same keyword arguments and return the same tensors.

    `cases(dtype, device)` yields small arguments with odd sizes; `large(device)` one call to be timed, and
    `peers` what others offer for that call, by name. `gradients` names the arguments to differentiate by.
    `slack` widens the tolerance; where it is not 1 the suite says why.
    """

    name: str
    reference: Callable[..., Tensors]
    fast: Callable[..., Tensors]
    cases: Callable[[torch.dtype, torch.device], Iterator[dict[str, Any]]]
    large: Callable[[torch.device], dict[str, Any]]
    work: Callable[[Mapping[str, Any]], Work]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)
    gradients: tuple[str, ...] = ()
    slack: float = 1.0
    peers: Mapping[str, Callable[..., Tensors]] = field(default_factory=dict)


def disagreement(kernel: Kernel, arguments: Mapping[str, Any]) -> float:
    """The largest error of the fast form, in tolerances of its dtype: at most 1 is right.

    A NaN anywhere is infinite. Integer outputs (indices, maps) must be equal.
    """
    exact = {name: _as(x, torch.float64) for name, x in arguments.items()}
    limit = _limit(kernel, arguments)
    worst = 0.0
    with poisoned():
        got = _tuple(kernel.fast(**arguments))
    for is_, should in zip(got, _tuple(kernel.reference(**exact)), strict=True):
        worst = max(worst, _error(is_, should, limit))
    return worst


def gradient_disagreement(kernel: Kernel, arguments: Mapping[str, Any]) -> float:
    """As `disagreement`, of the gradients by `kernel.gradients` of a fixed random sum of the outputs.

    Errors of a gradient much smaller than the others, or of 0, are those of larger numbers that cancel: they
    count as shares of a tenth of the largest gradient.
    """
    exact = {name: _as(x, torch.float64) for name, x in arguments.items()}
    with poisoned():
        got = _gradients(kernel.fast, dict(arguments), kernel.gradients)
    should = _gradients(kernel.reference, exact, kernel.gradients)
    limit = _limit(kernel, arguments)
    least = 0.1 * max(float(s.abs().max()) for s in should)
    return max(_error(g, s, limit, least) for g, s in zip(got, should, strict=True))


# ---------------------------------------------------------------- memory that shows what was not written

_poison = [False]


class poisoned:
    """Inside, `empty` fills what it gives with NaN (integers with their least value)."""

    def __enter__(self) -> None:
        self.before, _poison[0] = _poison[0], True

    def __exit__(self, *_: object) -> None:
        _poison[0] = self.before


def empty(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory for a kernel's output; every kernel takes its outputs from here."""
    made = torch.empty(shape, dtype=dtype, device=device)
    if _poison[0]:
        made.fill_(float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min)
    return made


# ---------------------------------------------------------------- which form runs


def form(x: torch.Tensor, reference: ModuleType) -> Any:
    """The `kernel` beside a method's `reference` where Triton runs for this tensor, else the reference.

    Kernels compute in float32, so float64 is the reference's.
    """
    if not x.is_cuda or x.dtype == torch.float64 or not find_spec("triton"):
        return reference
    kernel = import_module(f"{reference.__package__}.kernel")
    return kernel if x.device.index == torch.cuda.current_device() else _Elsewhere(kernel, x.device)


class _Elsewhere:
    """A module whose functions run on a GPU that is not the current one, where Triton would start them."""

    def __init__(self, module: ModuleType, device: torch.device) -> None:
        self.module, self.device = module, device

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self.module, name)

        def there(*args: Any, **kwargs: Any) -> Any:
            with torch.cuda.device(self.device):
                return function(*args, **kwargs)

        return there


# ---------------------------------------------------------------- peers


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
    """PyTorch's own causal attention on [batch, tokens, heads, head_dim], or without batch: what others are
    measured beside."""
    if q.dim() == 3:
        q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(
        *heads_first, is_causal=True, enable_gqa=q.shape[2] != k.shape[2]
    )


def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
    """FlashAttention's, on the same."""
    from flash_attn import flash_attn_func

    if q.dim() == 3:
        q, k, v = (x.unsqueeze(0) for x in (q, k, v))
    out: torch.Tensor = flash_attn_func(q, k, v, causal=True)
    return out


# ---------------------------------------------------------------- details


def _limit(kernel: Kernel, arguments: Mapping[str, Any]) -> float:
    floats = (x.dtype for x in arguments.values() if torch.is_tensor(x) and x.is_floating_point())
    return TOLERANCE[next(floats, torch.float64)] * kernel.slack


def _as(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x


def _tuple(out: Tensors) -> tuple[torch.Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def _error(is_: torch.Tensor, should: torch.Tensor, limit: float, least: float = 1e-6) -> float:
    assert is_.shape == should.shape, (is_.shape, should.shape)
    if not is_.is_floating_point():
        return 0.0 if torch.equal(is_.long(), should.long()) else float("inf")
    is_ = is_.double()
    endless = torch.isinf(should)  # the log-sum-exp of nothing is -inf on both sides
    if not torch.equal(torch.where(endless, is_, 0.0), torch.where(endless, should, 0.0)):
        return float("inf")
    is_, should = is_.masked_fill(endless, 0), should.masked_fill(endless, 0)
    if not is_.numel():
        return 0.0
    if not torch.isfinite(is_).all():
        return float("inf")
    largest = max(float(should.abs().max()), least, 1e-6)
    return float((is_ - should).abs().max()) / largest / limit


def _gradients(
    function: Callable[..., Tensors], arguments: dict[str, Any], by: tuple[str, ...]
) -> list[torch.Tensor]:
    for name in by:
        arguments[name] = arguments[name].detach().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for i, out in enumerate(_tuple(function(**arguments))):
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        total = total + (out.double() * weights.to(out.device)).sum().cpu()
    return list(torch.autograd.grad(total, [arguments[name] for name in by]))
