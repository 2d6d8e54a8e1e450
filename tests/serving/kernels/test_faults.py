"""The negative control of the conformance cases: kernels with a seeded fault must fail what they pass."""

import faulthandler
import importlib.util
import inspect
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from .faults import FAULTS

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")
triton = pytest.importorskip("triton", reason="triton is not installed: make test-sglang runs this")

from abduce.serving.kernels import kernels, triton_parts  # noqa: E402
from abduce.serving.kernels.base import disagreement, gradient_disagreement  # noqa: E402

ALL = {kernel.name: kernel for kernel in kernels()}

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret,
    reason="set TRITON_INTERPRET=1 to run kernels on the CPU: make test-sglang",
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.kernel}: {fault.new[:40]}")
def test_it_is_caught(fault, tmp_path, monkeypatch):
    kernel = ALL[fault.kernel]
    home = sys.modules[kernel.fast.__module__]
    if fault.old not in Path(inspect.getfile(home)).read_text():
        monkeypatch.setitem(sys.modules, triton_parts.__name__, copy(triton_parts, tmp_path, fault))
        faulty = copy(home, tmp_path)
    else:
        faulty = copy(home, tmp_path, fault)
    assert caught(kernel, getattr(faulty, kernel.fast.__name__))


def copy(module, folder, fault=None):
    """Loaded beside it, with the fault."""
    source = Path(inspect.getfile(module)).read_text()
    if fault:
        assert fault.old in source
        source = source.replace(fault.old, fault.new)
    file = folder / f"{module.__name__}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(f"{module.__package__}._faulty", file)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def caught(kernel, fast):
    """In a process of its own: a kernel that reads beyond its memory may end it, which is noticed too."""
    torch.set_num_threads(1)  # a child has none of its parent's threads and would wait for them
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        code = 1
        with suppress(BaseException):
            code = int(failed(kernel, fast))
        os._exit(code)
    return os.waitpid(child, 0)[1] != 0


def failed(kernel, fast):
    wrong = type(kernel)(**{**vars(kernel), "fast": fast})
    for case in kernel.cases(torch.float32, torch.device("cpu")):
        if disagreement(wrong, case) > 1 or (kernel.gradients and gradient_disagreement(wrong, case) > 1):
            return True
    return False
