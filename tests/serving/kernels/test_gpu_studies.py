"""What `make bench-gpu` measures of the specifications' points, at sizes that judge nothing."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")
pytest.importorskip("triton", reason="triton is not installed: make test-sglang runs this")

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

from gpu import method as of_method  # noqa: E402
from gpu.base import Bar, Machine, right  # noqa: E402
from gpu.method import STUDIES  # noqa: E402

from abduce.serving.kernels.flash_lla.suite import FEWEST  # noqa: E402


def once(call):
    call()
    return 1e-3


@pytest.mark.parametrize("method", sorted(STUDIES))
def test_a_study_runs_and_an_interpreter_meets_nothing(method):
    machine = Machine(torch.device("cpu"), True, 1e9, 1e9, seconds=once, replayed=once)
    bars = [bar for part in import_module(f"gpu.{method}").parts(machine) for bar in part()]
    assert bars
    for bar in bars:
        assert bar.point and bar.asked and bar.measured
        assert bar.met is None


def test_a_part_that_fails_takes_no_other_along(monkeypatch):
    def parts(machine):
        yield lambda: 1 / 0
        yield lambda: [Bar("a point", "little", "less", None)]

    monkeypatch.setattr(import_module("gpu.ems"), "parts", parts)
    failed, other = (found["bar"] for found in of_method.bars("ems", None))
    assert "ZeroDivisionError" in failed["measured"]
    assert failed["met"] is None
    assert other["measured"] == "less"


def test_so_many_iterations_are_timed_as_are_said():
    """The last tile sees the most keys and is done first."""
    study = import_module("gpu.flash_lla")
    call = study.timed_arguments(torch.device("cpu"), 4096, 64, 1, torch.bfloat16)
    assert study.taken_at_the_end(call) >= 16
    plain = study.arguments(torch.bfloat16, torch.device("cpu"), 1, 4096, 4096, 1, 1, 64, 0.1)
    assert study.taken_at_the_end(plain) < 16
    plain["lam"] = torch.full_like(plain["lam"], 2.0)
    assert study.taken_at_the_end(plain) >= FEWEST


def test_what_is_wrong_has_no_time():
    x = torch.ones(3)
    right(x * 1.001, x, 1e-2)
    with pytest.raises(ArithmeticError, match="off by"):
        right(x * 1.1, x, 1e-2)
    with pytest.raises(ArithmeticError):
        right(x * float("nan"), x, 1e-2)
