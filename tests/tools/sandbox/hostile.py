# ruff: noqa: E501
"""Hostile programs. Each prints REACHED if it got what it wanted, and only then.

`$secret` is a file outside, `$folder` a folder outside that may be written by all, `$port` a TCP port and
`$unix`, `$abstract` unix sockets that this machine listens on, `$victim` a process of the same user outside.
`control`: without walls the program does reach it, and may be let without harm.
"""

from string import Template
from typing import NamedTuple

from .greedy import PROTOCOL, RESOURCES


class Hostile(NamedTuple):
    """A program."""

    name: str
    code: str
    control: bool = False
    greedy: bool = False  # it takes what others of its family need

    def __str__(self) -> str:
        return self.name

    def aimed(self, **targets: object) -> str:
        """The program with its targets in it."""
        return PRELUDE + Template(self.code).substitute(targets)


PRELUDE = """
import ctypes, os, platform, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
x86 = platform.machine() == "x86_64"
def call(number, *args):
    "A system call; numbers are those of x86_64, and of aarch64."
    result = libc.syscall(ctypes.c_long(number[0] if x86 else number[1]), *[
        ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def reached(*what):
    print("REACHED", *what, flush=True)
"""

_FILES = [
    ("read a file outside", "print(open('$secret').read()); reached()", True),
    ("read the password file", "open('/etc/passwd').read(); reached()", True),
    ("list the host's folders", "import os; os.listdir('$folder'); reached()", True),
    ("list the root of the host", "if {'home', 'bin', 'proc'} & set(os.listdir('/')): reached()", True),
    ("write a file outside", "open('$folder/new', 'w').write('x'); reached()", True),
    ("climb out by dots", "open('../../../../../../../..$secret').read(); reached()", True),
    ("follow a link outside", "os.symlink('$secret', 'link'); open('link').read(); reached()", False),
    ("link a file outside", "os.link('$secret', 'hard'); reached()", False),
    ("link to a folder, then write", "os.symlink('$folder', 'd'); open('d/new', 'w'); reached()", False),
    ("move a file outside", "os.rename('$folder/file', '$folder/moved'); reached()", True),
    ("remove a file outside", "os.remove('$folder/file'); reached()", True),
    ("make a folder outside", "os.mkdir('$folder/made'); reached()", True),
    ("change a mode outside", "os.chmod('$folder/file', 0o777); reached()", True),
    (
        "climb by descriptor",
        "fd = os.open('/', 0)\nfor _ in range(9): fd = os.open('..', 0, dir_fd=fd)\n"
        "os.open('$secret'[1:], 0, dir_fd=fd); reached()",
        True,
    ),
    ("write into the packages", "import json; open(json.__file__, 'a'); reached()", False),
    (
        "write into the C library",
        "import glob\nfor p in glob.glob('/lib/*/libc.so.6') + glob.glob('/lib64/libc.so.6'):"
        " open(p, 'r+b'); reached()",
        False,
    ),
    ("new files at the root", "open('/new', 'w'); reached()", False),
    ("the root of process 1", "os.listdir('/proc/1/root'); reached()", True),
    ("the environment of the host", "data = open('/proc/self/environ').read(); reached()", True),
    ("a secret in the environment", "if 'HOSTILE_SECRET' in os.environ: reached()", True),
    ("the memory of a process", "open('/proc/$victim/mem', 'rb'); reached()", True),
    ("the kernel's settings", "os.listdir('/sys'); reached()", True),
    ("kernel addresses", "open('/proc/kallsyms').read(10); reached()", True),
    (
        "devices of memory and disks",
        "for d in ('mem', 'kmem', 'kmsg', 'vda', 'sda', 'nvme0n1', 'fuse', 'net/tun', 'kvm'):\n"
        "    try: os.open('/dev/' + d, 0); reached(d)\n    except OSError as e: print(e)",
        False,
    ),
    ("a terminal", "os.open('/dev/tty', os.O_RDWR); reached()", False),
    ("make a device", "os.mknod('disk', 0o60666, os.makedev(254, 0)); reached()", False),
    ("a file handle", "call((304, 265), -100, ctypes.create_string_buffer(128), 0); reached()", False),
    (
        "open descriptors of the host",
        "for fd in range(3, 1024):\n    try: s = os.fstat(fd)\n    except OSError: continue\n"
        "    if not (s.st_mode & 0o170000) == 0o140000: reached(fd, oct(s.st_mode))",
        False,
    ),
]

_WALLS = [
    (
        "mount a filesystem",
        "os.mkdir('m')\nif libc.mount(b'none', b'm', b'tmpfs', 0, None) == 0: reached()",
        False,
    ),
    ("mount the root again", "if libc.mount(b'none', b'/', None, 32, None) == 0: reached()", False),
    ("unmount /tmp", "if libc.umount2(b'/tmp', 2) == 0: reached()", False),
    ("the new mount calls", "call((430, 430), b'tmpfs', 0); reached()", False),
    ("open a tree", "call((428, 428), -100, b'/', 1); reached()", False),
    ("pivot the root", "call((155, 41), b'.', b'.'); reached()", False),
    ("chroot, then climb", "os.mkdir('c'); os.chroot('c'); reached()", False),
    ("a new user namespace", "if libc.unshare(0x10000000) == 0: reached()", True),
    (
        "a clone in new namespaces",
        "pid = call((56, 220), 0x10000011, 0, 0, 0, 0)\nif pid == 0: os._exit(0)\nreached()",
        True,
    ),
    ("join another namespace", "if libc.setns(0, 0) == 0: reached()", False),
    ("become root", "os.setuid(0); reached()", False),
    ("become root by group", "os.setgid(0); os.setgroups([0]); reached()", False),
    (
        "take capabilities",
        "call((126, 91), struct.pack('Ii', 0x20080522, 0), struct.pack('6I', *[0xffffffff] * 6)); reached()",
        False,
    ),
    (
        "a setuid program",
        "open('s', 'w').write('#!/bin/sh'); os.chmod('s', 0o4777)\nos.execv(os.path.abspath('s'), ['s'])",
        False,
    ),
    ("a filter of its own", "call((317, 277), 1, 0, struct.pack('HxxxxxxQ', 0, 0)); reached()", False),
    ("prctl: back to dumpable", "if libc.prctl(4, 1, 0, 0, 0) == 0: reached()", True),
    (
        "32-bit calls by int 0x80",
        "import mmap\nassert x86\nm = mmap.mmap(-1, 4096, prot=7)\n"
        "m.write(bytes.fromhex('b814000000cd80c3'))\n"
        "f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))\nif f() > 0: reached()",
        False,
    ),
    ("x32 calls", "call((0x40000000 + 39, 0x40000000 + 172)); reached()", False),
    ("personality", "if libc.personality(0x0040000) >= 0: reached()", True),
    ("a new host name", "if libc.sethostname(b'x', 1) == 0: reached()", False),
    ("set the clock", "time.clock_settime(time.CLOCK_REALTIME, 0); reached()", False),
    ("reboot", "call((169, 142), 0xfee1dead, 672274793, 0, 0); reached()", False),
    ("load a module", "call((175, 105), b'', 0, b''); reached()", False),
    ("kexec", "call((246, 104), 0, 0, 0, 0); reached()", False),
    ("swap", "call((167, 224), b'/tmp', 0); reached()", False),
    ("the kernel's log", "if libc.klogctl(3, ctypes.create_string_buffer(9), 9) >= 0: reached()", False),
    ("process accounting", "if libc.acct(None) == 0: reached()", False),
]

_KERNEL = [
    ("io_uring", "call((425, 425), 4, ctypes.create_string_buffer(256)); reached()", True),
    ("bpf", "call((321, 280), 0, struct.pack('IIII', 2, 4, 8, 1) + bytes(100), 116); reached()", False),
    (
        "perf events",
        "call((298, 241), struct.pack('II', 1, 112) + bytes(104), 0, -1, -1, 0); reached()",
        False,
    ),
    ("userfaultfd", "call((323, 282), 1); reached()", False),
    ("the keyring", "call((248, 217), b'user', b'k', b'v', 1, -3); reached()", True),
    ("read the keyring", "call((250, 219), 0, -3, 1); reached()", True),
    ("shared memory", "if libc.shmget(0x77, 4096, 0o1777) >= 0: reached()", False),
    ("message queues", "if libc.msgget(0x77, 0o1777) >= 0: reached()", False),
    ("semaphores", "if libc.semget(0x77, 1, 0o1777) >= 0: reached()", False),
    (
        "local descriptor tables",
        "assert x86\ncall((154, 0), 0, ctypes.create_string_buffer(64), 64); reached()",
        True,
    ),
    ("port input and output", "if libc.iopl(3) == 0: reached()", False),
    ("real-time priority", "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)); reached()", False),
    ("better priority", "os.setpriority(os.PRIO_PROCESS, 0, -20); reached()", False),
    ("another processor set", "os.sched_setaffinity(0, {0}); reached()", True),
    ("watch files", "call((294, 26), 0); reached()", True),
    ("memory files", "os.memfd_create('x'); reached()", True),
    ("lock memory", "if libc.mlockall(3) == 0: reached()", False),
    (
        "raise its limits",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (999, 999)); reached()",
        False,
    ),
    (
        "limits of others",
        "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (1, 1)); reached()",
        False,
    ),
]

_NETWORK = [
    ("connect by TCP", "socket.create_connection(('127.0.0.1', $port), 2); reached()", True),
    (
        "send by UDP",
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', $port)); reached()",
        True,
    ),
    ("resolve a name", "socket.getaddrinfo('localhost', 80); reached()", True),
    ("listen", "s = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen(); reached()", True),
    ("raw sockets", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); reached()", False),
    ("packet sockets", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3); reached()", False),
    ("netlink", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); reached()", True),
    ("a socket to the hypervisor", "socket.socket(40, socket.SOCK_STREAM); reached()", False),
    ("the kernel's ciphers", "socket.socket(38, socket.SOCK_SEQPACKET); reached()", False),
    ("a unix socket", "s = socket.socket(socket.AF_UNIX); s.connect('$unix'); reached()", True),
    ("an abstract socket", "s = socket.socket(socket.AF_UNIX); s.connect('\\0$abstract'); reached()", True),
    (
        "bind one end of a pair",
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.bind('\\0x'); reached()",
        False,
    ),
    (
        "send from a pair to a name",
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "a.sendto(b'x', '\\0$abstract'); reached()",
        False,
    ),
    (
        "fetch a page",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:$port', timeout=1); reached()",
        False,
    ),
]

_PROCESSES = [
    ("fork", "if os.fork() == 0: os._exit(0)\nreached()", True),
    ("vfork", "assert x86\ncall((58, 0)); reached()", False),
    ("the plain fork call", "assert x86\nif call((57, 0)) == 0: os._exit(0)\nreached()", True),
    (
        "clone with a pidfd",
        "if call((56, 220), 0x1000 | 17, 0, ctypes.create_string_buffer(8), 0, 0) == 0: os._exit(0)\nreached()",
        False,
    ),
    (
        "clone into the parent's parent",
        "if call((56, 220), 0x8000 | 17, 0, 0, 0, 0) == 0: os._exit(0)\nreached()",
        False,
    ),
    (
        "clone3",
        "a = struct.pack('8Q', 0, 0, 0, 0, 17, 0, 0, 0)\nif call((435, 435), a, 64) == 0: os._exit(0)\nreached()",
        True,
    ),
    ("a thread that is none", "call((56, 220), 0x100, 0, 0, 0, 0); reached()", False),
    ("a shell", "if os.system('true') == 0: reached()", True),
    ("a program", "import subprocess; subprocess.run(['/bin/true']); reached()", True),
    ("posix_spawn", "os.posix_spawn('/bin/true', ['true'], {}); reached()", True),
    ("become a program", "os.execv('/bin/sh', ['sh', '-c', 'echo REA''CHED'])", True),
    (
        "run the loader",
        "import glob\nl = glob.glob('/lib64/ld-*') + glob.glob('/lib/ld-*')\nos.execv(l[0], [l[0], '--version']); reached()",
        False,
    ),
    (
        "run a file of its own making",
        "open('p', 'wb').write(b'#!/bin/sh\\necho REA''CHED\\n'); os.chmod('p', 0o755)\n"
        "os.execv(os.path.abspath('p'), ['p'])",
        False,
    ),
    (
        "load a library of its own making",
        "import glob, shutil\nshutil.copy(glob.glob('/lib/*/libm.so.6')[0], 'm.so')\n"
        "ctypes.CDLL('./m.so'); reached()",
        False,
    ),
    (
        "a pool of processes",
        "from multiprocessing import Pool\nwith Pool(2) as p: p.map(abs, [1])\nreached()",
        False,
    ),
    ("a fork bomb", "while True:\n    try:\n        os.fork(); reached()\n    except OSError: pass", False),
    (
        "a bomb of threads",
        "def more():\n    while True: time.sleep(1)\nn = 0\ntry:\n    while n < 5000:\n"
        "        threading.Thread(target=more, daemon=True).start(); n += 1\nfinally:\n    if n > 200: reached(n)",
        False,
    ),
    (
        "a daemon that stays",
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\nreached()",
        False,
    ),
    ("leave the session", "os.setsid(); reached()", False),
]

_SIGNALS = [
    ("kill a process outside", "os.kill($victim, 9); reached()", False),
    ("signal a process outside", "os.kill($victim, 0); reached()", True),
    ("kill everything", "os.kill(-1, 9); reached()", False),
    ("kill its parent", "os.kill(os.getppid(), 9); reached()", False),
    ("kill process 1", "os.kill(1, 9); reached()", False),
    ("stop its group", "os.killpg(0, signal.SIGSTOP); reached()", False),
    ("tgkill", "call((234, 131), 1, 1, 9); reached()", False),
    ("a signal by handle", "call((424, 424), call((434, 434), 1, 0), 9, None, 0); reached()", False),
    ("a queued signal", "call((129, 138), 1, 9, ctypes.create_string_buffer(128)); reached()", False),
    (
        "a signal by descriptor",
        "import fcntl\na, b = socket.socketpair()\nfcntl.fcntl(a, 8, 1); fcntl.fcntl(a, 10, 9); reached()",
        False,
    ),
    (
        "a signal by ioctl",
        "import fcntl\na, b = socket.socketpair()\nfcntl.ioctl(a, 0x8901, struct.pack('i', 1)); reached()",
        False,
    ),
    ("die with its parent, loudly", "if libc.prctl(1, 9, 0, 0, 0) == 0: reached()", True),
    ("adopt orphans", "if libc.prctl(36, 1, 0, 0, 0) == 0: reached()", True),
    ("trace process 1", "call((101, 117), 16, 1, 0, 0); reached()", False),
    ("trace itself", "call((101, 117), 0, 0, 0, 0); reached()", True),
    ("read another's memory", "call((310, 270), $victim, None, 0, None, 0, 0); reached()", True),
    ("write another's memory", "call((311, 271), 1, None, 0, None, 0, 0); reached()", False),
    ("take another's descriptor", "call((438, 438), call((434, 434), 1, 0), 0, 0); reached()", False),
    ("compare processes", "call((312, 272), os.getpid(), os.getpid(), 0, 0, 0); reached()", True),
]

_QUICK = (_FILES, _WALLS, _KERNEL, _NETWORK, _PROCESSES, _SIGNALS)
PROGRAMS = [Hostile(*row) for rows in _QUICK for row in rows]
PROGRAMS += [Hostile(*row, greedy=True) for rows in (RESOURCES, PROTOCOL) for row in rows]
