"""What the python sandbox costs: a start, a program, a branch with much state, beside what there is without.

    python benchmarks/sandbox.py [--repeats 40]

| measure     | from … to …                                                                             |
|-------------|-----------------------------------------------------------------------------------------|
| first start | `Sandbox.start()` in a process that has started none, to an interpreter that is ready   |
| start       | the same, later: the zygote is warm                                                     |
| program     | `session.run("x = 1")`, to its result                                                   |
| branch      | `session.fork()` where variables hold 100 MB, to an interpreter that is ready           |
| whole call  | of the tool: start, a program that prints, its result, the end                          |
| floor       | `os.fork()` alone of a process with the same state; a bare `python -I -c pass`          |

100 MB are held as one `bytearray`, of which a fork copies the page table, and as 2,700,000 integers and their
list. The exit code is 1 if a bar is not met: 60 ms for a warm start, 30 ms for a branch, each the median.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from arguments import command
from printing import machine, met, table_head, table_row

from abduce.tools.python import run_python
from abduce.tools.sandbox import Sandbox, SandboxRefused, Session

START_MS, BRANCH_MS = 60.0, 30.0
STATES = {
    "bytes": "state = bytearray(b'x') * (100 << 20)",
    "objects": "state = [n + 10**9 for n in range(2_700_000)]",
}


def main() -> int:
    """Measure, print, judge."""
    parser = command(__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    repeats = parser.parse_args().repeats
    sandbox = Sandbox()
    try:
        walls = sandbox.isolation
    except SandboxRefused as refusal:
        print(refusal)
        return 2
    load = os.getloadavg()[0]
    print(f"{machine()}, load {load:.1f}; walls by {walls}, {repeats} repeats\n")
    table_head("measure", "median, ms", "least", "most")
    show("first start", [first_start() for _ in range(5)])
    bars = [(START_MS, show("start", [start(sandbox) for _ in range(repeats)]))]
    with sandbox.start() as session:
        show("program", [timed(lambda: session.run("x = 1")) for _ in range(repeats)])
    for name, program in STATES.items():
        with sandbox.start() as session:
            assert session.run(program).ok
            megabytes = session.memory_bytes / 1e6
            told = f"branch, {megabytes:.0f} MB of {name}"
            bars.append((BRANCH_MS, show(told, [branch(session) for _ in range(repeats)])))
        show("  floor: os.fork() alone", floor_fork(program, repeats))
    show("whole call", [timed(lambda: run_python("print(1)")) for _ in range(repeats)])
    python = [sys.executable, "-I", "-c", "pass"]
    show(
        "  floor: a bare python", [timed(lambda: subprocess.run(python, check=True)) for _ in range(repeats)]
    )
    held = all(found <= bar for bar, found in bars)
    print(f"\n{met(held)}: start ≤ {START_MS:g} ms, branch ≤ {BRANCH_MS:g} ms")
    return int(not held)


def timed(call: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def start(sandbox: Sandbox) -> float:
    """One start; its end is not counted."""
    began = time.perf_counter()
    session = sandbox.start()
    took = (time.perf_counter() - began) * 1e3
    session.close()
    return took


def branch(session: Session) -> float:
    """One branch, which must have the state; its end is not counted."""
    began = time.perf_counter()
    child = session.fork()
    took = (time.perf_counter() - began) * 1e3
    assert child.run("print(len(state) > 0)").text == "True\n"
    child.close()
    return took


def first_start() -> float:
    """In a process of its own, imports not counted."""
    program = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from abduce.tools.sandbox import host, Limits\n"
        "began = time.perf_counter(); session = host.begin(Limits(), 'kernel')\n"
        "print((time.perf_counter() - began) * 1e3); session.close()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


def floor_fork(program: str, repeats: int) -> list[float]:
    """A process with the state forks, and the child speaks through a pipe."""
    measuring = (
        f"{program}\nimport os, time\n"
        f"for _ in range({repeats}):\n"
        "    r, w = os.pipe(); began = time.perf_counter()\n"
        "    if os.fork() == 0: os.write(w, b'x'); os._exit(0)\n"
        "    os.read(r, 1); print((time.perf_counter() - began) * 1e3); os.wait(); os.close(r); os.close(w)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", measuring], capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def show(name: str, figures: list[float]) -> float:
    """One line of the table; returns the median."""
    table_row(name, *(f"{of(figures):.1f}" for of in (median, min, max)))
    return median(figures)


if __name__ == "__main__":
    sys.exit(main())
