"""A family: a session and all that were forked from it. They live behind the same walls, and end together if
one of them tries to have more processes than were ordered."""

import os
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...serving.scratch import Scratch
from .inside import wire
from .inside.keeper import BURY, FORK, ORDER
from .limits import Limits
from .process import Process
from .session import NoRoom, Session, SessionLost

_NOBODY = 65534
_BEGIN_S = 20.0


class Family:
    """`control` is the line to the keeper: the family ends when it is closed."""

    def __init__(self, limits: Limits, isolation: str) -> None:
        self.limits = limits
        self.isolation = isolation
        self.forking = threading.RLock()  # one at a time: whoever is new is then the one that was ordered
        self.ended = ""
        self._control, self._theirs = socket.socketpair()
        self._sessions: dict[int, Session] = {}
        self._lock = threading.Lock()
        self._parent: Process | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._folder: Scratch | None = None

    def own_folder(self) -> str:
        """A folder of the host that goes with the family, for programs without walls."""
        self._folder = Scratch()
        return str(self._folder.path)

    def descriptors(self, first: Session) -> list[int]:
        """What a new sandbox is given."""
        return [self._theirs.fileno(), *first.descriptors]

    def tell(self, order: dict[str, Any]) -> None:
        """What is to be built, where no zygote is told."""
        wire.send(self._control, order)

    def begin(self, first: Session, parent: "int | subprocess.Popen[bytes]") -> Session:
        """Wait until the walls stand and the first interpreter speaks. Raises SessionLost, with a reason."""
        self._theirs.close()
        self._control.settimeout(_BEGIN_S)
        if isinstance(parent, int):
            try:
                self._parent = Process(parent)
            except ProcessLookupError:
                raise SessionLost(self.complaint() or "the sandbox ended before it began") from None
            if self.isolation == "kernel":
                self._name_users(parent)
        else:
            self._child = parent
        self.join(first)
        return first

    def join(self, new: Session) -> None:
        """Take in a session that is about to speak for the first time."""
        with self._lock:
            known = set(self._sessions)
        pid = new.greet(known)
        with self._lock:
            self._sessions[pid] = new

    def check_room(self) -> None:
        """Raise NoRoom if there are as many sessions as limits on threads let there be."""
        if len(self._sessions) >= self.limits.threads // 2:
            raise NoRoom(f"a session has {len(self._sessions)} branches at once, and may have no more")

    def leave(self, session: Session) -> None:
        """A session has ended; the last one takes the walls with it."""
        with self._lock:
            self._sessions = {pid: s for pid, s in self._sessions.items() if s is not session}
            empty = not self._sessions
        with suppress(OSError):
            self._control.send(ORDER.pack(BURY, 0))
        if empty:
            self.end("the session has ended")

    def allow_fork(self, parent: Process) -> None:
        """Let the next fork of this interpreter through."""
        self._control.send(ORDER.pack(FORK, parent.pid_inside()))

    def end(self, why: str) -> None:
        """End all sessions at once."""
        with self._lock:
            if self.ended:
                return
            self.ended = why
        self._control.close()
        self._theirs.close()
        if self._parent is not None:
            if self.isolation == "kernel":
                self._parent.signal(signal.SIGKILL)
            self._parent.close()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        if self._folder is not None:
            self._folder.close()

    def complaint(self) -> str:
        """What the other side said instead of building walls."""
        try:
            self._control.settimeout(0)  # it was said before the line was cut
            word, _ = wire.receive(self._control)
        except (OSError, EOFError, ValueError):
            return ""
        return str(word.get("error", ""))

    def _name_users(self, pid: int) -> None:
        """Say who the programs' user is outside: nobody, if this is root and may say so; else this user."""
        word = self._answer()
        if "unshared" not in word:
            raise SessionLost(str(word.get("error", word)))
        two_ids = os.geteuid() == 0 and _write_maps(pid, (0, 0), (1000, _NOBODY))
        if not two_ids:
            with suppress(OSError):
                Path(f"/proc/{pid}/setgroups").write_text("deny")
            if not _write_maps(pid, (1000, os.geteuid())):
                raise SessionLost("the users of a namespace cannot be named here")
        with suppress(OSError):  # under memory pressure the kernel ends it first
            Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
        wire.send(self._control, {"two_ids": two_ids})

    def _answer(self) -> dict[str, Any]:
        try:
            return wire.receive(self._control)[0]
        except (OSError, EOFError) as error:
            raise SessionLost("the sandbox ended before it began") from error


def _write_maps(pid: int, *entries: tuple[int, int]) -> bool:
    groups = [(inside, os.getegid() if outside == os.geteuid() else outside) for inside, outside in entries]
    try:
        for name, pairs in (("uid_map", entries), ("gid_map", groups)):
            told = "".join(f"{inside} {outside} 1\n" for inside, outside in pairs)
            Path(f"/proc/{pid}/{name}").write_text(told)
    except OSError:
        return False
    return True
