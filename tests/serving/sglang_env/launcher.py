"""A real SGLang server on the CPU, from the environment of `make test-sglang`."""

import atexit
import itertools
import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from abduce.serving import settings
from abduce.serving.scratch import Scratch
from abduce.serving.sglang import launch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PYTHON = ROOT / ".venv-sglang" / "bin" / "python"
STAND_INS = HERE / "stand_ins"
VARIABLES = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(STAND_INS)}
"""Of each server, beside those of its flags."""


def told(script: str, **asked: Any) -> Any:
    """What a script of this folder, run by that environment's Python, says to a question; both are JSON."""
    ended = subprocess.run(
        [PYTHON, HERE / script],
        input=json.dumps(asked),
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout)


WARM = """#!/bin/sh
case "$1 $2" in
"-m sglang.launch_server") exec {python} {script} {socket} "$@" ;;
*) exec {python} "$@" ;;
esac
"""


@cache
def warm() -> Path:
    """That Python, but that a server which it starts is forked from one that has imported SGLang: a start
    takes 8 s of processor time instead of 34. See `warm.py`. It ends with this process."""
    scratch = Scratch()
    folder, python = scratch.path, scratch.path / "python"
    place = folder / "socket"
    told = launch.variables(launch.flags(gpu=False, amx=False)) | VARIABLES
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [PYTHON, HERE / "warm.py", place],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=settings.environment(told),
        )

    def end() -> None:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:  # it still imports
            process.kill()
            process.wait()
        scratch.close()

    atexit.register(end)
    while not place.exists():
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.05)
    words = {"python": PYTHON, "script": HERE / "warm.py", "socket": place}
    python.write_text(WARM.format(**{name: shlex.quote(str(word)) for name, word in words.items()}))
    python.chmod(0o755)
    return python


PORTS = itertools.count(20_000 + os.getpid() * 60 % 10_000, 3)  # the router's replicas have the next ones


def free_port() -> int:
    """One that nobody listens on, nor on the next two. The system gives higher ones to connections: one of
    these would have it when the server has loaded."""
    for port in PORTS:
        with ExitStack() as stack, suppress(OSError):
            for each in range(port, port + 3):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", each))
            return port
    raise AssertionError


def server(
    model: Path,
    log: Path,
    *more: str,
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> launch.Server:
    """A server of a model folder, starting; `more` are further flags of SGLang's, which win over ours. Use it
    with `running`, or `wait` for it and `kill` it."""
    port = port or free_port()
    chosen = launch.flags(gpu=False, amx=False)
    command = launch.command(str(warm()), str(model), "127.0.0.1", port, chosen)
    variables = {**launch.variables(chosen), **VARIABLES, **(environment or {})}
    # What others take while this one loads counts against its share; the tokens bound it.
    command += ["--mem-fraction-static", "0.6"]
    return launch.Server([*command, *more], f"http://127.0.0.1:{port}", log=log, environment=variables)


@contextmanager
def running(*servers: launch.Server) -> Iterator[None]:
    """The servers while they are needed. They are killed: a server that is asked to end takes the end of its
    own scheduler for a crash, and waits 5 s."""
    try:
        for server in servers:
            server.wait(900)  # a busy machine takes its time
        yield
    finally:
        for server in servers:
            server.kill()
