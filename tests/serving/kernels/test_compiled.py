"""Every kernel compiles for a Hopper GPU and fits its shared memory, which needs no GPU to be seen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")
pytest.importorskip("triton", reason="triton is not installed: make test-sglang runs this")

from abduce.serving.kernels import METHODS

SHARED_BYTES = 227 * 1024  # of a streaming multiprocessor, for one block


def compiled(what, tmp_path):
    own = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1", "TRITON_INTERPRET": "0"}
    run = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_for_hopper.py"), what],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("method", METHODS)
def test_it_compiles_for_a_gpu(method, tmp_path):
    made = compiled(method, tmp_path)
    assert made
    for kernel in made:
        assert kernel["shared"] <= SHARED_BYTES, kernel


def test_a_launch_that_no_gpu_takes_is_refused(tmp_path):
    *refused, taken = compiled("controls", tmp_path)
    assert ["grid" in control["refused"] for control in refused] == [True, True, False]
    assert "not on cuda" in refused[2]["refused"]
    assert taken["kernel"] == "_copy"
