"""Tensors that say they are on a GPU: what mixes devices or waits for a value shows without one.

A tensor here holds another on the CPU, or one without values ("meta") where the arguments are too large to
compute with. Needs a build of torch for CUDA (PyPI's for Linux), whose device checks it runs.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.attention.bias
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda:0")  # with its index: torch asks a driver for the current one else
_COPIES = ("aten.copy_.default", "aten._to_copy.default")  # they may take tensors of two devices
_READS = ("aten._local_scalar_dense.default", "aten.nonzero.default")  # they wait for the GPU


class ReadBack(RuntimeError):
    """A value was asked for, which a CUDA graph cannot hold."""


class _OnGpu(torch.Tensor):
    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "_OnGpu":
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=DEVICE,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def data_ptr(self) -> int:
        if self.inner.is_meta:
            return self.inner.storage_offset() * self.inner.element_size()
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        return torch.ops.aten._to_copy.default(self, device=torch.device("cpu")).tolist()

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), keywords: Any = None) -> Any:
        return Pretended.active.run(operator, args, keywords or {})


class Pretended(TorchDispatchMode):
    """Runs each operator on what the tensors hold; `with_values` says what new ones are to hold."""

    active: "Pretended"

    def __init__(self) -> None:
        super().__init__()
        self.with_values, self.captured = True, False
        Pretended.active = self

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), keywords: Any = None) -> Any:
        return self.run(operator, args, keywords or {})

    def run(self, operator: Any, args: Any, keywords: dict[str, Any]) -> Any:
        """The operator's result, on the pretended device where it would be on a real one.

        Raises RuntimeError where tensors of two devices meet, ReadBack for a value asked for in a capture.
        """
        name = str(operator)
        tensors = [x for x in tree_leaves((args, keywords)) if isinstance(x, torch.Tensor)]
        ours = [x for x in tensors if isinstance(x, _OnGpu)]
        others = [x for x in tensors if not isinstance(x, _OnGpu) and x.dim()]
        to = torch.device(keywords["device"]).type if keywords.get("device") is not None else None
        indexing = name.startswith(("aten.index.", "aten.index_put", "aten._index_put"))
        if ours and others and name not in _COPIES and not indexing:
            raise RuntimeError(f"{name}: tensors on {DEVICE} and on the CPU")
        without = any(x.inner.is_meta for x in ours)
        if ours and (name in _READS or to == "cpu"):
            if self.captured:
                raise ReadBack(f"{name} reads a value back")
            if without:
                return _invented(name, args, keywords)
        made_here = to == "cuda" and not tensors
        inner = "meta" if without or (made_here and not self.with_values) else "cpu"
        out = operator(
            *tree_map(lambda x: _held(x, inner), args), **tree_map(lambda x: _held(x, inner), keywords)
        )
        on_gpu = to == "cuda" or (to is None and bool(ours))
        return tree_map(lambda x: self._wrapped(x, ours) if on_gpu else x, out)

    def _wrapped(self, x: Any, ours: list[_OnGpu]) -> Any:
        if not isinstance(x, torch.Tensor) or isinstance(x, _OnGpu):
            return x
        same = next((tensor for tensor in ours if tensor.inner is x), None)  # an operator in place
        if same is not None:
            return same
        return _OnGpu(x if self.with_values else x.to("meta"))


def _held(x: Any, kind: str) -> Any:
    if isinstance(x, _OnGpu):
        return x.inner
    if isinstance(x, torch.device) and x.type == "cuda":
        return torch.device(kind)
    return x.to("meta") if kind == "meta" and isinstance(x, torch.Tensor) and x.dim() else x


def _invented(name: str, args: Any, keywords: dict[str, Any]) -> Any:
    if name == "aten._local_scalar_dense.default":
        return 1
    if name == "aten.nonzero.default":
        return _OnGpu(torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64, device="meta"))
    return torch.zeros(args[0].shape, dtype=keywords.get("dtype") or args[0].dtype)


class Function:
    """In place of `torch.autograd.Function.apply`, since the engine that walks back asks for a real device:
    forward, and at once backward."""

    saved_tensors: tuple[torch.Tensor, ...] = ()

    def save_for_backward(self, *tensors: torch.Tensor) -> None:
        """Keep them."""
        self.saved_tensors = tensors

    @classmethod
    def apply(cls, function: Any, *args: Any) -> Any:
        """The function's result; its backward has run where an argument asks for a gradient."""
        ctx = cls()
        out = function.forward(ctx, *args)
        if any(torch.is_tensor(x) and x.requires_grad for x in args):
            function.backward(ctx, torch.ones_like(out))
        return out


@contextmanager
def pretended_gpu() -> Iterator["Pretended"]:
    """A pretended device of 132 multiprocessors: the current one, until the end."""
    torch._C._ensureCUDADeviceGuardSet()
    properties = SimpleNamespace(multi_processor_count=132, total_memory=80 << 30, major=9, minor=0)
    here: dict[str, Callable[..., Any]] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda *_: properties,
        "get_device_name": lambda *_: "a pretended GPU",
        "get_device_capability": lambda *_: (9, 0),
        "synchronize": lambda *_: None,
        "max_memory_allocated": lambda *_: 1,
        "reset_peak_memory_stats": lambda *_: None,
        "empty_cache": lambda: None,
        "current_stream": lambda *_: _Stream(),
        "Stream": _Stream,
        "Event": _Event,
        "stream": lambda _: nullcontext(),
        "device": lambda _: nullcontext(),
    }
    apply = classmethod(lambda cls, *args: Function.apply(cls, *args))
    mode = Pretended()
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    with (
        patch.object(torch.fx.experimental._config, "meta_nonzero_assume_all_nonzero", True),
        patch.multiple(torch.cuda, **here),
        patch.object(torch.autograd.Function, "apply", apply),
        patch.object(torch.autograd, "grad", lambda _, by, **__: tuple(torch.zeros_like(x) for x in by)),
        patch.object(torch.Tensor, "record_stream", lambda *_: None),
        patch.object(torch.Tensor, "pin_memory", _pinned),
        patch.object(ThreadPoolExecutor, "submit", _at_once),
        patch.object(torch.nn.attention.bias, "causal_lower_right", _mask),
        mode,
    ):
        try:
            yield mode
        finally:
            torch._C._set_only_lift_cpu_tensors(lifted)


def _pinned(x: torch.Tensor) -> torch.Tensor:
    x.seen_by_gpu = True  # type: ignore[attr-defined]
    return x


def _mask(n_q: int, n: int) -> torch.Tensor:
    """In place of `causal_lower_right`, whose kind of tensor cannot be made here."""
    return torch.ones(n_q, n, dtype=torch.bool, device=DEVICE).tril(n - n_q)


def _at_once(_: ThreadPoolExecutor, call: Callable[..., Any], *args: Any) -> "Future[Any]":
    """In place of `submit`: another thread would be outside of what is pretended."""
    done: Future[Any] = Future()
    done.set_result(call(*args))
    return done


class _Event:
    def __init__(self, **_: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, _: "_Event") -> float:
        return 1.0


class _Stream:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, _: Any) -> None:
        pass

    def wait_event(self, _: Any) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def record_event(self, _: Any = None) -> _Event:
        return _Event()
