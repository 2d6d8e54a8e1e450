"""A Python interpreter behind walls, as the host sees it: it runs programs one after the other, and forks.

Between programs it is stopped, so that no thread it left behind goes on. Whatever it says is taken for the
word of an enemy: a line of JSON with two small numbers is believed, for it concerns its own result only;
anything else ends it. Its process id is the one the kernel tells.
"""

import json
import select
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import ExitStack
from os import close, pipe
from typing import TYPE_CHECKING, Any

from ...serving.flow import ToolResult
from .inside import wire
from .inside.interpreter import NO_ROOM
from .limits import Limits
from .output import Output
from .process import Process

if TYPE_CHECKING:
    from .family import Family

ENDED = "[python: "
"""Every result that is not ok ends with a line that starts so: the program ran, and this is how it ended."""

_LINUX = sys.platform == "linux"
_FORK_S = 10.0  # an interpreter that has not forked by then never will
_WORD = 4096  # bytes of what an interpreter says at most
_HEAD = 1 << 20  # characters of a program at most


class SessionLost(OSError):
    """The interpreter is gone, and its variables with it. Run its programs again in a new one."""


class NoRoom(SessionLost):
    """There cannot be another branch now; those that there are live on."""


class Session:
    """One interpreter. Any thread may call; a second program waits for the first."""

    def __init__(self, family: "Family", limits: Limits) -> None:
        self._family = family
        self._limits = limits
        self._lock = threading.Lock()
        self._line, self._theirs = socket.socketpair()
        if _LINUX:  # before the interpreter can speak: the kernel then says who it is
            self._line.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with ExitStack() as stack:
            self._out, out = _pipe(stack)
            self._err, err = _pipe(stack)
            stack.pop_all()
        self._given = [self._theirs.fileno(), out, err]
        self._process: Process | None = None
        self._n_runs = 0
        self._killed = ""
        self._lost = ""
        self.self_inflicted = False
        """Whether a program of its own has cost it its life, as the same program would again."""

    @property
    def lost(self) -> str:
        """Why it is gone; empty while it is there."""
        return self._lost or self._family.ended

    @property
    def descriptors(self) -> list[int]:
        """What the interpreter is given: its line, its output, its complaints."""
        return self._given

    def greet(self, others: set[int]) -> int:
        """Wait for the interpreter's first word. Returns its process id, as the kernel tells it. Raises
        SessionLost if it is one of `others`, says anything else, or nothing."""
        self._hand_over()
        word, pid = self._first_word(time.monotonic() + _FORK_S)
        if not isinstance(word, dict) or not isinstance(word.get("ready"), int) or pid in (0, *others):
            raise SessionLost("the interpreter did not fork as it was told")
        no_room = word["ready"] == NO_ROOM
        try:
            self._process = Process(pid)
        except ProcessLookupError:  # without room it ends by itself, and may have ended
            if not no_room:
                raise SessionLost("the interpreter ended as it began") from None
        if no_room or self._process is None:
            self.kill()
            raise NoRoom("there is no room for another copy of the working folder")
        self._process.signal(signal.SIGSTOP)
        return pid

    def run(self, code: str, timeout_s: float | None = None) -> ToolResult:
        """Run a program to its end, or for `timeout_s`, at most the limit. `ok` if it exits with code 0.

        ok: everything printed. Not ok: what was printed, the end of the traceback, and a line that starts
        with `ENDED`. A program that had to be killed takes the session with it (`lost`).
        """
        with self._lock:
            if self.lost:
                return ToolResult(f"{ENDED}{self.lost}]", ok=False)
            if len(code) > _HEAD:
                return ToolResult(f"{ENDED}a program may have {_HEAD} characters, not {len(code)}]", ok=False)
            wall_s = min(timeout_s or self._limits.wall_s, self._limits.wall_s)
            output = Output(self._out, self._err, self._limits.output_bytes)
            ended = self._ended(code, wall_s, output)
            if ended in (0, _LEFT_WELL):
                return ToolResult(output.printed or "(nothing was printed)")
            told = ended if isinstance(ended, str) else f"exit code {ended}"
            parts = [output.printed.rstrip("\n"), output.complaint, f"{ENDED}{told}]"]
            return ToolResult("\n".join(filter(None, parts)), ok=False)

    def fork(self) -> "Session":
        """A session with the same variables and a copy of the working folder; neither sees what the other
        does from now on. Raises NoRoom if there are too many, SessionLost if this one is gone or goes."""
        with self._lock, self._family.forking:
            if self.lost:
                raise SessionLost(self.lost)
            self._family.check_room()
            child = Session(self._family, self._limits)
            try:
                assert self._process is not None
                self._family.allow_fork(self._process)
                self._process.signal(signal.SIGCONT)
                wire.send(self._line, {"do": "fork"}, child.descriptors)
                self._family.join(child)
            except NoRoom:
                child.close()
                raise
            except (OSError, EOFError) as error:
                child.close()
                # A fork that was allowed and not made could be made later, unseen.
                self._family.end("it did not fork as it was told")
                self._bury("it did not fork as it was told")
                raise SessionLost(f"the session could not be forked: {error}") from error
            finally:
                if self._process is not None:
                    self._process.signal(signal.SIGSTOP)
            return child

    @property
    def memory_bytes(self) -> int:
        """What it holds of this machine's memory; what it shares with others counts for each."""
        return 0 if self.lost or self._process is None else self._process.memory_bytes()

    def kill(self, why: str = "it was stopped") -> None:
        """End it at once, from any thread; a program that is running ends with that line."""
        self._killed = self._killed or why
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    def close(self) -> None:
        """End it. Its branches live on."""
        self.kill("the session has ended")
        with self._lock:
            self._bury(self._killed)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ a run

    def _ended(self, code: str, wall_s: float, output: Output) -> int | str:
        """The exit code of a program that ended, or how the session was lost over it."""
        assert self._process is not None
        self._n_runs += 1
        output.forget()
        self._process.allow_cpu(self._limits.cpu_s)
        self._process.signal(signal.SIGCONT)
        by_hand = {} if _LINUX else {"cpu_s": self._limits.cpu_s}
        order = {"do": "run", "id": self._n_runs, "code": code, **by_hand}
        try:
            self._line.settimeout(wall_s)
            wire.send(self._line, order)
            ended = self._listen(time.monotonic() + wall_s, wall_s, output)
        except OSError:
            ended = self._ending()
        if isinstance(ended, int):
            self._process.signal(signal.SIGSTOP)
            output.read_rest()
        else:
            output.read_rest()
            self.self_inflicted = not (self._killed or self._family.ended)
            self.kill()
            self._bury(ended)
        return ended

    def _listen(self, deadline: float, wall_s: float, output: Output) -> int | str:
        poll = select.poll()
        for descriptor in (self._line.fileno(), self._out, self._err):
            poll.register(descriptor, select.POLLIN)
        heard = bytearray()
        while True:
            left = deadline - time.monotonic()
            ready = dict(poll.poll(max(0.0, left) * 1000))
            if left <= 0:
                return self._killed or f"stopped after {wall_s:g} s"
            for descriptor in (self._out, self._err):
                if descriptor in ready and not output.read(descriptor):
                    poll.unregister(descriptor)
            if output.size > 100 * self._limits.output_bytes:
                return f"killed, it wrote more than {100 * self._limits.output_bytes} bytes"
            if self._line.fileno() in ready:
                part = self._line.recv(_WORD)
                if not part:
                    return self._ending()
                heard += part
                *words, heard = heard.split(b"\n")
                if len(heard) + sum(map(len, words)) > _WORD:
                    return "killed, it tried to speak for its interpreter"
                for word in words:
                    found = _word(bytes(word))
                    if found is None:
                        return "killed, it tried to speak for its interpreter"
                    if found[0] == self._n_runs:
                        return found[1]

    def _ending(self) -> str:
        """How the process ended that has hung up."""
        assert self._process is not None
        if self._killed or self._family.ended:
            return self._killed or self._family.ended
        status, used = self._process.exit_status(), self._process.cpu_s()
        if status in (-signal.SIGXCPU, -signal.SIGKILL) or (status is None and used > self._limits.cpu_s):
            return f"killed, it used more than {self._limits.cpu_s} s of CPU or too much memory"
        if status is None:
            return "the interpreter ended"
        return f"exit code {status}" if status >= 0 else f"killed by signal {-status}"

    # ------------------------------------------------------------ its beginning and end

    def _first_word(self, deadline: float) -> tuple[Any, int]:
        heard, pid = b"", 0
        while b"\n" not in heard and len(heard) < _WORD:
            self._line.settimeout(max(0.001, deadline - time.monotonic()))
            part, beside, _, _ = self._line.recvmsg(_WORD, socket.CMSG_SPACE(_CREDENTIALS.size))
            for level, kind, data in beside:
                if level == socket.SOL_SOCKET and kind == getattr(socket, "SCM_CREDENTIALS", None):
                    pid = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
            if not part:
                raise SessionLost(self._family.complaint() or self._last_words())
            heard += part
        if _LINUX:
            self._line.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        try:
            word = json.loads(heard)
        except (ValueError, RecursionError):
            return None, pid
        return word, pid if _LINUX else word["ready"]

    def _last_words(self) -> str:
        output = Output(self._out, self._err, _WORD)
        output.read_rest()
        return output.complaint.rpartition("\n")[2] or "the interpreter ended before it began"

    def _hand_over(self) -> None:
        """Close what belongs to the interpreter: it has its own by now."""
        self._theirs.close()
        for descriptor in self._given[1:]:
            close(descriptor)
        self._given = []

    def _bury(self, why: str) -> None:
        if self._lost:
            return
        self._lost = why or "the session has ended"
        if self._given:
            self._hand_over()
        self._line.close()
        for descriptor in (self._out, self._err):
            close(descriptor)
        self._family.leave(self)
        if self._process is not None:
            self._process.close()


def _word(told: bytes) -> tuple[int, int] | None:
    """The number of the run and the exit code, if that is what was said."""
    try:
        word = json.loads(told)
        run, code = word["id"], word["exit"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    whole = type(run) is int and type(code) is int and 0 <= code <= 255
    return (run, code) if whole else None


def _pipe(stack: ExitStack) -> tuple[int, int]:
    ends = pipe()
    for descriptor in ends:
        stack.callback(close, descriptor)
    return ends


_LEFT_WELL = "exit code 0"  # by os._exit
_CREDENTIALS = struct.Struct("3i")  # struct ucred
