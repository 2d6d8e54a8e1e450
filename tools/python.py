"""Python in a process of its own: what a program prints, or the end of its complaint.

The process is a fresh interpreter (`-I`: no environment, no user packages) in an empty temporary folder, with
limits on time, memory, output and open files. It may start no processes, open no sockets, and change no file
outside its folder. When its time is up, it is killed with all its group. This keeps an honest program's
mistakes harmless. It is no defence against a hostile one: run those in a container.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..serving.errors import UsageError
from ..serving.flow import ToolResult
from .base import tool

ENDED = "[python: "
"""Every result that is not ok ends with a line that starts so: the program ran, and this is how it ended."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use. Defaults: enough for a model's arithmetic and the tests of HumanEval."""

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_bytes: int = 1 << 30
    output_bytes: int = 10_000  # of each, what it prints and its complaint; files may be 100 times that
    open_files: int = 64

    def __post_init__(self) -> None:
        if not (self.wall_s > 0 and self.cpu_s > 0 and self.memory_bytes >= 1 << 27):
            raise UsageError("wall_s and cpu_s must be above 0, and memory_bytes at least 128 MiB (1 << 27).")
        if self.output_bytes < 1 or self.open_files < 16:
            raise UsageError("output_bytes must be at least 1, and open_files at least 16.")


def run_python(code: str, limits: Limits | None = None) -> ToolResult:
    """Run a program to its end; blocks for `wall_s` at most. `ok` if it exits with code 0.

    ok: everything printed. Not ok: what was printed, the end of the traceback, and a line that starts with
    `ENDED`. Raises OSError only if no process can be started at all.
    """
    with _Process(code, limits or Limits()) as process:
        return process.result()


@tool
async def python(code: str) -> ToolResult:
    """Run a Python program and return what it prints. Print the result. No network, no files are kept."""
    process = _Process(code, Limits())
    with process:
        try:
            return await asyncio.to_thread(process.result)
        finally:
            process.kill()  # cancelled: the waiting thread sees the process end at once


class _Process:
    """One run. Output goes to files, so that neither pipe can block and the limit on file size holds it."""

    def __init__(self, code: str, limits: Limits) -> None:
        self._code = code
        self._limits = limits
        self._folder = TemporaryDirectory(prefix="abduce-", ignore_cleanup_errors=True)

    def __enter__(self) -> "_Process":
        here = Path(self._folder.name)
        (here / "work").mkdir()
        (here / "program.py").write_text(self._code, encoding="utf-8", errors="surrogatepass")
        limits = self._limits
        numbers = (limits.cpu_s, limits.memory_bytes, 100 * limits.output_bytes, limits.open_files)
        command = [sys.executable, "-I", "-B", "-X", "utf8", "-c", _BOOTSTRAP, str(here / "program.py")]
        try:
            with (here / "out").open("wb") as out, (here / "err").open("wb") as err:
                self._process = subprocess.Popen(  # noqa: S603  a list of our own making, no shell
                    command + [str(n) for n in numbers],
                    cwd=here / "work",
                    env=_ENVIRONMENT | {"HOME": str(here / "work"), "TMPDIR": str(here / "work")},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.wait()
        self._folder.cleanup()

    def kill(self) -> None:
        """End the program and everything in its group."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def result(self) -> ToolResult:
        """Wait for the end, by itself or by limit."""
        try:
            code = self._process.wait(self._limits.wall_s)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
            code = None
        out, err = self._read("out"), self._read("err")
        if code == 0:
            return ToolResult(out or "(nothing was printed)")
        parts = [out.rstrip("\n"), _last_lines(err), f"{ENDED}{self._ending(code)}]"]
        return ToolResult("\n".join(filter(None, parts)), ok=False)

    def _read(self, name: str) -> str:
        file = Path(self._folder.name) / name
        cap = self._limits.output_bytes
        try:
            with file.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, size - cap) if name == "err" else 0)
                text = stream.read(cap).decode("utf-8", "replace")
        except FileNotFoundError:  # the folder is gone: the call was cancelled
            return ""
        cut = size > cap and name == "out"
        return f"{text}\n… ({size - cap} more bytes)\n" if cut else text

    def _ending(self, code: int | None) -> str:
        limits = self._limits
        if code is None:
            return f"stopped after {limits.wall_s:g} s"
        if code == -signal.SIGXCPU or code == -signal.SIGKILL:
            return f"killed, it used more than {limits.cpu_s} s of CPU or too much memory"
        if code == -signal.SIGXFSZ:
            return f"killed, it wrote more than {100 * limits.output_bytes} bytes"
        return f"exit code {code}" if code >= 0 else f"killed by signal {-code}"


def _last_lines(complaint: str, n: int = 8) -> str:
    """The end of a traceback, without our own frames."""
    lines = [line for line in complaint.splitlines() if not line.startswith('  File "<string>", line')]
    return "\n".join(lines[-n:])


_ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

_FORBIDDEN: Sequence[str] = (
    "os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.posix_spawn", "os.spawn", "os.system",
    "pty.spawn", "subprocess.Popen", "socket.__new__", "socket.bind", "socket.connect", "socket.getaddrinfo",
)  # fmt: skip
_CHANGES: Sequence[str] = (
    "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink",
    "os.truncate", "os.utime", "shutil.rmtree",
)  # fmt: skip

# Runs before the program, in its process. Audit hooks cannot be taken off again.
_BOOTSTRAP = f"""
import os, resource, sys
def limit(what, amount):
    hard = resource.getrlimit(what)[1]
    amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    try:
        resource.setrlimit(what, (amount, amount))
    except (ValueError, OSError):
        pass
def guard(real=os.path.realpath, join=os.path.join, link=os.readlink, null=os.devnull):
    here = real(".") + "/"
    forbidden, changes = frozenset({list(_FORBIDDEN)!r}), frozenset({list(_CHANGES)!r})
    write = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    def outside(path, folder=-1):
        if isinstance(path, int):
            return False
        path = path.decode() if isinstance(path, bytes) else str(path)
        if isinstance(folder, int) and folder >= 0:
            path = join(link("/proc/self/fd/%d" % folder), path)
        return path != null and not (real(path) + "/").startswith(here)
    def hook(event, arguments):
        if event in forbidden:
            raise PermissionError(event + " is not allowed here")
        if event == "open" and arguments[2] & write and outside(arguments[0]):
            raise PermissionError("files may only be written in the working folder")
        if event in changes:
            fd = arguments[-1] if len(arguments) > 1 else -1
            paths = arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]
            if any(outside(path, fd) for path in paths):
                raise PermissionError("files may only be changed in the working folder")
    return hook
path, cpu, memory, size, files = sys.argv[1], *map(int, sys.argv[2:])
limit(resource.RLIMIT_CPU, cpu)
limit(resource.RLIMIT_AS, memory)
limit(resource.RLIMIT_FSIZE, size)
limit(resource.RLIMIT_NOFILE, files)
limit(resource.RLIMIT_CORE, 0)
with open(path, encoding="utf-8", errors="surrogatepass") as file:
    source = file.read()
program = compile(source, "program.py", "exec")
sys.argv = ["program.py"]
sys.addaudithook(guard())
names = {{"__name__": "__main__", "__builtins__": __builtins__}}
del os, resource, limit, guard, path, cpu, memory, size, files, file, source
exec(program, names)
"""
