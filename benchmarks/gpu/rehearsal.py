"""Rehearse `make bench-gpu` before a GPU is lent: every launch it makes, compiled for a Hopper.

    cd benchmarks && PYTHONPATH=.. python -m gpu.rehearsal [METHOD …]      torch (for CUDA) and triton, no GPU

All cases in all dtypes, the calls that are timed, their gradients and peers, and the studies run on a
pretended device, kernels compile instead of running. Shows: a tensor left on the CPU, a grid or a shared
memory that no GPU takes, what Triton cannot compile, a call that no CUDA graph can hold, and registers that
spill. It shows nothing of values or of time.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from abduce.serving.kernels import METHODS
from abduce.serving.kernels.base import Kernel, disagreement

from .base import Bar, Machine, Part
from .compiled import SHARED_BYTES, Compiled, launches_compiled
from .method import STUDIES, floor, gradients, in_a_line
from .pretended import DEVICE, Pretended, ReadBack, pretended_gpu


def acts(method: str, mode: Pretended) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What `make bench-gpu` does of a method, by name, one call each."""
    kernels: tuple[Kernel, ...] = import_module(f"abduce.serving.kernels.{method}.suite").KERNELS
    for kernel in kernels:
        mode.with_values = True
        for dtype in kernel.dtypes:
            for i, case in enumerate(kernel.cases(dtype, DEVICE)):
                yield f"{kernel.name}, case {i}, {dtype}", partial(disagreement, kernel, case)
    here = Machine(DEVICE, False, 3e12, 8e14, seconds=_once, replayed=partial(_captured, mode))
    for kernel in kernels:
        mode.with_values = False
        yield f"{kernel.name}, timed", partial(_timed, kernel, here)
    mode.with_values = False
    if method in STUDIES:
        for i, part in enumerate(import_module(f"gpu.{method}").parts(here)):
            yield f"{method}, study, part {i}", partial(_bars, part)


def _bars(part: Part) -> list[Bar]:
    return [*part()]


def _timed(kernel: Kernel, machine: Machine) -> None:
    call = kernel.large(DEVICE)
    machine.seconds(partial(kernel.fast, **call))
    floor(kernel, call, machine)
    for function in (kernel.fast, *kernel.peers.values()):
        try:
            function(**call)
            if kernel.gradients:
                gradients(function, call, kernel.gradients)()
        except ImportError:
            continue
    try:
        machine.replayed(partial(kernel.fast, **call))
    except ReadBack as error:
        print(f"    {kernel.name}: no CUDA graph can hold it: {error}")


def _once(call: Callable[[], Any]) -> float:
    call()
    return 1e-3


def _captured(mode: Pretended, call: Callable[[], Any]) -> float:
    mode.captured = True
    try:
        return _once(call)
    finally:
        mode.captured = False


def line(kernel: Compiled) -> str:
    """What is known of a compiled kernel."""
    spilled = f", {kernel.stack} BYTES A THREAD ON THE STACK" if kernel.stack else ""
    over = ", MORE SHARED MEMORY THAN THERE IS" if kernel.shared > SHARED_BYTES else ""
    return (
        f"    {kernel.name}: grid {kernel.grid}, {kernel.warps} warps, {kernel.registers} registers, "
        f"{kernel.shared} bytes shared{spilled}{over}"
    )


def main() -> None:
    """Print each kernel compiled and each failure; the exit code says whether there was one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=", ".join(METHODS))
    chosen = parser.parse_args()
    if torch.version.cuda is None:
        parser.error("this torch is built for the CPU alone: pip install torch triton, from PyPI, on Linux")
    failures = []
    with pretended_gpu() as mode, launches_compiled("cuda") as made:
        for method in chosen.methods or METHODS:
            for name, act in acts(method, mode):
                before = len(made)
                try:
                    act()
                except Exception as error:  # every act is wanted, whatever became of the one before
                    traceback.print_exc(limit=-3)
                    failures.append(f"{name}: {in_a_line(error)}")
                print(f"{name}: {len(made) - before} kernels more", flush=True)
                for kernel in made[before:]:
                    print(line(kernel))
    n_failed = len(failures) + sum(kernel.shared > SHARED_BYTES for kernel in made)
    on_stack = sum(kernel.stack > 0 for kernel in made)
    print(f"{len(made)} kernels compiled, {on_stack} of them use the stack; failures: {n_failed}")
    for failure in failures:
        print(f"    {failure}")
    sys.exit(min(n_failed, 1))


if __name__ == "__main__":
    main()
