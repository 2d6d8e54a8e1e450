"""A hostile program reaches nothing outside, leaves nothing behind, and ends in time with words one can read.

The controls run the same programs without walls, so that an attack which never works proves nothing.
"""

import json
import secrets
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from abduce.tools.sandbox import ENDED, Limits, Sandbox

from .hostile import PROGRAMS, Hostile

LIMITS = Limits(wall_s=0.5, cpu_s=1, memory_bytes=1 << 28, output_bytes=2000, files_bytes=1 << 24)
SLACK_S = 3.0  # of a machine that others use too
MISTAKES = ("NameError", "AttributeError", "TypeError", "invalid syntax")  # of the attack, not of the attempt


class Outside:
    """What is to be reached, and whether it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o777)
        self.reset()
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.abstract = f"abduce-{secrets.token_hex(4)}"
        self.unix = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        self.unix[0].bind(str(folder.parent / "unix"))
        self.unix[1].bind(f"\0{self.abstract}")
        for each in self.unix:
            each.listen(50)
        self.victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    def reset(self) -> None:
        for path in self.folder.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()
        (self.folder / "file").write_text("mine")
        (self.folder.parent / "secret").write_text("hidden treasure")

    @property
    def targets(self) -> dict[str, object]:
        return {
            "secret": self.folder.parent / "secret",
            "folder": self.folder,
            "port": self.tcp.getsockname()[1],
            "unix": self.folder.parent / "unix",
            "abstract": self.abstract,
            "victim": self.victim.pid,
        }

    def reached(self) -> list[str]:
        """What has changed outside."""
        found = []
        if [path.name for path in self.folder.iterdir()] != ["file"]:
            found.append("the folder")
        if (self.folder / "file").read_text() != "mine":
            found.append("the file")
        if self.victim.poll() is not None:
            found.append("the victim")
        for each in (self.tcp, *self.unix):
            each.settimeout(0)
            try:
                each.accept()[0].close()
                found.append("a socket")
            except BlockingIOError:
                pass
        return found

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        for each in (self.tcp, *self.unix):
            each.close()


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside") / "folder"
    folder.mkdir()
    made = Outside(folder)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def told(monkeypatch):
    monkeypatch.setenv("HOSTILE_SECRET", "hidden treasure")


DRIVER = """
import json, os, sys
folder, programs = json.load(sys.stdin)
for name, code in programs:
    sys.stdout.flush()
    if os.fork() == 0:
        os.chdir(os.path.join(folder, ".."))
        open(os.path.join(folder, "file"), "w").close()
        print("BEGIN", name, flush=True)
        try:
            exec(code, {})
        except BaseException as error:
            print(repr(error))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def test_without_walls_they_do_reach_it(outside):
    """What no kernel setting of this machine is in the way of must be reached, and most of the rest."""
    programs = [(p.name, p.aimed(**outside.targets)) for p in PROGRAMS if p.control]
    told = json.dumps([str(outside.folder), programs])
    command = [sys.executable, "-c", DRIVER]
    done = subprocess.run(command, input=told, capture_output=True, text=True, timeout=60)
    runs = [part.partition("\n") for part in done.stdout.split("BEGIN ")[1:]]
    reached = {name for name, _, said in runs if "REACHED" in said}
    assert len(runs) == len(programs)
    outside.reset()
    outside.reached()
    needs_leave = {
        "Function not implemented",
        "Operation not permitted",
        "Permission denied",
        "AssertionError",
    }
    for name, _, said in runs:
        assert name in reached or any(word in said for word in needs_leave) or not said.strip(), said
    assert len(reached) >= 25


def test_there_are_enough_of_them():
    assert len(PROGRAMS) >= 60
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)
    assert sum(program.control for program in PROGRAMS) >= 30


@pytest.fixture(scope="module")
def parent(sandbox):
    """What the programs are branches of: a branch is held like a session of its own, and sooner there."""
    with Sandbox(LIMITS).start() as made:
        yield made


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_it_reaches_nothing_and_ends_in_time(program, parent, outside):
    session = Sandbox(LIMITS).start() if program.greedy else parent.fork()
    try:
        began = time.monotonic()
        result = session.run(program.aimed(**outside.targets))
        took = time.monotonic() - began
    finally:
        session.close()
    assert took < LIMITS.wall_s + SLACK_S
    assert "REACHED" not in result.text
    assert "hidden treasure" not in result.text
    assert not any(mistake in result.text for mistake in MISTAKES)
    assert outside.reached() == []
    assert result.text and len(result.text) < 3 * LIMITS.output_bytes
    assert result.ok or result.text.rpartition("\n")[2].startswith(ENDED)


def test_many_of_them_leave_the_host_responsive(sandbox):
    """While six burn what they can another session answers; when they are gone, so are their processes."""
    greedy = (
        "a fork bomb",
        "busy threads",
        "all memory, in a list",
        "an endless loop",
        "endless output",
        "deaf to every signal",
    )
    programs = {program.name: program.code for program in PROGRAMS}
    sessions = [Sandbox(LIMITS).start() for _ in greedy]
    spaces = {str(Path(f"/proc/{session._process.pid}/ns/pid").readlink()) for session in sessions}
    assert len(spaces) == len(greedy)
    threads = [
        threading.Thread(target=session.run, args=(Hostile("", programs[name]).aimed(),))
        for session, name in zip(sessions, greedy, strict=True)
    ]
    for thread in threads:
        thread.start()
    with sandbox.start() as calm:
        assert calm.run("print(6 * 7)").text == "42\n"
    for thread in threads:
        thread.join(LIMITS.wall_s + 2 * SLACK_S)
    for session in sessions:
        session.close()
    deadline = time.monotonic() + 3 * SLACK_S
    while left := spaces & namespaces():
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def namespaces():
    """The pid namespaces of all processes of this machine."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/ns/pid"):
        with suppress(OSError):
            found.add(str(path.readlink()))
    return found
