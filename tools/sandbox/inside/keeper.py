"""Pid 1 of a sandbox: starts the first interpreter, rules on forks, buries the dead, and takes all with it.

An interpreter that calls fork is held by the kernel (seccomp's user notification) until the keeper has
answered: yes, as often as the host has said `fork`, and no for the rest. So each process of a sandbox is one
that the host has ordered, and a program can start none of its own.
"""

import fcntl
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from errno import EPERM
from typing import Any, NoReturn

from . import interpreter, wire

FORK, BURY = b"f", b"b"
"""What the host may say: this process may fork once; bury who has died."""
ORDER = struct.Struct("=cI")
"""How it says so: the word, and the process as the sandbox numbers it."""

_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, _SEND
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE


def keep(order: dict[str, Any], control: socket.socket, orders: int, out: int, err: int) -> NoReturn:
    """Be pid 1 until the host hangs up. `orders`, `out` and `err` are the first interpreter's."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        control.close()
        ours.close()
        try:
            interpreter.begin(order, theirs, orders, out, err)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(1)
    theirs.close()
    for descriptor in (orders, out, err):
        os.close(descriptor)
    listener = _listener(ours)
    _rule(control, listener)
    if order["isolation"] == "unsafe":  # no kernel takes the others along
        with suppress(ProcessLookupError):
            os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _listener(line: socket.socket) -> int | None:
    """The descriptor on which forks are asked for; None where no filter holds them."""
    try:
        _, [listener] = wire.receive(line)
    except (EOFError, ValueError, OSError):
        return None
    finally:
        line.close()
    return listener


def _rule(control: socket.socket, listener: int | None) -> None:
    allowed: set[int] = set()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    if listener is not None:
        poll.register(listener, select.POLLIN)
    while True:
        events = dict(poll.poll())
        asked = None
        if listener is not None and listener in events:
            if events[listener] & select.POLLIN:
                asked = _asked(listener)
            else:  # nobody is left who could ask
                poll.unregister(listener)
        if not _listen(control, allowed):  # after the question: the host speaks before it orders a fork
            return
        if listener is not None and asked is not None:
            question, who = asked
            _answer(listener, question, allow=who in allowed)
            allowed.discard(who)


def _listen(control: socket.socket, allowed: set[int]) -> bool:
    """Hear what the host has said. Returns whether it is still there."""
    while True:
        try:
            told = control.recv(ORDER.size, socket.MSG_DONTWAIT | socket.MSG_WAITALL)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if len(told) < ORDER.size:
            return False
        word, who = ORDER.unpack(told)
        if word == FORK:
            allowed.add(who)
        else:
            _bury()


def _asked(listener: int) -> tuple[int, int] | None:
    """The number of a question, and the process that asks; None if it was killed meanwhile."""
    told = bytearray(80)  # struct seccomp_notif
    try:
        fcntl.ioctl(listener, _RECEIVE, told)
    except OSError:
        return None
    question, who = struct.unpack_from("QI", told)
    return question, who


def _answer(listener: int, question: int, *, allow: bool) -> None:
    told = (0, 0, _CONTINUE) if allow else (0, -EPERM, 0)
    with suppress(OSError):  # it was killed meanwhile
        fcntl.ioctl(listener, _ANSWER, struct.pack("QqiI", question, *told))


def _bury() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
