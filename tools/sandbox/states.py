"""Interpreters by what they have run, so that a branch is named by its programs and by nothing else.

    states.run("print(x * 7)", after=["x = 6"])      # forks the interpreter that has run "x = 6"

A call says all that is needed to answer it: where an interpreter with these programs is at hand it is forked,
so that children inherit its variables; where none is (a resumed run, another process, one that was dropped to
save memory) the programs are run again. A program that had to be killed leaves no trace: what comes after
it begins where it had begun.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypeAlias

from ...serving.flow import ToolResult
from . import Sandbox
from .session import ENDED, Session, SessionLost

History: TypeAlias = tuple[str, ...]

_KEPT = 16  # interpreters; stopped ones cost memory only
_KEPT_BYTES = 1 << 30
_REMEMBERED = 1000  # programs that had to be killed
_LONGEST = 200  # programs of a branch
_TRIES = 3  # an interpreter may be dropped by one thread while another wants to fork it


class Stop:
    """A way to end a call from outside."""

    def __init__(self) -> None:
        self.said = False
        self._session: Session | None = None

    def now(self) -> None:
        """End the call at once, and any that is yet to begin."""
        self.said = True
        if self._session is not None:
            self._session.kill()

    def watch(self, session: Session) -> None:
        """This session is running now."""
        self._session = session
        if self.said:
            session.kill()


class States:
    """At most 16 interpreters, the last used ones, and 1 GiB of memory. Any thread may call."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._live: OrderedDict[History, Session] = OrderedDict()
        self._void: OrderedDict[History, None] = OrderedDict()  # programs that had to be killed
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._live)

    def run(self, code: str, after: Sequence[str] = (), stop: Stop | None = None) -> ToolResult:
        """Run a program in the state after others. Raises SandboxRefused, and SessionLost if the machine has
        no room for an interpreter."""
        if len(after) > _LONGEST:
            told = f"{ENDED}a branch may have run {_LONGEST} programs, not {len(after)}]"
            return ToolResult(told, ok=False)
        stop = stop or Stop()
        history: History = tuple(after)
        session = self._branch(history, stop)
        result = session.run(code)
        self._keep((*history, code), session)
        return result

    def close(self) -> None:
        """End all interpreters."""
        with self._lock:
            _close_all(self._live)

    def _branch(self, history: History, stop: Stop) -> Session:
        """An interpreter of the caller's own in the state after these programs."""
        for _ in range(_TRIES):
            try:
                session = self._found(history, stop)
            except SessionLost:
                continue
            stop.watch(session)
            return session
        raise SessionLost("no interpreter could be had: the machine may be out of memory or processes")

    def _found(self, history: History, stop: Stop) -> Session:
        n = len(history)
        with self._lock:
            while n and self._is_gone(history[:n]):
                n -= 1
            known = self._live.get(history[:n])
            if known is not None:
                self._live.move_to_end(history[:n])
        session = known.fork() if known is not None else self._sandbox.start()
        for end in range(n + 1, len(history) + 1):
            if history[:end] not in self._void:
                session = self._advanced(session, history[:end], stop)
        return session

    def _advanced(self, session: Session, history: History, stop: Stop) -> Session:
        """Run the last program of a history in the state before it, which is used up."""
        with ExitStack() as unneeded:
            unneeded.callback(session.close)
            before = session.fork()
            unneeded.callback(before.close)
            stop.watch(session)
            session.run(history[-1])
            if session.lost:
                unneeded.pop_all()
                self._keep(history, session)
                return before
            branch = session.fork()
            unneeded.pop_all()
        before.close()
        self._keep(history, session)
        return branch

    def _is_gone(self, history: History) -> bool:
        session = self._live.get(history)
        if session is not None and session.lost:
            del self._live[history]
            session.close()
        return history not in self._live

    def _keep(self, history: History, session: Session) -> None:
        """Have the interpreter at hand for branches, if it is still there."""
        dropped: list[Session] = []
        with self._lock:
            if session.lost:
                session.close()
                if session.self_inflicted:
                    self._void[history] = None
                    while len(self._void) > _REMEMBERED:
                        self._void.popitem(last=False)
                return
            if history in self._live:
                dropped.append(self._live.pop(history))
            self._live[history] = session
            while len(self._live) > _KEPT:
                dropped.append(self._live.popitem(last=False)[1])
            held = sum(each.memory_bytes for each in self._live.values())
            while held > _KEPT_BYTES and self._live:
                oldest = self._live.popitem(last=False)[1]
                held -= oldest.memory_bytes
                dropped.append(oldest)
        for each in dropped:
            each.close()


def _close_all(live: OrderedDict[History, Session]) -> None:
    while live:
        live.popitem()[1].close()
