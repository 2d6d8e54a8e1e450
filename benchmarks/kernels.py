"""Time of each kernel against what the machine can do at best, behind a check that it is right.

    make bench-gpu            all kernels on the GPU here; writes benchmarks/results/kernels-DEVICE.md
    python benchmarks/kernels.py --only paged,ems

Without a GPU the kernels run in Triton's interpreter, on their largest test case: whether they are right, and
nothing about their time. Needs torch and triton, and nothing else.

Ceilings are measured in the same run: the rate of a large copy and of a large bfloat16 product. "floor" is
the time that the kernel's least bytes or multiply-adds take at these rates, whichever is longer; "share" is
floor / time. A kernel that disagrees with its float64 reference, or whose gradients do, has no time;
gradients are a row of their own, timed with the forward before them.
"""

import argparse
import datetime
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from abduce.serving.kernels import kernels
from abduce.serving.kernels.base import Kernel, disagreement, gradient_disagreement


def seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median time of a call, after three that warm up; on a GPU by its events, the cache cold."""
    for _ in range(3):
        call()
    taken = []
    flush = torch.empty(2**28, dtype=torch.int8, device=device) if device.type == "cuda" else None
    for _ in range(repeats):
        if flush is not None:
            flush.zero_()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            taken.append(start.elapsed_time(end) / 1e3)
        else:
            begun = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 2]


def ceilings(device: torch.device) -> tuple[float, float]:
    """Bytes a second of a large copy (read and written), multiply-adds × 2 a second of a large product."""
    big = device.type == "cuda"
    x = torch.empty(2**30 if big else 2**26, dtype=torch.int8, device=device)
    y = torch.empty_like(x)
    n = 8192 if big else 512
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if big else torch.float32)
    copy = 2 * x.numel() / seconds(lambda: y.copy_(x), device, 10)
    return copy, 2 * n**3 / seconds(lambda: a @ a, device, 10)


def gradients(function: Callable[..., Any], call: dict[str, Any], by: tuple[str, ...]) -> Callable[[], Any]:
    """The function and its gradients, as a call without arguments."""
    call = {**call, **{name: call[name].detach().requires_grad_() for name in by}}

    def both() -> Any:
        total = function(**call).float().sum()
        return torch.autograd.grad(total, [call[name] for name in by], allow_unused=True)

    return both


def rows(
    kernel: Kernel, device: torch.device, copy: float, product: float, small: bool
) -> Iterator[list[str]]:
    """The kernel's line of the table, and that of its gradients: red kernels have no time."""
    wrong = max(disagreement(kernel, case) for dtype in kernel.dtypes for case in kernel.cases(dtype, device))
    call = [*kernel.cases(kernel.dtypes[0], device)][-1] if small or not wrong <= 1 else kernel.large(device)
    yield row(kernel, device, wrong, call, (copy, product), small)
    if kernel.gradients:
        off = max(gradient_disagreement(kernel, case) for case in kernel.cases(torch.float32, device))
        name = f"{kernel.name}: forward and gradients"
        if not off <= 1:
            yield [name, f"**wrong** ({off:.1f} tolerances)", "", "", "", ""]
            return
        by, repeats = kernel.gradients, 5 if small else 20
        taken = seconds(gradients(kernel.fast, call, by), device, repeats)
        peers = {
            peer: seconds(gradients(function, call, by), device, repeats)
            for peer, function in kernel.peers.items()
        }
        told = "; ".join(f"{peer} {time * 1e6:.0f} µs" for peer, time in peers.items())
        yield [name, f"{off:.2f}", f"{taken * 1e6:.0f} µs", "", "", told or "none"]


def row(
    kernel: Kernel, device: torch.device, wrong: float, call: dict[str, Any], rates: tuple[float, float],
    small: bool,
) -> list[str]:  # fmt: skip
    """A kernel's line; rates are those of `ceilings`."""
    if not wrong <= 1:
        return [kernel.name, f"**wrong** ({wrong:.1f} tolerances)", "", "", "", ""]
    copy, product = rates
    n_bytes, flops = kernel.work(call)
    taken = seconds(lambda: kernel.fast(**call), device, 5 if small else 20)
    floor = max(n_bytes / copy, flops / product)
    peers = []
    for name, peer in kernel.peers.items():
        try:
            peers.append(f"{name} {seconds(lambda peer=peer: peer(**call), device, 20) * 1e6:.0f} µs")
        except ImportError as error:
            peers.append(f"{name}: not installed ({error.name})")
    bound = "bytes" if n_bytes / copy >= flops / product else "products"
    return [
        kernel.name,
        f"{wrong:.2f}",
        f"{taken * 1e6:.0f} µs",
        f"{floor * 1e6:.0f} µs ({bound})",
        f"{floor / taken:.2f}",
        "; ".join(peers) or "none",
    ]


def main() -> None:
    """Print the table, and write it beside the others where it was measured on a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="methods or kernels, by comma")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="time the largest test case instead")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    chosen.small |= device.type == "cpu"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, Triton's interpreter"
    copy, product = ceilings(device)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    lines = [
        f"{datetime.date.today()}, {name}, torch {torch.__version__}, commit {commit or 'unknown'}.",
        f"Copy {copy / 1e9:.0f} GB/s, product {product / 1e12:.1f} TFLOP/s.",
        "",
        "| kernel | error, in tolerances | time | floor | share | others on the same call |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    wanted = [part for part in chosen.only.split(",") if part]
    for kernel in kernels():
        if wanted and not any(kernel.name == part or kernel.name.startswith(f"{part}.") for part in wanted):
            continue
        for line in rows(kernel, device, copy, product, chosen.small):
            lines.append(f"| {' | '.join(line)} |")
            print(lines[-1], flush=True)
    if device.type == "cuda":
        file = Path(__file__).parent / "results" / f"kernels-{name.replace(' ', '-').lower()}.md"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(lines) + "\n")
        print(f"Written to {file}.")


if __name__ == "__main__":
    main()
