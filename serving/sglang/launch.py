"""Starting a SGLang server: which flags this machine needs, each with its reason, and the process itself."""

import errno
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from .. import settings
from ..errors import UsageError
from .plugin.kv_config import Config, backend_of, text_of

# Runs the server as a child and ends the group when whoever started it is gone, however it went.
_KEEPER = """
import os, signal, subprocess, sys, threading
def watch():
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
threading.Thread(target=watch, daemon=True).start()
code = child.wait()
os._exit(code if code >= 0 else 128 - code)
"""
_GRACE_S = 10  # between asking a server to end and ending it
_LET_GO_S = 2  # in which a server that was ended before this one leaves its port


class Flag(NamedTuple):
    """One flag of the server, or one of its environment variables (`NAME=value`), and why."""

    words: tuple[str, ...]
    reason: str


def flags(*, gpu: bool, amx: bool, kv: Config | None = None, engram: bool = False) -> list[Flag]:
    """What a server needs on a machine with or without a GPU, and a CPU with or without AMX, and for a KV
    method of our plug-in, or for a model with Engram tables.

    Source for the CPU: measured with SGLang 0.5.23, whose CPU kernels all need AMX."""
    common = [
        Flag(("SGLANG_RETURN_ORIGINAL_LOGPROB=1",), "log-probs at temperature 1, whatever is drawn at"),
        Flag(("--enable-return-hidden-states",), "hidden states for probes; costs nothing until asked for"),
    ]
    if kv is not None:
        common += _kv_flags(kv, gpu=gpu)
    if gpu and engram and kv is None:
        common += [
            Flag(("--disable-decode-cuda-graph",), "a step's rows of the Engram tables come from the host"),
            Flag(("--disable-prefill-cuda-graph",), "the same: its forwards are not captured"),
        ]
    if gpu:
        return common
    common += [
        Flag(("SGLANG_USE_CPU_ENGINE=1",), "no GPU found"),
        Flag(("--device", "cpu"), "no GPU found"),
        Flag(("--disable-overlap-schedule",), "the overlapped scheduler needs a GPU"),
        Flag(("--mem-fraction-static", "0.2"), "leave most of the memory to everybody else"),
        Flag(("--max-total-tokens", "16384"), "a prefix cache of that size; raise it on a large machine"),
        Flag(("--sleep-on-idle",), "an idle server leaves its core to others"),
        Flag(("--skip-server-warmup",), "the first request warms it up"),
    ]
    if not settings.is_set("OMP_WAIT_POLICY"):
        common.append(Flag(("OMP_WAIT_POLICY=PASSIVE",), "threads that wait leave their cores to others"))
    if not amx:
        if kv is None:
            common.append(
                Flag(("--attention-backend", "torch_native"), "SGLang's CPU kernels need AMX, not here")
            )
        common.append(
            Flag(("--dtype", "float32"), "bfloat16 is emulated without AMX: slower, and less exact")
        )
    return common


def _kv_flags(kv: Config, *, gpu: bool) -> list[Flag]:
    chosen = [
        Flag((f"ABDUCE_KV={text_of(kv)}",), "the KV method of --kv with all its sizes"),
        Flag(("--attention-backend", backend_of(kv)), "decodes by that method, reads prompts exactly"),
    ]
    if gpu:
        chosen += [
            Flag(("--disable-decode-cuda-graph",), "a step of the KV method is planned on the host"),
            Flag(("--disable-prefill-cuda-graph",), "the same: its forwards are not captured"),
            Flag(("--mem-fraction-static", "0.75"), "room for what the method keeps beside the cache"),
        ]
    return chosen


def has_gpu() -> bool:
    """Whether an NVIDIA or AMD driver is here."""
    return (
        Path("/proc/driver/nvidia/version").exists()
        or Path("/dev/kfd").exists()
        or bool(shutil.which("nvidia-smi"))
    )


def has_amx() -> bool:
    """Whether the CPU has Intel's matrix extension."""
    with suppress(OSError):
        return "amx_tile" in Path("/proc/cpuinfo").read_text()
    return False


def command(python: str, model: str, host: str, port: int, chosen: Iterable[Flag]) -> list[str]:
    """The command that starts a server."""
    words = [word for flag in chosen for word in flag.words if "=" not in word or word.startswith("-")]
    told = ["--model-path", model, "--host", host, "--port", str(port)]
    return [python, "-m", "sglang.launch_server", *told, *words]


def variables(chosen: Iterable[Flag]) -> dict[str, str]:
    """The environment variables among the flags."""
    words = (word for flag in chosen for word in flag.words)
    return dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("-"))


def arguments(chosen: Iterable[Flag]) -> dict[str, str | float | bool]:
    """The flags as arguments of `sglang.Engine`."""
    told: dict[str, str | float | bool] = {}
    for flag in chosen:
        name, *value = flag.words
        if name.startswith("--"):
            key = name.removeprefix("--").replace("-", "_")
            told[key] = _number(value[0]) if value else True
    return told


def _number(text: str) -> str | float:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def free_port() -> int:
    """A port of this machine that nobody listens on just now, and that the system gives to no connection, if
    there are such."""
    low, high = _given_away()
    ports = [port for port in range(10_000, 65_536) if not low <= port <= high] or range(10_000, 65_536)
    while True:
        port = random.choice(ports)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _given_away() -> tuple[int, int]:
    """The first and the last port that the system gives to connections; on some machines nearly all."""
    with suppress(OSError):
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(low), int(high)
    return 49_152, 65_535  # what RFC 6335 leaves to connections


class Server:
    """A server process and all it starts: SGLang's scheduler and detokeniser are processes of its group.
    It does not outlive the process that started it.

    It listens only when the model is loaded, and what listens at its url before that would be taken for it:
    raises UsageError if something does. From then on the port is held for it."""

    def __init__(
        self, command: Sequence[str], url: str, *, log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.url = url
        self.log = log
        self._port = _held(url)
        with log.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _KEEPER, *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=settings.environment(environment or {}),
                start_new_session=True,
            )

    def wait(self, timeout_s: float, *, tick: Callable[[float], None] = lambda _: None) -> None:
        """Until the server answers; `tick` is told the seconds so far. Raises UsageError with the end of the
        log if it ends instead, or takes longer."""
        began = time.monotonic()
        while not _answers(f"{self.url}/health"):
            took = time.monotonic() - began
            if self._process.poll() is not None:
                raise UsageError(f"The server ended with code {self._process.returncode}. {self._told()}")
            if took > timeout_s:
                self.stop()
                raise UsageError(f"The server did not answer within {timeout_s:g} s. {self._told()}")
            tick(took)
            time.sleep(0.5)

    def ended(self) -> int | None:
        """The exit code if the server has ended."""
        return self._process.poll()

    def kill(self) -> None:
        """End the whole group at once, as a crash would."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._port.close()

    def stop(self) -> None:
        """Ask the group to end, and after a while end it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        self.kill()

    def tail(self, lines: int = 15) -> str:
        """The end of the log."""
        with suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def _told(self) -> str:
        return f"The end of its log, {self.log}:\n{self.tail()}"


def _held(url: str) -> socket.socket:
    """A socket that has the port of a url without listening: the system gives the port to nobody, and a
    server can listen at it. Raises UsageError if something listens there."""
    where = urlsplit(url)
    host, port = where.hostname or "127.0.0.1", where.port or 80
    holder = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if sys.platform != "linux":  # elsewhere it would keep the server out too
        return holder
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        holder.setsockopt(socket.SOL_SOCKET, option, 1)
    until = time.monotonic() + _LET_GO_S
    while True:
        try:
            holder.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return holder  # the server will say what is wrong with it
            if time.monotonic() > until:
                holder.close()
                raise UsageError(
                    f"Something else listens at {url} already. End it, or choose another port with --port."
                ) from None
            time.sleep(0.1)
        else:
            return holder


@contextmanager
def running(server: Server, *, timeout_s: float = 300) -> Iterator[Server]:
    """The server while it is needed; its whole group is gone at the end."""
    try:
        server.wait(timeout_s)
        yield server
    finally:
        server.stop()


def _answers(url: str) -> bool:
    with suppress(OSError):
        return bool(urlopen(Request(url), timeout=5).status == 200)  # noqa: S310
    return False
