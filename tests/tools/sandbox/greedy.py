# ruff: noqa: E501
"""Hostile programs (`hostile.py`) that take all they can get, and that lie to their host."""

RESOURCES = [
    ("all memory, in a list", "x = []\nwhile True: x.append(bytearray(1 << 20))", False),
    ("all memory, at once", "x = bytearray(1 << 40)", False),
    (
        "all memory, mapped",
        "import mmap\nx = [mmap.mmap(-1, 1 << 26) for _ in range(1000)]\nreached()",
        False,
    ),
    (
        "all memory, in an error handler",
        "x = []\nwhile True:\n    try: x.append(bytearray(1 << 24))\n    except MemoryError: pass",
        False,
    ),
    ("an endless loop", "while True: pass", False),
    ("an endless loop in C", "x = 3 ** (10 ** 9)", False),
    ("an endless pattern", "import re; re.match('(a+)+$$', 'a' * 40 + 'b')", False),
    ("an endless sleep", "time.sleep(1000)", False),
    (
        "deaf to every signal",
        "for s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass",
        False,
    ),
    (
        "busy threads",
        "for _ in range(8): threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
        False,
    ),
    ("endless output", "while True: print('x' * 1000)", False),
    ("endless output without a line's end", "while True: sys.stdout.write('x')", False),
    ("endless complaints", "while True: os.write(2, b'x' * 4096)", False),
    ("endless recursion", "def f(): f()\nsys.setrecursionlimit(10 ** 9); f()", False),
    ("a deep expression", "eval('(' * 100000 + ')' * 100000)", False),
    ("a crash", "ctypes.string_at(0)", False),
    (
        "a crash by bytecode",
        "import types\nf = lambda: 0\nf.__code__ = f.__code__.replace(co_code=b'\\x64\\xff' * 50)\nf()",
        False,
    ),
    ("fill the disk", "f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20))", False),
    ("fill the disk with holes", "f = open('big', 'wb'); f.truncate(1 << 50); reached()", False),
    ("a million files", "for i in range(10 ** 6): open(str(i), 'w').close()\nreached()", False),
    (
        "a million folders in each other",
        "for i in range(10 ** 6):\n    os.mkdir('d'); os.chdir('d')\nreached()",
        False,
    ),
    ("all descriptors", "x = []\nwhile len(x) < 5000: x.append(os.dup(0))\nreached()", False),
    ("all pipes", "x = [os.pipe() for _ in range(5000)]\nreached()", False),
    ("exit loudly", "os._exit(7)", False),
    ("close everything", "os.closerange(0, 1000)", False),
]

PROTOCOL = [
    (
        "write to every descriptor",
        "for fd in range(3, 64):\n    try: os.write(fd, b'REACHED\\n' * 10)\n    except OSError: pass",
        False,
    ),
    (
        "a word without an end",
        "for fd in range(3, 64):\n    try:\n        while True: os.write(fd, b'x' * 1000)\n    except OSError: pass",
        False,
    ),
    (
        "a word of brackets",
        "for fd in range(3, 64):\n    try: os.write(fd, b'[' * 4000 + b'\\n')\n    except OSError: pass",
        False,
    ),
    (
        "numbers of another kind",
        'for fd in range(3, 64):\n    try: os.write(fd, b\'{"id": 1, "exit": 1e999}\\n\')\n    except OSError: pass',
        False,
    ),
    (
        "an exit code of words",
        'for fd in range(3, 64):\n    try: os.write(fd, b\'{"id": 1, "exit": "REACHED"}\\n\')\n    except OSError: pass',
        False,
    ),
    (
        "descriptors for the host",
        "for fd in range(3, 64):\n    try: socket.send_fds(socket.socket(fileno=os.dup(fd)), [b'x'], [0] * 50)\n    except OSError: pass",
        False,
    ),
    (
        "hang up",
        "for fd in range(3, 64):\n    try: socket.socket(fileno=os.dup(fd)).shutdown(2)\n    except OSError: pass\ntime.sleep(60)",
        False,
    ),
    (
        "a pickle that calls",
        "import pickle\nclass P:\n    def __reduce__(self): return os.system, ('echo x > $folder/new',)\n"
        "if pickle.loads(pickle.dumps(P())) == 0: reached()",
        True,
    ),
    (
        "a reply that is a pickle",
        "import pickle\nfor fd in range(3, 64):\n    try: os.write(fd, pickle.dumps(print) + b'\\n')\n    except OSError: pass",
        False,
    ),
    ("control characters", "print('\\x1b]0;REACHED?\\x07\\x1b[2J'.replace('REACHED?', ''))", False),
]
