"""Every kernel against its float64 reference: odd sizes, each dtype, outputs poisoned."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")
triton = pytest.importorskip("triton", reason="triton is not installed: make test-sglang runs this")

from abduce.serving.kernels import kernels  # noqa: E402
from abduce.serving.kernels.base import disagreement, gradient_disagreement  # noqa: E402

ALL = {kernel.name: kernel for kernel in kernels()}
CPU = torch.device("cpu")
HAS_GPU = torch.cuda.is_available()
INTERPRETED = pytest.mark.skipif(
    not triton.knobs.runtime.interpret,
    reason="set TRITON_INTERPRET=1 to run kernels on the CPU: make test-sglang",
)
DIFFERENTIABLE = [name for name, kernel in ALL.items() if kernel.gradients]
MATRIX = [(name, dtype) for name, kernel in ALL.items() for dtype in kernel.dtypes]
IDS = [f"{name}-{str(dtype).removeprefix('torch.')}" for name, dtype in MATRIX]


@INTERPRETED
@pytest.mark.parametrize(("name", "dtype"), MATRIX, ids=IDS)
def test_it_equals_its_reference(name, dtype):
    cases = [*ALL[name].cases(dtype, CPU)]
    assert cases
    for case in cases:
        assert disagreement(ALL[name], case) <= 1


@INTERPRETED
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_its_gradient_is_that_of_the_reference(name):
    for case in ALL[name].cases(torch.float32, CPU):
        assert gradient_disagreement(ALL[name], case) <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU")
@pytest.mark.parametrize(("name", "dtype"), MATRIX, ids=IDS)
def test_it_equals_its_reference_on_a_gpu(name, dtype):
    for case in ALL[name].cases(dtype, torch.device("cuda")):
        assert disagreement(ALL[name], case) <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU")
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_its_gradient_is_that_of_the_reference_on_a_gpu(name):
    for case in ALL[name].cases(torch.float32, torch.device("cuda")):
        assert gradient_disagreement(ALL[name], case) <= 1


@pytest.mark.parametrize("name", ALL)
def test_its_work_is_told(name):
    case = next(ALL[name].cases(torch.float32, CPU))
    n_bytes, flops = ALL[name].work(case)
    assert n_bytes > 0
    assert flops >= 0
