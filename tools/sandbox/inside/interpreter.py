"""The interpreter: runs one program after the other in one namespace, and forks when it is told to.

Whatever runs here is as hostile as the programs: once one has run, nothing this process says is believed.
It can do harm to its own results only.
"""

import gc
import json
import linecache
import os
import random
import resource
import shutil
import socket
import sys
import threading
import traceback
import warnings
from contextlib import nullcontext, suppress
from math import ceil
from pathlib import Path
from tempfile import gettempdir
from types import ModuleType
from typing import Any, NoReturn

from . import guard, wire

NO_ROOM = -1
"""The first word of a branch that has no room for its folder."""

_LOST = 70  # exit code of an interpreter that cannot hear its host any more
_SHOWN = 400  # characters of a line in a traceback
_NULL = "/dev/null"


def begin(order: dict[str, Any], keeper: socket.socket, orders: int, out: int, err: int) -> NoReturn:
    """Be the first interpreter of a sandbox. `keeper` is sent the right to rule on forks."""
    null = os.open(_NULL, os.O_RDONLY)
    for target, descriptor in enumerate((null, out, err)):
        os.dup2(descriptor, target)
    isolated = order["isolation"] != "unsafe"
    if not isolated:
        keeper.close()
    wire.keep_only([orders, keeper.fileno()] if isolated else [orders])
    line = socket.socket(fileno=os.dup(orders))  # a low number, whatever the host's was: they are limited
    os.close(orders)
    with nullcontext() if isolated else suppress(OSError, ValueError):  # not every system has every limit
        _limit(order["limits"], isolated)
    sys.path[:] = [*(path for path in sys.path if path != order["own"]), *order["site"]]
    interpreter = _Interpreter(line, order)
    if isolated:
        _wall_in(keeper)
    else:
        guard.install(order["folder"])
    interpreter.serve()


def _wall_in(keeper: socket.socket) -> None:
    from . import kernel, seccomp

    listener = kernel.install_filter(seccomp.program(os.uname().machine))
    wire.send(keeper, {}, [listener])
    os.close(listener)
    keeper.close()


def _limit(limits: dict[str, int], isolated: bool) -> None:
    wanted = {
        "RLIMIT_FSIZE": limits["files_bytes"],
        "RLIMIT_NOFILE": limits["open_files"],
        "RLIMIT_CORE": 0,
        "RLIMIT_AS": limits["memory_bytes"],
        **({"RLIMIT_NPROC": limits["threads"]} if isolated else {}),  # else it counts the user's own too
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_RTPRIO": 0,
    }
    for name, amount in wanted.items():
        what = getattr(resource, name, None)
        if what is not None:
            hard = resource.getrlimit(what)[1]
            amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
            resource.setrlimit(what, (amount, amount))


class _Interpreter:
    def __init__(self, line: socket.socket, order: dict[str, Any]) -> None:
        self._line = line
        self._root = order["folder"]
        self._isolated = order["isolation"] != "unsafe"
        self._main = ModuleType("__main__")
        self._n_run = 0
        self._folder = ""
        sys.modules["__main__"] = self._main
        linecache.cache.clear()
        random.seed(0)  # a program draws the same numbers whenever it is run again
        gc.freeze()  # what is there already stays shared with all forks
        self._move_in()

    def serve(self) -> NoReturn:
        """Greet the host, then do what it says until it hangs up."""
        self._tell({"ready": os.getpid()})
        while True:
            try:
                order, descriptors = wire.receive(self._line)
                if order["do"] == "run":
                    self._tell({"id": order["id"], "exit": self._run(order["code"], order.get("cpu_s"))})
                else:
                    self._fork(descriptors)
            except EOFError:
                os._exit(0)
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
                os._exit(_LOST)

    def _tell(self, message: dict[str, Any]) -> None:
        self._line.sendall(json.dumps(message).encode() + b"\n")

    def _run(self, code: str, cpu_s: int | None) -> int:
        """Run a program. Returns its exit code."""
        if cpu_s is not None:
            _allow_cpu(cpu_s)
        self._n_run += 1
        name = "program.py" if self._n_run == 1 else f"program-{self._n_run}.py"
        lines = [f"{line[:_SHOWN]}\n" for line in code.splitlines()]
        linecache.cache[name] = (len(code), None, lines, name)
        out = sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        err = sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        try:
            try:
                exec(compile(code, name, "exec", dont_inherit=True), self._main.__dict__)  # noqa: S102
                ended = 0
            except BaseException as error:
                ended = _complain(error)
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and not thread.daemon:
                    thread.join()
            for stream in {sys.stdout, sys.stderr, out, err}:
                stream.flush()
        except BaseException as error:  # its own streams, or its own last words, failed
            ended = _complain(error) or 1
        return ended

    def _fork(self, descriptors: list[int]) -> None:
        """Fork; the child speaks to the host on `descriptors`: its line, its output, its complaints."""
        dice = random.getstate()  # forking shakes them
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads do not come along
            child = guard.fork() if not self._isolated else os.fork()
        if child:
            for descriptor in descriptors:
                os.close(descriptor)
            _bury()
            return
        random.setstate(dice)
        line, out, err = descriptors
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.dup2(line, self._line.fileno())
        for descriptor in descriptors:
            os.close(descriptor)
        try:
            self._move_in()
        except OSError:
            self._tell({"ready": NO_ROOM})
            raise
        self._tell({"ready": os.getpid()})

    def _move_in(self) -> None:
        """Work in a folder of one's own, with a copy of what was in the one before."""
        before, self._folder = self._folder, f"{self._root}/{os.urandom(8).hex()}"
        if before:
            shutil.copytree(before, self._folder, symlinks=True)
        else:
            Path(self._folder).mkdir(mode=0o700)
        here = str(Path.cwd()) if before else ""
        if here == before or not here.startswith(f"{before}/"):
            os.chdir(self._folder)
        else:
            os.chdir(self._folder + here.removeprefix(before))
        for name in ("HOME", "TMPDIR", "PWD"):
            os.environ[name] = self._folder
        tempfile = sys.modules["tempfile"]
        if not before or gettempdir() == before:
            tempfile.tempdir = self._folder  # type: ignore[attr-defined]


def _complain(error: BaseException) -> int:
    """Print what a program ended with. Returns its exit code."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        sys.stderr.write(f"{error.code}\n")
        return 1
    frames = error.__traceback__.tb_next if error.__traceback__ else None  # without ours
    traceback.print_exception(type(error), error, frames)
    return 1


def _allow_cpu(seconds: int) -> None:
    """So many seconds more, where no host can set the limit from outside."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = ceil(used.ru_utime + used.ru_stime + seconds - 0.25)  # the kernel counts whole seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _bury() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
