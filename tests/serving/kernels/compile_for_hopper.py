"""Compile the kernels of a method for a Hopper GPU, without one: python compile_for_hopper.py METHOD.

With `controls` for a method, launches that no GPU takes: a line for each that is refused.
Their launchers run on CPU tensors, in every dtype and at the size that `make bench-gpu` times. Prints a line
of JSON a kernel: its name, and the shared memory it takes, in bytes.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

import torch
import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

from gpu.compiled import launches_compiled

from abduce.serving.kernels.base import Kernel

CPU = torch.device("cpu")


def launch(kernel: Kernel) -> None:
    calls = [[*kernel.cases(dtype, CPU)][-1] for dtype in kernel.dtypes]
    for call in [*calls, kernel.large(CPU)]:
        for name in kernel.gradients:
            call[name] = call[name].detach().requires_grad_()
        out = kernel.fast(**call)
        if kernel.gradients:
            out.float().sum().backward()


@triton.jit
def _copy(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.load(x + i))


def refused() -> None:
    x = torch.zeros(16)
    for on, grid in [("cpu", (0,)), ("cpu", (1, 70_000)), ("cuda", (1,)), ("cpu", (1,))]:
        try:
            with launches_compiled(on) as made:
                _copy[grid](x, x, N=16)
        except ValueError as error:
            print(json.dumps({"refused": str(error)}))
        else:
            print(json.dumps({"kernel": made[0].name, "shared": made[0].shared}))


def main() -> None:
    if sys.argv[1] == "controls":
        refused()
        return
    torch.empty = torch.zeros  # a launch writes nothing here, and some outputs are indices
    with launches_compiled("cpu") as made:
        for kernel in import_module(f"abduce.serving.kernels.{sys.argv[1]}.suite").KERNELS:
            launch(kernel)
    for compiled in made:
        print(json.dumps({"kernel": compiled.name, "shared": compiled.shared}))


if __name__ == "__main__":
    main()
