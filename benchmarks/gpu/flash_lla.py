"""Local linear attention 2 and 4: errors at the sizes of use, times against products, memory, decode."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from abduce.serving.kernels.flash_lla import kernel, reference
from abduce.serving.kernels.flash_lla.suite import arguments, decode_work, decoded

from .base import Bar, Machine, Part, right
from .pools import both, us

ASKED = {0.1: 2e-2, 1.0: 3e-2, 10.0: 1e-2}  # the error by the ridge, as a share of the largest element
OFFICIAL = {"output": 1e-2, "gradients": 1e-1}  # atol at a ridge of 10, of the published code; rtol is 1e-2


def parts(machine: Machine) -> Iterator[Part]:
    """Errors by ridge, then times, memory and decode."""
    for lam in [10.0] if machine.small else ASKED:
        yield partial(errors, machine, lam)
    yield partial(times, machine)
    yield partial(memory, machine)
    for d in [16] if machine.small else [64, 128]:
        yield partial(decode, machine, d)


def errors(machine: Machine, lam: float) -> Iterator[Bar]:
    """The worst of lengths and head dimensions against float64, in bfloat16."""
    lengths, dims = ([9], [16]) if machine.small else ([64, 1000, 4096], [64, 128])
    worst: dict[str, tuple[float, str]] = {}
    official = dict.fromkeys(OFFICIAL, 0.0)
    for n in lengths:
        for d in dims:
            for name, off, largest, over in differences(machine, n, d, lam):
                part = "output" if name == "o" else "gradients"
                worst[part] = max(worst.get(part, (-1.0, "")), (off / largest, f"{name}, n {n}, d {d}"))
                official[part] = max(official[part], over)
    for part, times in (("output", 1), ("gradients", 3)):
        off, where = worst[part]
        yield Bar(
            f"Local linear attention 2: {part} against float64, λ {lam}, n {lengths}, d {dims}",
            f"≤ {times * ASKED[lam]:.0e} of the largest element",
            f"{off:.1e} ({where})",
            machine.verdict(off <= times * ASKED[lam]),
        )
        if lam == 10.0:
            yield Bar(
                f"Local linear attention 2: {part} by the published code's own tolerances",
                f"atol {OFFICIAL[part]}, rtol 0.01",
                f"at most {official[part]:.2f} of them",
                machine.verdict(official[part] <= 1),
            )


def differences(machine: Machine, n: int, d: int, lam: float) -> Iterator[tuple[str, float, float, float]]:
    """Of the output and each gradient: the largest difference, the largest element, and the most of the
    official tolerance that an element takes."""
    call = arguments(torch.bfloat16, machine.device, 1, n, n, 1, 1, d, lam)
    call["lam"] = torch.full_like(call["lam"], lam)
    upstream = torch.randn(call["v"].shape, device=machine.device).bfloat16()
    got, should = (
        outputs(function, call, upstream, dtype)
        for function, dtype in ((kernel.flash_lla, None), (reference.flash_lla, torch.float64))
    )
    for name, one, other in zip(("o", "∂q", "∂k", "∂v", "∂λ"), got, should, strict=True):
        off = (one.double() - other).abs().nan_to_num(nan=torch.inf)  # NaN is the worst there is
        size = other.abs()
        over = off / (OFFICIAL["output" if name == "o" else "gradients"] + 1e-2 * size)
        yield name, float(off.max()), float(size.max()), float(over.max())


def outputs(
    function: Any, call: dict[str, Any], upstream: torch.Tensor, dtype: torch.dtype | None
) -> list[torch.Tensor]:
    """The output, and the gradients by q, k, v and the ridge."""
    leaves = {
        name: call[name].to(dtype or call[name].dtype).detach().requires_grad_()
        for name in ("q", "k", "v", "lam")
    }
    o = function(**{**call, **leaves})
    total = (o * upstream.to(o.dtype)).sum()
    return [o.detach(), *torch.autograd.grad(total, [*leaves.values()])]


def times(machine: Machine) -> Iterator[Bar]:
    """The forward with so many iterations, of keys and a ridge with which no tile is done before."""
    n, d, heads = (9, 16, 1) if machine.small else (4096, 64, 16)
    dtype = torch.float32 if machine.small else torch.bfloat16
    call = timed_arguments(machine.device, n, d, heads, dtype)
    one = {**call, **{name: call[name][:, :, :1].double() for name in ("q", "k", "v")}}
    one["lam"] = call["lam"][:1].double()
    right(kernel.flash_lla(**call)[:, :, :1], reference.flash_lla(**one), 2e-2)
    if not machine.small and not bool((taken := taken_at_the_end(call)) >= 16):
        raise ArithmeticError(f"rows are done after {int(taken)} iterations, so 16 would not be timed")
    for t in (8, 16):
        unit = heads * float(n) ** 2 * d
        floor = machine.floor(0, (5 + 3 * t) * unit)
        taken, launched = both(machine, partial(kernel.flash_lla, **call, iterations=t))
        yield Bar(
            f"Local linear attention 4: forward, {t} iterations, {heads} heads of {d}, n {n:,}",
            "≤ 2 × the floor of (5 + 3t) n² d products",
            f"{us(taken)} = {taken / floor:.2f} × {us(floor)}; {launched}; floor at the rate of TF32 "
            f"{us(2 * floor)}, of the (7 + 4t) n² d formed here {us(machine.floor(0, (7 + 4 * t) * unit))}",
            machine.verdict(taken <= 2 * floor),
        )


def timed_arguments(device: torch.device, n: int, d: int, heads: int, dtype: torch.dtype) -> dict[str, Any]:
    """Keys that are ten times as long in one direction as in another: with equal ones ten iterations do."""
    call = arguments(dtype, device, 1, n, n, heads, 1, d, 0.1)
    call["lam"] = torch.full_like(call["lam"], 0.1)
    call["k"] = call["k"] * torch.logspace(0, -1, d, device=device, dtype=dtype)
    return call


def taken_at_the_end(call: dict[str, Any], tile: int = 64) -> torch.Tensor:
    """How many iterations the last tile of a head needs, which sees the most keys and needs the fewest."""
    q, k, lam, scale = call["q"][0, -tile:, 0].float(), call["k"][0, :, 0].float(), call["lam"], call["scale"]
    hidden = reference.hidden(call["q"][:, -tile:], call["k"], 0)
    p = torch.softmax((q @ k.T * scale).masked_fill(hidden, -torch.inf), -1)
    mean = p @ k
    _, taken = reference.conjugate_gradient(p, k, mean, lam[0].expand(tile, 1), mean - q, 32)
    return taken.max()


def memory(machine: Machine) -> Iterator[Bar]:
    """What forward and backward need at most beside what was there, by length."""
    lengths = [2, 4] if machine.small else [4096, 8192, 16_384, 32_768]
    heads, d = (1, 16) if machine.small else (4, 64)
    peaks = []
    for n in lengths:
        dtype = torch.float32 if machine.small else torch.bfloat16
        before = peak(machine)
        call = arguments(dtype, machine.device, 1, n, n, heads, 1, d, 10.0)
        outputs(kernel.flash_lla, call, call["v"], None)
        if machine.device.type == "cuda":
            peaks.append(max(1, torch.cuda.max_memory_allocated(machine.device) - before))
        del call
    ratio = peaks[-1] / peaks[0] if peaks else float("nan")
    yield Bar(
        f"Local linear attention 4: memory of forward and backward, n {lengths[0]:,} to {lengths[-1]:,}",
        "≤ 8.5 times as much for 8 times the length",
        f"{ratio:.2f}: {', '.join(f'{x / 2**20:,.0f} MiB' for x in peaks) or 'not counted on a CPU'}",
        machine.verdict(ratio <= 8.5),
    )


def peak(machine: Machine) -> int:
    """What is allocated now, in bytes; the peak is counted anew from here."""
    if machine.device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(machine.device)
    return int(torch.cuda.max_memory_allocated(machine.device))


def decode(machine: Machine, d: int) -> Iterator[Bar]:
    """One query a sequence over up to 32k keys, lengths at random."""
    batch, width, n_kv, group = (1, 20, 1, 2) if machine.small else (8, 32_768, 8, 4)
    dtype = torch.float32 if machine.small else torch.bfloat16
    call = decoded(dtype, machine.device, batch, width, n_kv, group, d)
    first = {**call, "q": call["q"][:1], "slots": call["slots"][:1]}
    right(kernel.decode(**call)[:1], reference.decode(**first), 3e-2)
    n_bytes, flops = decode_work(call)
    floor = machine.floor(n_bytes, flops)
    taken, launched = both(machine, partial(kernel.decode, **call))
    yield Bar(
        f"Local linear attention 4: decode, batch {batch}, up to {width:,} keys, {n_kv * group} heads of {d}",
        "≤ 2 × the floor by bytes and by products",
        f"{us(taken)} = {taken / floor:.2f} × {us(floor)} (bytes {us(machine.floor(n_bytes))}, products "
        f"{us(machine.floor(0, flops))}); {launched}",
        machine.verdict(taken <= 2 * floor),
    )
