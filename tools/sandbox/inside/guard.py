"""Without walls: an audit hook that keeps an honest program's mistakes harmless, and does nothing against a
hostile one."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_forking = False


def fork() -> int:
    """The fork that the host has ordered."""
    global _forking
    _forking = True
    try:
        return os.fork()
    finally:
        _forking = False


def install(folder: str) -> None:
    """From now on this process starts no other, opens no socket, and changes no file outside `folder`.
    Audit hooks cannot be taken off again."""
    here = os.path.realpath(folder) + "/"
    write = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def outside(path: Any, at: Any = -1, real: Any = os.path.realpath) -> bool:
        if isinstance(path, int):
            return False
        path = os.fsdecode(path)
        if isinstance(at, int) and at >= 0:
            path = str(Path(f"/proc/self/fd/{at}").readlink() / path)
        return bool(path != os.devnull and not (real(path) + "/").startswith(here))

    def hook(event: str, arguments: Sequence[Any]) -> None:
        if event in _FORBIDDEN and not (event == "os.fork" and _forking):
            raise PermissionError(f"{event} is not allowed here")
        if event == "open" and arguments[2] & write and outside(arguments[0]):
            raise PermissionError("files may only be written in the working folder")
        if event in _CHANGES:
            at = arguments[-1] if len(arguments) > 1 else -1
            two = event in ("os.rename", "os.link", "os.symlink")
            if any(outside(path, at) for path in arguments[: 2 if two else 1]):
                raise PermissionError("files may only be changed in the working folder")

    sys.addaudithook(hook)


_FORBIDDEN = frozenset({
    "os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.posix_spawn", "os.spawn", "os.system",
    "pty.spawn", "subprocess.Popen", "socket.__new__", "socket.bind", "socket.connect", "socket.getaddrinfo",
})  # fmt: skip
_CHANGES = frozenset({
    "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink",
    "os.truncate", "os.utime", "shutil.rmtree",
})  # fmt: skip
