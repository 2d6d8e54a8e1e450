"""One method, judged and timed in a process of its own: a kernel that dies takes no other's figures along.

    python -m gpu.method check METHOD      whether its kernels equal their references, on the small cases
    python -m gpu.method time METHOD       rows, then its study, then whether the timed calls were right

Prints a line of JSON for each thing found out, as soon as it is.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from abduce.serving.kernels import METHODS
from abduce.serving.kernels.base import Kernel, disagreement, gradient_disagreement

from .base import Bar, Machine
from .clock import machine

STUDIES = {file.stem for file in Path(__file__).parent.glob("*.py")} & set(METHODS)


def check(kernels: tuple[Kernel, ...], device: torch.device) -> Iterator[dict[str, Any]]:
    """The largest error of each kernel over its cases and dtypes, and of its gradients, in tolerances."""
    for kernel in kernels:
        yield tried(kernel.name, "error", partial(worst, kernel, device))
        if kernel.gradients:
            yield tried(with_gradients(kernel), "error", partial(worst_gradient, kernel, device))


def worst(kernel: Kernel, device: torch.device) -> float:
    """The largest error over all cases and dtypes, in tolerances."""
    return max(disagreement(kernel, case) for dtype in kernel.dtypes for case in kernel.cases(dtype, device))


def worst_gradient(kernel: Kernel, device: torch.device) -> float:
    """The largest error of a gradient over all cases, in tolerances of float32."""
    return max(gradient_disagreement(kernel, case) for case in kernel.cases(torch.float32, device))


def times(kernels: tuple[Kernel, ...], machine: Machine, green: set[str]) -> Iterator[dict[str, Any]]:
    """A row for each kernel that was found right, and one for its gradients."""
    for kernel in kernels:
        if kernel.name not in green:
            continue
        try:
            yield from rows(kernel, machine, green)
        except Exception as error:  # no memory for the call itself: the other kernels are wanted
            yield {"kernel": kernel.name, "failed": in_a_line(error)}


def rows(kernel: Kernel, machine: Machine, green: set[str]) -> Iterator[dict[str, Any]]:
    """The kernel's row, and that of its gradients."""
    small = [*kernel.cases(kernel.dtypes[0], machine.device)][-1]
    call = small if machine.small else kernel.large(machine.device)
    plain = partial(partial, **call)
    yield {**row(kernel.name, kernel, plain, machine), **floor(kernel, call, machine)}
    if kernel.gradients and with_gradients(kernel) in green:
        both = partial(gradients, call=call, by=kernel.gradients)
        yield row(with_gradients(kernel), kernel, both, machine)


def timed_checks(kernels: tuple[Kernel, ...], machine: Machine, green: set[str]) -> Iterator[dict[str, Any]]:
    """Whether the timed calls were right: last, since a reference may need long for so much."""
    for kernel in kernels:
        if kernel.name in green and not machine.small:
            yield tried(kernel.name, "timed_error", partial(timed_error, kernel, machine.device))


def timed_error(kernel: Kernel, device: torch.device) -> float:
    """The error of the call that is timed, in tolerances."""
    return disagreement(kernel, kernel.large(device))


def row(
    name: str,
    kernel: Kernel,
    bound: Callable[[Callable[..., Any]], Callable[[], Any]],
    machine: Machine,
) -> dict[str, Any]:
    """Times of a call, as launched and from a CUDA graph, and what others need for it.

    `bound` makes a call without arguments of a function that takes the kernel's.
    """
    found = tried(name, "seconds", lambda: machine.seconds(bound(kernel.fast)))
    if "failed" in found:
        return found
    found |= tried(name, "replayed", lambda: machine.replayed(bound(kernel.fast)), failed="uncaptured")
    found["peers"] = {
        peer: tried(name, "seconds", partial(lambda peer: machine.seconds(bound(peer)), function))
        for peer, function in kernel.peers.items()
    }
    return found


def floor(kernel: Kernel, call: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """The least time that the call's work takes here, and what bounds it."""
    n_bytes, flops = kernel.work(call)
    of = "bytes" if n_bytes / machine.copy >= flops / machine.product else "products"
    return {"floor": machine.floor(n_bytes, flops), "of": of}


def gradients(function: Callable[..., Any], call: dict[str, Any], by: tuple[str, ...]) -> Callable[[], Any]:
    """The function and its gradients, as a call without arguments."""
    call = {**call, **{name: call[name].detach().requires_grad_() for name in by}}

    def both() -> Any:
        total = function(**call).float().sum()
        return torch.autograd.grad(total, [call[name] for name in by], allow_unused=True)

    return both


def with_gradients(kernel: Kernel) -> str:
    """The name of the row that times a kernel's forward and its gradients together."""
    return f"{kernel.name}: forward and gradients"


def bars(method: str, machine: Machine) -> Iterator[dict[str, Any]]:
    """What the method's study says, where it has one."""
    if method not in STUDIES:
        return
    for part in import_module(f"gpu.{method}").parts(machine):
        try:
            for bar in part():
                yield {"bar": bar._asdict()}
        except Exception as error:  # a line of the table: whatever it was, the other parts are wanted
            failed = Bar(method, "", f"a part of the study failed: {in_a_line(error)}", None)
            yield {"bar": failed._asdict()}


def tried(name: str, key: str, measure: Callable[[], float], failed: str = "failed") -> dict[str, Any]:
    """The kernel's figure, or why there is none."""
    try:
        return {"kernel": name, key: measure()}
    except ImportError as error:
        return {"kernel": name, failed: f"{error.name} is not installed"}
    except Exception as error:  # a cell of the table: whatever it was, the others are wanted
        return {"kernel": name, failed: in_a_line(error)}


def in_a_line(error: Exception) -> str:
    """The error as a cell of a table may hold it."""
    return f"{type(error).__name__}: {error}".splitlines()[0].replace("|", "/")[:200]


def main() -> None:
    """Say a line of JSON for each thing found out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("act", choices=["check", "time"])
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--device", required=True)
    parser.add_argument("--only", default="", help="one kernel")
    parser.add_argument("--green", default="", help="kernels found right, by comma: others are not timed")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--copy", type=float, default=1.0, help="bytes a second of a large copy")
    parser.add_argument("--product", type=float, default=1.0, help="multiply-adds × 2 a second")
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    suite = import_module(f"abduce.serving.kernels.{chosen.method}.suite")
    kernels = tuple(k for k in suite.KERNELS if chosen.only in ("", k.name))
    if chosen.act == "check":
        found = check(kernels, device)
    else:
        here = machine(device, chosen.small, chosen.copy, chosen.product)
        green = set(chosen.green.split(","))
        found = chain(
            times(kernels, here, green), bars(chosen.method, here), timed_checks(kernels, here, green)
        )
    for what in found:
        print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
