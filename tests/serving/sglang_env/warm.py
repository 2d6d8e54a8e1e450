"""A Python that has imported SGLang, and forks where one would be started that imports it again.

    python warm.py SOCKET                           imports, then forks for its clients until its input ends
    python warm.py SOCKET -m sglang.launch_server   a client: as python -m sglang.launch_server

A start of a server is three processes that import 6500 modules each, a second of work after 25 of imports.
Here the imports are those that each process of a server has made before it loads plug-ins; no plug-in is
among them, and each process loads its own. All else is as in any start: arguments, environment and exit code
are the client's, the processes are children of the server's, and they are handed what they work on in the way
of multiprocessing's `spawn`. What ends the client ends all of them at once. Variables that are read while
SGLang is imported must be those that the first process was started with.
"""

import atexit
import fcntl
import gc
import importlib
import json
import multiprocessing.util
import os
import re
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.spawn import spawn_main
from pathlib import Path
from typing import Any, NoReturn

CHILDREN = 2  # a server's scheduler and its detokeniser; a third process would be started as usual
MOST = 1 << 17  # bytes of a message
HIGH = 200  # file descriptors from here on are free
ENTRY = "sglang.srt.entrypoints.http_server"  # imports all that the three processes do
AT_IMPORT = ("SGLANG_USE_CPU_ENGINE", "SGLANG_RETURN_ORIGINAL_LOGPROB", "HF_HUB_OFFLINE", "OMP_WAIT_POLICY")


def client(path: str, arguments: Sequence[str]) -> int:
    """Have the arguments run. Returns the exit code; if this process ends, so do those that were forked."""
    told = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link, suppress(OSError):
        link.connect(path)
        asked = {"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}
        socket.send_fds(link, [json.dumps(asked).encode()], [0, 1, 2])
        told = link.recv(MOST)
    if not told:
        log = Path(path).with_name("log")
        print(f"What listened at {path} has ended.", log.read_text() if log.exists() else "", file=sys.stderr)
    code = int(told or b"1")
    return code if code >= 0 else 128 - code


def serve(path: str) -> dict[str, Any]:
    """Fork for each client until the standard input ends. Returns, in a fork, what it is to run."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()  # clients wait from now on
        importlib.import_module(ENTRY)
        gc.freeze()  # what is never freed is never written to, and so is shared
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a guard
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            link, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                return guard(link)
            link.close()
    sys.exit()


def guard(link: socket.socket) -> dict[str, Any]:
    """In a session of its own: fork again, and end the session when that fork has ended, whose exit code the
    client is told, or the client, or the input. Returns, in the second fork, what it is to run."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, given, _, _ = socket.recv_fds(link, MOST, 3)
    if pid := os.fork():
        ended = os.pidfd_open(pid)
        if ended in select.select([link, sys.stdin, ended], [], [])[0]:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with suppress(OSError):
                link.send(str(code).encode())
        os.killpg(0, signal.SIGKILL)
    link.close()
    for number, fd in enumerate(given):
        os.dup2(fd, number)
        os.close(fd)
    asked: dict[str, Any] = json.loads(message)
    return asked


def settle(asked: dict[str, Any]) -> None:
    """Become what a fresh Python would be with this environment and these arguments."""
    changed = [name for name in AT_IMPORT if os.environ.get(name) != asked["environment"].get(name)]
    if changed:
        sys.exit(f"{', '.join(changed)}: SGLang has been imported with another value.")
    theirs = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    rest = [entry for entry in sys.path[1:] if entry not in theirs]
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    ours = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [str(Path.cwd()), *ours, *rest]
    importlib.invalidate_caches()
    if threads := os.environ.get("OMP_NUM_THREADS"):  # is read when the library is loaded
        import torch

        torch.set_num_threads(int(threads))


def child() -> tuple[int, socket.socket] | dict[str, int]:
    """Fork a process that waits to become one that multiprocessing spawns: its id and the way to tell it.
    Returns, in the fork, the arguments of `spawn_main`."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if pid := os.fork():
        theirs.close()
        return pid, ours
    ours.close()
    link = socket.socket(fileno=fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, HIGH))
    theirs.close()
    message, given, _, _ = socket.recv_fds(link, MOST, 64)
    link.close()
    if not message:  # never needed: the server has ended
        os._exit(0)
    told = json.loads(message)
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH) for fd in given]
    for fd in given:
        os.close(fd)
    for fd, number in zip(aside, told["numbers"], strict=True):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(told["environment"])
    sys.argv = ["-c", "--multiprocessing-fork"]
    handles: dict[str, int] = told["handles"]
    return handles


def spawning(waiting: list[tuple[int, socket.socket]]) -> Callable[..., int]:
    """What stands for `multiprocessing.util.spawnv_passfds`: a waiting process takes the part of the one to
    be started."""
    start = multiprocessing.util.spawnv_passfds

    def given(path: bytes, arguments: list[str], numbers: Sequence[int]) -> int:
        if arguments[-1] != "--multiprocessing-fork" or not waiting:
            return int(start(path, arguments, numbers))
        pid, link = waiting.pop(0)
        numbers = sorted(map(int, numbers))
        handles = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", arguments[-2])}
        told = {"numbers": numbers, "handles": handles, "environment": dict(os.environ)}
        socket.send_fds(link, [json.dumps(told).encode()], numbers)
        link.close()
        return pid

    return given


def leave(run: Callable[[], object]) -> NoReturn:
    """Run it and end as Python ends, but for the last step, in which libraries that were imported in vain
    complain of what they leak."""
    code: object = None
    try:
        run()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def main() -> None:
    """One of the two."""
    path, *arguments = sys.argv[1:]
    if arguments:
        sys.exit(client(path, arguments))
    asked = serve(path)
    settle(asked)
    waiting = []
    for _ in range(CHILDREN):
        told = child()
        if isinstance(told, dict):
            leave(partial(spawn_main, **told))
        waiting.append(told)
    multiprocessing.util.spawnv_passfds = spawning(waiting)
    _, module, *sys.argv[1:] = asked["arguments"]
    leave(partial(runpy.run_module, module, run_name="__main__", alter_sys=True))


if __name__ == "__main__":
    main()
