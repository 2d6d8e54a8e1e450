"""The filter on system calls: an allow-list, as a classic BPF program that this file assembles.

What is not listed fails with EPERM: no socket, no new program, no signal to others, no ptrace, no mount, no
keyring, no io_uring, no bpf. A fork is left to the supervisor, which hears of it and decides. A few calls are
examined by their arguments; pointers are never followed, so there is nothing to race with.

    load arch; unknown → EPERM    load nr; 32-bit → EPERM    nr == a → ALLOW    nr == b → its arguments
"""

import errno
import struct
from collections.abc import Iterable
from typing import NamedTuple

from .syscalls import AUDIT, calls

ALLOW, ASK, FAIL = 0x7FFF0000, 0x7FC00000, 0x00050000  # SECCOMP_RET_*: allow, user_notif, errno

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF opcodes, word-sized
_NR, _ARCH = 0, 4  # offsets in struct seccomp_data
_X32 = 0x40000000

_THREAD = 0x10000  # CLONE_THREAD; the kernel then wants shared memory and signal handlers too
_FORK = 0x1000000 | 0x200000 | 17  # what fork(3) passes: CLONE_CHILD_SETTID, CLONE_CHILD_CLEARTID, SIGCHLD
_NAMESPACES = 0x7E020000  # CLONE_NEWUSER, _NEWPID, _NEWNET, _NEWIPC, _NEWUTS, _NEWCGROUP, _NEWNS

_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1033, 1034)  # no SETOWN, SETSIG, LEASE, NOTIFY
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIO(N)CLEX
_PRCTL = (15, 16)  # PR_SET_NAME, PR_GET_NAME
_AF_UNIX = 1


class _Op(NamedTuple):
    code: int
    k: int
    then: int = 0  # instructions to skip
    otherwise: int = 0


def program(machine: str) -> bytes:
    """The filter for a machine as `os.uname().machine` names it. Raises KeyError if it is not known."""
    known = calls(machine)
    refused = _fail(errno.EPERM)
    ops = [_Op(_LOAD, _ARCH), _Op(_EQUAL, AUDIT[machine], 1), refused, _Op(_LOAD, _NR)]
    ops += [_Op(_AT_LEAST, _X32, 0, 1), refused]
    for number in known.harmless:
        ops += _case(number, [_Op(_RETURN, ALLOW)])
    for number in known.attributes:  # copying a file asks for them, and takes this for an answer
        ops += _case(number, [_fail(errno.ENOTSUP)])
    for name, block in _examined().items():
        ops += _case(known.number[name], block)
    ops.append(refused)
    return b"".join(struct.pack("HBBI", op.code, op.then, op.otherwise, op.k) for op in ops)


def _examined() -> dict[str, list[_Op]]:
    refused = _fail(errno.EPERM)
    absent = [_fail(errno.ENOSYS)]  # libc then does without: its arguments lie behind a pointer
    return {
        "clone": [
            _argument(0),
            _Op(_ANY_BIT, _NAMESPACES, 0, 1),
            refused,
            _Op(_EQUAL, _FORK, 0, 1),
            _Op(_RETURN, ASK),
            _Op(_ANY_BIT, _THREAD, 1),
            refused,
            _Op(_RETURN, ALLOW),
        ],
        "clone3": absent,
        "openat2": absent,
        "fcntl": _one_of(1, _FCNTL, refused),
        "ioctl": _one_of(1, _IOCTL, _fail(errno.ENOTTY)),
        "prctl": _one_of(0, _PRCTL, _fail(errno.EINVAL)),
        "socketpair": _one_of(0, (_AF_UNIX,), refused),
        "prlimit64": [
            _argument(0),  # of itself, and no new limit
            _Op(_EQUAL, 0, 1),
            refused,
            _argument(2),
            _Op(_EQUAL, 0, 1),
            refused,
            _argument(2, high=True),
            _Op(_EQUAL, 0, 1),
            refused,
            _Op(_RETURN, ALLOW),
        ],
    }


def _one_of(argument: int, values: Iterable[int], otherwise: _Op) -> list[_Op]:
    ops = [_argument(argument)]
    for value in values:
        ops += [_Op(_EQUAL, value, 0, 1), _Op(_RETURN, ALLOW)]
    return [*ops, otherwise]


def _case(number: int, block: list[_Op]) -> list[_Op]:
    """`block`, which ends in a return, if the call has this number."""
    return [_Op(_EQUAL, number, 0, len(block)), *block]


def _argument(index: int, *, high: bool = False) -> _Op:
    """Load half of an argument; both architectures are little-endian."""
    return _Op(_LOAD, 16 + 8 * index + 4 * high)


def _fail(code: int) -> _Op:
    return _Op(_RETURN, FAIL | code)
