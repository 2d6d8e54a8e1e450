"""System calls that Python has no function for. Each raises OSError, which names the call.

Imported on Linux only, and only by what builds a sandbox.
"""

import ctypes
import os
import platform
import struct

from .syscalls import calls

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000  # clone(2): CLONE_*
NOSUID, NODEV, NOEXEC, BIND, REC, PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18  # mount(2): MS_*
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8  # mount_setattr(2)

_AT_FDCWD, _AT_RECURSIVE, _MNT_DETACH = -100, 0x8000, 2
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 24, 38, 47
_CAP_AMBIENT_CLEAR_ALL, _CAP_VERSION_3, _LAST_CAP = 4, 0x20080522, 63

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Leave the namespaces of the parent (`os.unshare`, which Python has since 3.12)."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    told = [None if each is None else os.fsencode(each) for each in (source, target, kind)]
    _check(_libc.mount(*told, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def restrict_mount(path: str, attributes: int, *, recursive: bool) -> None:
    """Add attributes (ATTR_*) to a mount, and to those below it. Needs Linux 5.12."""
    told = struct.pack("4Q", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    _syscall("mount_setattr", _AT_FDCWD, os.fsencode(path), flags, told, len(told))


def change_root(path: str) -> None:
    """Make `path` the root, and the old one unreachable."""
    os.chdir(path)
    _syscall("pivot_root", b".", b".")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def swap_root(path: str, old: str) -> None:
    """Make `path` the root, and keep the old one at the folder `old`, given as seen from before."""
    _syscall("pivot_root", os.fsencode(path), os.fsencode(old))
    os.chdir("/")


def set_hostname(name: str) -> None:
    """The name of the machine in this UTS namespace."""
    told = name.encode()
    _check(_libc.sethostname(told, len(told)), "sethostname")


def die_with_parent() -> None:
    """Be killed when the thread that forked this process ends."""
    _prctl(_PR_SET_PDEATHSIG, 9)


def forbid_new_privileges() -> None:
    """No setuid program and no file capability gives anything any more; needed before `install_filter`."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_bounding_set() -> None:
    """Take every capability out of what could ever be had again. Needs CAP_SETPCAP."""
    for capability in range(_LAST_CAP + 1):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the kernel knows no more


def drop_capabilities() -> None:
    """Give up all capabilities for good."""
    _libc.prctl(_PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = struct.pack("Ii", _CAP_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def install_filter(program: bytes) -> int:
    """Put a seccomp program (`seccomp.py`) on this thread and its children for good.

    Returns the descriptor that hears of the calls which the program leaves to a supervisor.
    """
    held = ctypes.create_string_buffer(program, len(program))
    told = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(held))
    return _syscall("seccomp", 1, 8, told)  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def _syscall(name: str, *arguments: int | bytes) -> int:
    told = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    number = calls(platform.machine()).number[name]
    return _check(_libc.syscall(ctypes.c_long(number), *told), name)


def _check(result: int, what: str) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result
