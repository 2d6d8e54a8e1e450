"""A process that is not this one's child, by a handle that no other process can take over."""

import os
import resource
import select
import signal
import sys
import threading
from contextlib import suppress
from functools import cache
from math import ceil
from pathlib import Path


class Process:
    """A process of a sandbox, as the host sees it. Any thread may call, and all calls are harmless once it is
    gone or closed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._lock = threading.Lock()  # or one thread could signal by a number that another has given back
        self._closed = False
        self._handle = os.pidfd_open(pid) if sys.platform == "linux" else -1

    def signal(self, number: int) -> None:
        """Send a signal."""
        with self._lock, suppress(ProcessLookupError):
            if self._closed:
                return
            if self._handle >= 0:
                signal.pidfd_send_signal(self._handle, number)
            else:
                os.kill(self.pid, number)

    def allow_cpu(self, seconds: int) -> None:
        """So many seconds of CPU time more, then SIGXCPU; not in the process's own power to change."""
        with suppress(OSError, ValueError):
            soft = ceil(self.cpu_s() + seconds - 0.25)  # the kernel counts whole seconds
            hard = resource.prlimit(self.pid, resource.RLIMIT_CPU)[1]
            resource.prlimit(self.pid, resource.RLIMIT_CPU, (soft, hard))

    def pid_inside(self) -> int:
        """Its number in its own pid namespace; 0 if it is gone."""
        with suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("NSpid:"):
                    return int(line.split()[-1])
        return 0

    def memory_bytes(self) -> int:
        """Its resident memory."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        return pages * resource.getpagesize()

    def exit_status(self, wait_s: float = 1.0) -> int | None:
        """How a process that nobody has buried yet ended: its exit code, or -n for signal n. None where this
        machine does not tell: some kernels do not tell a root that may not trace, as in a container."""
        if self._handle < 0:
            return None
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        if not poll.poll(wait_s * 1000):
            return None
        try:
            status = int(self._stat()[-1])
        except (OSError, ValueError, IndexError):
            return None
        return os.waitstatus_to_exitcode(status) if status or _may_trace() else None

    def cpu_s(self) -> float:
        """Seconds of CPU time it has used; 0 if it is gone."""
        try:
            user, system = self._stat()[11:13]
        except (OSError, ValueError):
            return 0.0
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _stat(self) -> list[str]:
        """The fields of proc(5) from the third on; the second, a name, may hold blanks."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()

    def close(self) -> None:
        """Give the handle back."""
        with self._lock:
            if self._handle >= 0 and not self._closed:
                os.close(self._handle)
            self._closed = True


@cache
def _may_trace() -> bool:
    if os.geteuid() != 0:
        return True  # the processes are its own
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return bool(effective >> 19 & 1)  # CAP_SYS_PTRACE
