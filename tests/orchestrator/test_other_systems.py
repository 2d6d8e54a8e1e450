"""A system that lacks what Unix has, such as Windows: all works but what is made of it, and that is told.

The system is played, by a Python in which those modules cannot be imported."""

import subprocess
import sys

import pytest

PLAYED = """
import os, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
for name in ("fork", "geteuid", "getuid", "killpg", "register_at_fork", "setsid"):
    delattr(os, name)
from abduce.orchestrator.cli import main
sys.exit(main(sys.argv[1:]))
"""
MODEL = ["--set", 'model={engine: scripted, replies: "The answer is 56"}', "--no-trace"]
SOLVE = ["solve", "7 x 8 =", "--recipe", "best-of-n-products", "--check", "numeric=56", *MODEL]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (SOLVE, 0, ["56\n", "look again with"]),
        ([*SOLVE, "--set", "tools=[calculator]"], 0, ["56\n"]),
        ([*SOLVE, "--set", "tools=[python]"], 2, ["The tool python cannot run on this system", "in WSL 2"]),
        (["doctor"], None, ["the tool python cannot run on this system", "in WSL 2"]),
    ],
    ids=["solve", "calculator", "python", "doctor"],
)
def test_what_needs_unix_says_so_and_the_rest_works(tmp_path, monkeypatch, words, code, told):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path))
    command = [sys.executable, "-c", PLAYED, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert code is None or done.returncode == code, said
    for part in told:
        assert part in said
