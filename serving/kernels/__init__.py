"""Attention and KV-cache methods: for each a plain PyTorch reference, and Triton kernels that equal it.

A method is a folder: `reference.py` is the truth, `kernel.py` the Triton code, `__init__.py` the public
functions, which choose between them, `suite.py` what it is judged by. To add one: the folder, and its name in
`METHODS`. tests/serving/kernels/test_conformance.py and benchmarks/kernels.py then take it in.

This package imports the standard library, torch and, where kernels run, triton: SGLang's processes load it,
and so does a machine with nothing else installed.
"""

from collections.abc import Iterator
from importlib import import_module

from .base import Kernel

METHODS = ("paged", "actqkv", "ems", "deltallm", "flash_lla", "hogwild", "localleap", "engram")
"""The folders, in the order in which they are tested."""


def kernels() -> Iterator[Kernel]:
    """Every kernel of every method. Raises ImportError without triton."""
    for method in METHODS:
        yield from import_module(f"{__name__}.{method}.suite").KERNELS
