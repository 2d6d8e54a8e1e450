"""A pretended GPU tells what a real one would refuse: what it cannot tell would be silence."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
try:
    from gpu.pretended import DEVICE, ReadBack, pretended_gpu
finally:
    sys.path.pop(0)


def test_tensors_of_two_devices_are_told() -> None:
    on_cpu = torch.randn(3, 4)
    with pretended_gpu():
        x = torch.randn(3, 4, device=DEVICE)
        assert x.is_cuda
        assert (x @ x.T + 1).is_cuda
        assert (x + on_cpu.to(DEVICE)).is_cuda
        with pytest.raises(RuntimeError, match="cuda:0 and on the CPU"):
            x + on_cpu


def test_a_value_read_back_is_told_where_a_graph_is_captured() -> None:
    with pretended_gpu() as mode:
        total = torch.ones(3, device=DEVICE).sum()
        assert total.item() == 3
        mode.captured = True
        with pytest.raises(ReadBack):
            total.item()


def test_tensors_without_values_have_shapes() -> None:
    with pretended_gpu() as mode:
        mode.with_values = False
        wide = torch.randn(100_000, 100_000, device=DEVICE)  # 40 GB, if they were there
        assert (wide @ wide).shape == (100_000, 100_000)
        assert (wide @ wide).is_cuda


def test_the_device_is_gone_afterwards() -> None:
    before = torch.cuda.device_count()
    with pretended_gpu():
        assert torch.cuda.get_device_properties(DEVICE).multi_processor_count == 132
    assert torch.cuda.device_count() == before
    assert not torch.randn(2).is_cuda
