"""Compile the kernels of a method for a Hopper GPU, without one: python compile_for_hopper.py METHOD.

Their launchers run on CPU tensors; a launch compiles what it would launch. Prints a line of JSON a kernel:
its name and the shared memory it takes, in bytes. No values are computed.
"""

import json
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from abduce.serving.kernels import kernels

HOPPER = GPUTarget("cuda", 90, 32)
NAMES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int8: "i8", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
done = set()


def signature(value):
    if torch.is_tensor(value):
        return "*" + NAMES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"


def compile_instead(function, *args, grid, warmup, **keywords):
    given = {**dict(zip(function.arg_names, args, strict=False)), **keywords}
    constants = {p.name: given[p.name] for p in function.params if p.is_constexpr}
    types = {p.name: "constexpr" if p.is_constexpr else signature(given[p.name]) for p in function.params}
    if (key := (function.fn.__name__, str(types), str(constants))) in done:
        return
    done.add(key)
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=function, signature=types, constexprs=places)
    made = triton.compile(source, target=HOPPER)
    print(json.dumps({"kernel": function.fn.__name__, "shared": made.metadata.shared}), flush=True)


def main():
    JITFunction.run = compile_instead
    for kernel in kernels():
        if kernel.name.partition(".")[0] != sys.argv[1]:
            continue
        dtype = torch.bfloat16 if torch.bfloat16 in kernel.dtypes else kernel.dtypes[0]
        case = [*kernel.cases(dtype, torch.device("cpu"))][-1]
        for name in kernel.gradients:
            case[name] = case[name].detach().requires_grad_()
        out = kernel.fast(**case)
        if kernel.gradients:
            out.float().sum().backward()


if __name__ == "__main__":
    main()
