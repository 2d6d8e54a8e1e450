"""What a GPU does and an interpreter does not, as far as a CPU can see it.

Other devices, caches of more than 2³¹ numbers, waiting for the host, compiling anew.
"""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: make test-sglang runs this")
pytest.importorskip("triton", reason="triton is not installed: make test-sglang runs this")

from abduce.serving.kernels import base, paged  # noqa: E402
from abduce.serving.kernels.actqkv import kernel as actqkv  # noqa: E402
from abduce.serving.kernels.ems import kernel as ems  # noqa: E402
from abduce.serving.kernels.engram import kernel as engram  # noqa: E402
from abduce.serving.kernels.engram.hashing import Layout  # noqa: E402
from abduce.serving.kernels.flash_lla import kernel as flash_lla  # noqa: E402
from abduce.serving.kernels.hogwild import kernel as hogwild  # noqa: E402
from abduce.serving.kernels.paged import kernel as decode  # noqa: E402

HEADS, D, NEAR = 8, 64, 6
FAR = 2**31 // (HEADS * D) + 5  # slots: the last ones begin beyond what int32 counts


@pytest.mark.parametrize(("index", "entered"), [(0, []), (1, [torch.device("cuda:1")])])
def test_a_kernel_starts_where_its_tensors_are(index, entered, monkeypatch):
    seen = []

    @contextmanager
    def device(x):
        seen.append(x)
        yield

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(decode, "decode", lambda *_: 7)
    q = SimpleNamespace(is_cuda=True, device=torch.device(f"cuda:{index}"), dtype=torch.float16)
    assert base.form(q, paged.reference).decode(q) == 7
    assert seen == entered


def test_float64_is_the_references():
    q = SimpleNamespace(is_cuda=True, device=torch.device("cuda:0"), dtype=torch.float64)
    assert base.form(q, paged.reference) is paged.reference


def by_paged(q, k, v, at):
    return decode.decode(q, k, v, at[None, None], 0.125)[0]


def by_hogwild(q, k, v, at):
    loc, frequency = torch.full((1, 1, 1), len(at) - 1), torch.ones(D // 2)
    return hogwild.attend(q[:, None], k, v, at[None], loc, frequency, 0.125)


def by_local_regression(q, k, v, at):
    return flash_lla.decode(q, k, v, at[None, None], torch.ones(HEADS), 0.125)


def by_page_scores(q, k, v, at):
    return actqkv.page_scores(q, k, at[None])


def by_merging(q, k, v, at):
    weights = torch.empty(HEADS, len(k))
    weights[:, at] = 1.0
    heads = at.expand(HEADS, -1)
    target = torch.tensor([0, 1, 1, 2]).expand(HEADS, -1)
    return ems.merge(k, weights, heads[:, :2], heads[:, 2:], target, True)


def by_looking_up(q, k, v, at):
    return engram.lookup(k.view(-1, D), at[None] * HEADS)


@pytest.mark.parametrize(
    "read", [by_paged, by_hogwild, by_local_regression, by_page_scores, by_merging, by_looking_up]
)
def test_a_cache_may_hold_more_than_int32_counts(read, interpreted):
    rng = torch.Generator().manual_seed(1)
    q, *few = (torch.randn(n, HEADS, D, generator=rng).half() for n in (1, NEAR, NEAR))
    # Untouched, they take no memory.
    k, v = (torch.empty(FAR, HEADS, D, dtype=torch.float16) for _ in range(2))
    k[-NEAR:], v[-NEAR:] = few
    at = torch.arange(NEAR)
    assert torch.equal(read(q, k, v, at + FAR - NEAR), read(q, *few, at))


def test_constants_go_to_the_device_once(interpreted, monkeypatch):
    layout = Layout(2, 2, (3, 5), (11, 13))
    ids = torch.arange(8).view(4, 2)
    first = engram.hash_rows(ids, layout)
    monkeypatch.setattr(torch, "tensor", None)  # on a GPU a copy from the host waits for all it has to do
    assert torch.equal(engram.hash_rows(ids, layout), first)


COMPILED = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from gpu.compiled import launches_compiled
from abduce.serving.kernels.ems import kernel as ems
from abduce.serving.kernels.deltallm import kernel as deltallm
torch.empty = torch.zeros
with launches_compiled("cpu") as made:
    for n in (1, 17, 32):
        q, k = torch.zeros(n, 2, 16), torch.zeros(n + 3, 1, 16)
        ems.column_sums(q, k, ems.row_lse(q, k, 0.25), n, 0.25)
        deltallm.run_ids(k, torch.ones(1, 16))
print(json.dumps([each.name for each in made]))
"""


def test_another_length_compiles_nothing_anew():
    """In a server it would be a second of standing still at every first odd, even and single length."""
    folder = Path(__file__).resolve().parents[3] / "benchmarks"
    own = {"TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    run = subprocess.run(
        [sys.executable, "-c", COMPILED, folder],
        env={**os.environ, **own}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert sorted(json.loads(run.stdout)) == ["_columns_kernel", "_lse_kernel", "_runs_kernel"]
