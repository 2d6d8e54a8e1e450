"""Temporary folders go with their process, whatever ends it, and with no other."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from abduce.serving import scratch
from abduce.serving.scratch import Scratch

pytestmark = pytest.mark.skipif(os.name != "posix", reason="folders cannot be locked here")

HOLDER = """
import sys
from abduce.serving.scratch import Scratch
mine = Scratch()
(mine.path / "log").write_text("x")
print(mine.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders are made, by this process and those it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield tmp_path
    monkeypatch.undo()
    tempfile.tempdir = None


def holder() -> tuple["subprocess.Popen[str]", Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: "subprocess.Popen[str]", *, kill: bool) -> None:
    if kill:
        process.kill()
    process.communicate()


def test_a_folder_is_this_users_alone_and_goes_when_it_is_closed() -> None:
    with Scratch() as folder:
        (folder / "some" / "where").mkdir(parents=True)
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_what_a_kill_left_the_next_process_removes_and_nothing_that_is_in_use(place: Path) -> None:
    (killed, left), (working, held) = holder(), holder()
    end(killed, kill=True)
    assert left.exists()
    with Scratch() as own:
        scratch.sweep()
        assert not left.exists()
        assert (held / "log").exists()
        assert own.exists()
    next_one, third = holder()  # a process that starts sweeps by itself
    assert third.exists() and held.exists()
    end(working, kill=True)
    end(next_one, kill=False)
    assert not third.exists()
    end(holder()[0], kill=False)
    assert not list(place.iterdir())


def test_one_that_is_swept_while_it_is_made_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made, mkdtemp = [], tempfile.mkdtemp

    def swept_at_once(**options: str) -> str:
        made.append(mkdtemp(**options))
        if len(made) == 1:
            scratch.sweep()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", swept_at_once)
    with Scratch() as folder:
        assert not Path(made[0]).exists()
        assert str(folder) == made[1]


def test_folders_of_others_and_links_are_not_touched(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir=place) as elsewhere:
        (place / "abduce-tmp-link").symlink_to(elsewhere)
        (place / "abduce-bench-x").mkdir()
        theirs = place / "abduce-tmp-theirs"
        theirs.mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: theirs.stat().st_uid + 1)
        scratch.sweep()
        assert theirs.exists()
        monkeypatch.undo()
        monkeypatch.setenv("TMPDIR", str(place))
        monkeypatch.setattr(tempfile, "tempdir", None)
        scratch.sweep()
        assert not theirs.exists()
        assert Path(elsewhere).exists() and (place / "abduce-bench-x").exists()


def test_the_programs_folder_of_a_killed_process_is_removed(place: Path) -> None:
    """Of the tool `python` without walls."""
    code = (
        "import sys; from abduce.tools.sandbox import Sandbox\n"
        "session = Sandbox(unsafe=True).start()\n"
        'print(session.run(\'open("x", "w").write("1")\').ok, flush=True); sys.stdin.read()'
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "True\n"
    assert list(place.glob("abduce-*"))
    end(process, kill=True)
    scratch.sweep()
    assert not list(place.glob("abduce-*"))
