"""The host's end: the zygote of this process, and the choice of walls."""

import atexit
import os
import socket
import subprocess
import threading
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ...serving.errors import UsageError
from . import walls
from .family import Family
from .inside import wire
from .limits import Limits
from .session import Session, SessionLost

Isolation: TypeAlias = Literal["kernel", "bubblewrap", "unsafe"]
"""Walls by the kernel's calls, walls by bubblewrap, none."""


class SandboxRefused(UsageError):
    """This machine cannot isolate programs, for a `reason`, until there is a `remedy`."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(
            f"Programs cannot be isolated here: {reason}. What would allow it: {remedy}. Or, if you trust "
            "every program that a model may write, do without: export ABDUCE_SANDBOX=unsafe"
        )


def begin(limits: Limits, isolation: Isolation) -> Session:
    """A fresh interpreter. Raises SessionLost where these walls cannot be built."""
    family = Family(limits, isolation)
    first = Session(family, limits)
    order = {**walls.view(), "isolation": isolation, "limits": asdict(limits), "folder": "/tmp"}  # noqa: S108
    try:
        if isolation == "bubblewrap":
            family.tell(order)
            return family.begin(first, _by_bubblewrap(order, family.descriptors(first)))
        if isolation == "unsafe":
            order["folder"] = family.own_folder()
        return family.begin(first, _zygote().fork(order, family.descriptors(first)))
    except BaseException:
        first.close()
        family.end("it did not begin")
        raise


@cache
def isolation() -> Isolation:
    """The walls that can be built here. Raises SandboxRefused."""
    reason = walls.supported()
    if not reason:
        for kind in _KINDS:
            try:
                begin(Limits(), kind).close()
            except OSError as error:
                reason = reason or str(error)
            else:
                return kind
    raise SandboxRefused(reason, _remedy())


_KINDS: tuple[Isolation, ...] = ("kernel", "bubblewrap")


def _remedy() -> str:
    """What would let walls be built, as far as it can be known: the exact line where there is one."""
    for name, forbidding, line in _SWITCHES:
        try:
            told = Path("/proc/sys", name).read_text().strip()
        except OSError:
            continue
        if told == forbidding:
            return f"sudo sysctl -w {line}"
    if walls.supported():
        return "Linux 5.14 or newer on x86_64 or aarch64, such as a virtual machine or WSL 2"
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return "docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
    return "sudo apt-get install bubblewrap"


_SWITCHES = (
    ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
    ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
)


class _Zygote:
    """A warm interpreter in a process of its own (`inside/zygote.py`)."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._line, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603  a list of our own making, no shell
                [*_python("main"), str(theirs.fileno())],
                cwd="/",
                env=walls.ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        atexit.register(self.close)

    def fork(self, order: dict[str, Any], descriptors: list[int]) -> int:
        """The process that becomes the sandbox."""
        with self._lock:
            wire.send(self._line, order, descriptors)
            try:
                return int(wire.receive(self._line)[0]["pid"])
            except EOFError as error:
                raise SessionLost("the zygote has ended") from error

    @property
    def alive(self) -> bool:
        return self.owner == os.getpid() and self.process.poll() is None

    def close(self) -> None:
        """Hang up: it ends, and no family can be begun by it any more."""
        self._line.close()
        if self.owner == os.getpid():
            self.process.wait()


_the_zygote: _Zygote | None = None
_starting = threading.Lock()


def _zygote() -> _Zygote:
    global _the_zygote
    with _starting:
        if _the_zygote is None or not _the_zygote.alive:
            _the_zygote = _Zygote()
        return _the_zygote


def _by_bubblewrap(order: dict[str, Any], descriptors: list[int]) -> "subprocess.Popen[bytes]":
    command = walls.bubblewrap(order["limits"]["files_bytes"])
    if command is None:
        raise SessionLost("bubblewrap is not installed")
    return subprocess.Popen(  # noqa: S603  a list of our own making, no shell
        [*command, *_python("inside_bubblewrap"), *map(str, descriptors)],
        cwd="/",
        env={},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=descriptors[-1],
        pass_fds=descriptors,
        start_new_session=True,
    )


def _python(function: str) -> list[str]:
    """A Python with no site packages that calls a function of `inside/zygote.py`."""
    place = f"import sys; sys.path.insert(0, {str(walls.INSIDE)!r})"
    start = f"{place}; from inside import zygote; zygote.{function}()"
    return [walls.interpreter(), "-s", "-S", "-P", "-B", "-X", "utf8", "-c", start]
