"""Launches that compile for a Hopper GPU instead of running: what a machine without one can know of them.

Inside `launches_compiled` a launch compiles what it would launch, specialised as it would be (arguments of
one, multiples of 16, aligned pointers), and runs nothing: outputs stay as they were allocated.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

SHARED_BYTES = 227 * 1024
"""Of a Hopper's multiprocessor, for one block."""
MAX_GRID = (2**31 - 1, 65535, 65535)


class Compiled(NamedTuple):
    """A kernel as compiled: registers a thread, bytes of a thread on the stack (registers that were spilled,
    and some 32 that sine and cosine need), shared bytes a block, warps, and the grid of the first launch."""

    name: str
    registers: int
    stack: int
    shared: int
    warps: int
    grid: tuple[int, ...]


class _Hopper:
    """As much of a Triton driver as compiling asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int = 0) -> int:
        return 0


@contextmanager
def launches_compiled(on: str) -> Iterator[list[Compiled]]:
    """Kernels in the order in which launches asked for them, each once; `on` is the tensors' device type.

    A launch raises ValueError for a grid that a GPU refuses, or a tensor of another device.
    """
    made: list[Compiled] = []
    seen: set[int] = set()
    launch = JITFunction.run

    def compile_instead(function: Any, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        name = function.fn.__name__
        bound = {**dict(zip(function.arg_names, args, strict=False)), **keywords}
        for argument, x in bound.items():
            if torch.is_tensor(x) and x.device.type != on and not hasattr(x, "seen_by_gpu"):
                raise ValueError(f"{name}: {argument} is on {x.device}, not on {on}")
        sides = (*(grid(bound) if callable(grid) else grid), 1, 1)[:3]
        if not all(0 < side <= most for side, most in zip(sides, MAX_GRID, strict=True)):
            raise ValueError(f"{name}: no GPU takes a grid of {sides}")
        kernel = launch(function, *args, grid=grid, warmup=True, **keywords)
        if id(kernel) not in seen:
            seen.add(id(kernel))
            made.append(Compiled(name, *_resources(kernel), kernel.metadata.num_warps, sides))
        return kernel

    before = driver._active
    driver.set_active(_Hopper())
    JITFunction.run = compile_instead
    try:
        yield made
    finally:
        JITFunction.run = launch
        driver._active = before


def _resources(kernel: Any) -> tuple[int, int, int]:
    """Registers, stack bytes and shared bytes, as the machine code says."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as place:
        code = Path(place, "kernel.cubin")
        code.write_bytes(kernel.asm["cubin"])
        said = subprocess.run(
            [os.fspath(folder / "cuobjdump"), "-res-usage", os.fspath(code)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", said)}
    return found["REG"], found["STACK"], kernel.metadata.shared
