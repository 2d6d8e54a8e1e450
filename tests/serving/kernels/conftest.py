"""What tests of single kernels share."""

import pytest


@pytest.fixture
def interpreted():
    """For tests that run a kernel itself, on a CPU."""
    triton = pytest.importorskip("triton", reason="triton is not installed: make test-sglang runs this")
    if not triton.knobs.runtime.interpret:
        pytest.skip("set TRITON_INTERPRET=1 to run kernels on the CPU: make test-sglang")
