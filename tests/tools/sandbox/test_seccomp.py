"""The filter's decisions, by a reading of its program: for the architecture that is not here, too."""

import errno
import struct

import pytest

from abduce.tools.sandbox.inside.seccomp import ALLOW, ASK, FAIL, program
from abduce.tools.sandbox.inside.syscalls import ARCHITECTURES, AUDIT, calls

REFUSED = FAIL | errno.EPERM
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

# Numbers from the kernel's tables, x86_64 and aarch64
FORBIDDEN = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "socket": (41, 198),
    "bind": (49, 200),
    "connect": (42, 203),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "mount": (165, 40),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "memfd_create": (319, 279),
    "pidfd_open": (434, 434),
    "seccomp": (317, 277),
    "setuid": (105, 146),
    "chroot": (161, 51),
}
ALLOWED = {
    "read": (0, 63),
    "openat": (257, 56),
    "mmap": (9, 222),
    "exit_group": (231, 94),
    "futex": (202, 98),
}


@pytest.fixture(params=ARCHITECTURES)
def machine(request):
    return request.param


def decided(machine, number, *arguments, arch=None):
    """What the program says of a call."""
    data = struct.pack("iIQ6Q", number, arch or AUDIT[machine], 0, *arguments, *[0] * (6 - len(arguments)))
    ops = list(struct.iter_unpack("HBBI", program(machine)))
    value, at = 0, 0
    while True:
        code, then, otherwise, k = ops[at]
        at += 1
        if code == RETURN:
            return k
        if code == LOAD:
            [value] = struct.unpack_from("I", data, k)
        else:
            met = {EQUAL: value == k, AT_LEAST: value >= k, ANY_BIT: bool(value & k)}[code]
            at += then if met else otherwise


def test_what_is_forbidden(machine):
    column = ARCHITECTURES[machine]
    for name, numbers in FORBIDDEN.items():
        assert decided(machine, numbers[column]) == REFUSED, name


def test_what_is_allowed(machine):
    column = ARCHITECTURES[machine]
    for name, numbers in ALLOWED.items():
        assert decided(machine, numbers[column]) == ALLOW, name


def test_no_call_is_allowed_but_those_of_the_tables(machine):
    known = {*calls(machine).harmless, *calls(machine).attributes, *calls(machine).number.values()}
    for number in {*range(-5, 1000), 2**31 - 1} - known:
        assert decided(machine, number) == REFUSED, number


def test_calls_of_another_architecture_are_refused(machine):
    for arch in {*AUDIT.values(), 0x40000003} - {AUDIT[machine]}:  # the last: 32-bit x86
        assert decided(machine, calls(machine).harmless[0], arch=arch) == REFUSED
    assert decided(machine, 0x40000000) == REFUSED  # x32


def test_a_fork_is_asked_for_and_a_thread_is_not(machine):
    clone = calls(machine).number["clone"]
    assert decided(machine, clone, 0x1200011) == ASK
    assert decided(machine, clone, 0x3D0F00) == ALLOW  # pthread_create
    for flags in (17, 0x4111, 0x8011, 0x1200011 | 0x8000, 0x100):
        assert decided(machine, clone, flags) == REFUSED, hex(flags)
    for space in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        for flags in (0x1200011, 0x3D0F00):
            assert decided(machine, clone, flags | space) == REFUSED, hex(flags | space)


def test_arguments_are_looked_at(machine):
    number = calls(machine).number
    assert decided(machine, number["clone3"]) == FAIL | errno.ENOSYS
    assert decided(machine, number["fcntl"], 3, 4) == ALLOW  # F_SETFL
    assert decided(machine, number["fcntl"], 3, 8) == REFUSED  # F_SETOWN
    assert decided(machine, number["ioctl"], 3, 0x5401) == ALLOW  # TCGETS
    assert decided(machine, number["ioctl"], 3, 0x5412) == FAIL | errno.ENOTTY  # TIOCSTI
    assert decided(machine, number["socketpair"], 1) == ALLOW
    assert decided(machine, number["socketpair"], 2) == REFUSED
    assert decided(machine, number["prlimit64"], 0, 7, 0) == ALLOW
    for arguments in ((1, 7, 0), (0, 7, 1), (0, 7, 1 << 32)):
        assert decided(machine, number["prlimit64"], *arguments) == REFUSED
