"""Scripts, pipes and terminals that cannot redraw."""

import io
import re
import socket
import sys
from pathlib import Path

import pexpect
import pytest
from rich.console import Console
from talking import Talk

from abduce.orchestrator.cli import main
from abduce.orchestrator.repl.language import COMMANDS
from abduce.orchestrator.repl.plain import Plain
from abduce.orchestrator.repl.sitting import Sitting

MODEL = ("--model", "synthetic", "--reward", "rate", "--strategy", "particle_filter")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_network(monkeypatch):
    def refused(*_):
        raise AssertionError("no network is needed")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def test_a_script_is_carried_out_as_if_it_were_typed(tmp_path, capsys, no_network):
    file = tmp_path / "sitting.txt"
    file.write_text(
        "# a whole sitting\n\nbreak on steps >= 5\nwrite abc\nback 3\nfork strategy=a_star k=2\n"
        "break off\nrun\ncompare A C\nsave one\nreplay one\nrun\nsave two\nclose\nquit\nnever reached\n"
    )
    assert main(["repl", *MODEL, "--script", str(file)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    for part in ("abduce▸ write abc", "‖ A paused at step 5: break on steps >= 5", "A▸ back 3", "‖ B paused"):
        assert part in told.out
    assert "✓ C ended" in told.out
    assert "never reached" not in told.out
    assert "abduce resume" in told.out  # A and B are unfinished
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_unfinished_runs_can_be_gone_on_with(tmp_path, capsys):
    (tmp_path / "s").write_text("break on steps >= 3\nwrite abc\n")
    assert main(["repl", *MODEL, "--script", "s"]) == 0
    name = capsys.readouterr().out.split()[-1]
    assert main(["resume", name, "--json"]) in (0, 1)
    assert '"complete": true' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "told"),
    [("stpe 3", "Did you mean 'step'"), ("show 5", "There is no run yet"), ("step x", "whole number")],
)
def test_a_mistake_ends_a_script_with_its_line(tmp_path, capsys, line, told):
    (tmp_path / "s").write_text(f"help\n\n{line}\nwrite abc\n")
    assert main(["repl", *MODEL, "--script", "s"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("abduce: s:3: ")
    assert told in error


def test_a_script_that_is_not_there(capsys):
    assert main(["repl", "--script", "nowhere"]) == 2
    assert "No script to read: nowhere" in capsys.readouterr().err


def test_what_is_piped_in_is_a_script(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("write abc\nruns\n"))
    assert main(["repl", *MODEL]) == 0
    assert "▸  A" in capsys.readouterr().out


def test_terminals_without_unicode_get_ascii():
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    plain = Plain(Console(file=out, width=80))
    plain.show("├─ “×” ✓ ☃")
    out.flush()
    assert out.buffer.getvalue() == b"|- ?x? * ?\n"


def test_ctrl_c_while_waiting_pauses(talk):
    here: Talk = talk(model={"engine": "synthetic", "depth": 4, "latency_s": 0.01})
    plain = Plain(Console(file=io.StringIO(), width=80))
    waited = []

    class Interrupted(Sitting):
        def wait(self, timeout_s=None):
            waited.append(1)
            if len(waited) == 1:
                raise KeyboardInterrupt
            return super().wait(timeout_s)

    here.sitting.__class__ = Interrupted
    lines = iter(["write abc"])

    def read(_):
        return next(lines, "quit")

    assert plain.talk(here.sitting, read) == 0
    assert here.sitting.current.state == "paused"


def test_ctrl_c_at_the_prompt_says_what_leaves(talk):
    out = io.StringIO()
    typed = iter([KeyboardInterrupt, "zzzz", EOFError])

    def read(_):
        if isinstance(said := next(typed), str):
            return said
        raise said

    assert Plain(Console(file=out, width=80)).talk(talk().sitting, read) == 0
    assert "Nothing is going on. quit, or Ctrl-D, leaves." in out.getvalue()
    assert "No command named 'zzzz'" in out.getvalue()


def test_a_dumb_terminal_is_talked_to_in_lines(tmp_path):
    child = pexpect.spawn(
        sys.executable,
        ["-m", "abduce", "repl", *MODEL, "--set", "model.latency_s=0.1", "--set", "model.depth=16"],
        env={"TERM": "dumb", "ABDUCE_HOME": str(tmp_path / "home"), "PATH": "", "PYTHONUTF8": "1"},
        encoding="utf-8",
        timeout=20,
        dimensions=(24, 120),
    )
    child.expect("abduce> ")
    child.sendline("stpe")
    child.expect("Did you mean 'step'")
    child.sendline("write abc")
    child.expect(r"\d nodes? · ")
    child.sendintr()
    child.expect(r"A paused at step \d+")
    child.expect("A> ")
    child.sendline("back")
    child.expect("B paused")
    child.expect("B> ")
    child.sendeof()
    child.expect("A is unfinished. Go on with: abduce resume")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    assert "\x1b" not in (child.before or "")


def test_the_script_in_the_docs_runs(tmp_path, capsys):
    page = Path(__file__).parents[3] / "docs" / "repl.md"
    [script] = re.findall(r"^```repl\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "s").write_text(script)
    assert main(["repl", *MODEL, "--script", "s"]) == 0
    assert "They part at" in (told := capsys.readouterr().out) or "they part at" in told


def test_the_docs_name_every_command():
    page = (Path(__file__).parents[3] / "docs" / "repl.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([a-z]+)\b", page))
    assert set(COMMANDS) <= told
