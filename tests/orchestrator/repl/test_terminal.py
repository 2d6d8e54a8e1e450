"""A whole sitting in a real terminal: keys in, what stands on the screen out."""

import os
import re
import sys

import pexpect
import pyte
import pytest

COLUMNS, ROWS = 100, 34
SLOW = ("--model", "synthetic", "--set", "model.depth=12", "--set", "model.alphabet=abcdef")
SLOW += ("--set", "model.latency_s=0.2", "--reward", "rate", "--strategy", "particle_filter")


class Terminal:
    """The program in a terminal, which answers what terminals are asked."""

    def __init__(self, folder, *options):
        env = {**os.environ, "TERM": "xterm-256color", "ABDUCE_HOME": str(folder / "home"), "PYTHONUTF8": "1"}
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "abduce", "repl", *options],
            env=env,
            cwd=str(folder),
            encoding="utf-8",
            timeout=20,
            dimensions=(ROWS, COLUMNS),
        )
        self.screen = pyte.HistoryScreen(COLUMNS, ROWS, history=5000)
        self.screen.write_process_input = self.child.send
        self.stream = pyte.Stream(self.screen)

    @property
    def lines(self):
        """Everything that has scrolled away, and what is on the screen."""
        gone = ("".join(line[x].data for x in range(COLUMNS)).rstrip() for line in self.screen.history.top)
        return [*gone, *(line.rstrip() for line in self.screen.display)]

    def until(self, *parts):
        """Read until all patterns are on the screen at once."""
        for _ in range(3000):
            text = "\n".join(self.screen.display)
            if all(re.search(part, text, re.MULTILINE) for part in parts):
                return text
            try:
                self.stream.feed(self.child.read_nonblocking(1 << 16, timeout=0.01))
            except pexpect.TIMEOUT:
                continue
        raise AssertionError(f"{parts} not seen in:\n" + "\n".join(self.lines))

    def line(self, text, *parts):
        """Type a line, wait for what it brings."""
        self.child.send(f"{text}\r")
        return self.until(*parts)

    def end(self):
        """Read to the end of the program."""
        while True:
            try:
                self.stream.feed(self.child.read_nonblocking(1 << 16, timeout=20))
            except pexpect.EOF:
                break
        self.child.close()
        return self.child.exitstatus


@pytest.fixture
def terminal(tmp_path):
    made = []

    def start(*options):
        made.append(Terminal(tmp_path, *options))
        made[-1].until("Type a problem", "abduce▸")
        return made[-1]

    yield start
    for each in made:
        each.child.close(force=True)


def test_a_whole_sitting(terminal, tmp_path):
    here = terminal(*SLOW)
    here.line("write abcdef", r"● A step \d*[3-9]")  # the tree grows while the prompt is there
    here.until("├", r"tokens \(", "Ctrl-C pauses")
    here.child.send("\x03")
    here.until("^‖ A paused at step", "step · run · back")
    [paused] = [line for line in here.lines if line.startswith("‖ A paused")]
    steps = int(paused.split()[-1])

    here.line("back 3", f"^‖ B paused at step {steps - 3} · from A", "from A ─")
    here.line("fork strategy=a_star k=2", "^‖ C paused at step", "a_star · from B")
    here.line("run", "● C step")
    here.child.send("\x03")
    here.until("^‖ C paused.*\n── ‖ C")
    here.line("compare A C", "particle_filter", "a_star", "[Tt]hey part at")
    here.line("save one.sitting", "3 runs saved to one.sitting")

    here.line("replay one.sitting", "A replay of one.sitting: 3 runs", "replay 0/", "▸")
    here.line("step 3", "● A step", "replay 3/")
    here.line("run", "C▸ compare A C", "[Tt]hey part at")
    here.line("save two.sitting", "3 runs saved to two.sitting")
    here.line("close", "is closed")
    assert (tmp_path / "one.sitting").read_bytes() == (tmp_path / "two.sitting").read_bytes()

    here.line("quit")
    assert here.end() == 0
    told = "\n".join(here.lines)
    for name in "ABC":
        assert f"{name} is unfinished. Go on with: abduce resume" in told
    assert "Traceback" not in told


def test_history_completion_and_mistakes(terminal, tmp_path):
    here = terminal(*SLOW)
    here.line("stpe", "Did you mean 'step'")
    here.child.send("he\t")
    here.until("abduce▸ help ")
    here.child.send("fo\t")
    here.until("abduce▸ help fork")
    here.child.send("\r")
    here.until(r"e\.g\. fork strategy=particle_filter")
    here.child.send("\x1b[A")
    here.until("abduce▸ help fork", r"e\.g\. fork")
    here.child.send("\x03")  # clears the line
    here.until("type a problem · help")
    here.child.send("\x03")
    here.until("Nothing is going on")
    here.child.send("\x04")
    assert here.end() == 0
    file = tmp_path / "home" / "repl_history"
    assert "+help fork" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0

    here = terminal(*SLOW)
    here.child.send("\x1b[A")
    here.until("abduce▸ help fork")


def test_ctrl_d_in_the_midst_of_a_run_leaves_it_to_be_gone_on_with(terminal):
    here = terminal(*SLOW)
    here.line("write abc", r"● A step \d+")
    here.child.send("\x04")
    assert here.end() == 0
    assert any("abduce resume" in line for line in here.lines)


def test_an_answer_that_was_found_and_the_tree_stay_above(terminal):
    here = terminal(*SLOW, "--set", "model.latency_s=0", "--set", "model.depth=3")
    text = here.line("write abc", "✓ A ended after step", "A▸")
    assert text.index("write abc") < text.index("finished") < text.index("✓ A ended")
    assert "──" not in text  # the live picture has gone


def test_ctrl_c_twice_cuts_off_a_call_that_never_comes_back(terminal):
    here = terminal(*SLOW, "--set", "model.latency_s=3000")
    here.line("write abc", "● A step 0")
    here.child.send("\x03")
    here.until("◐ A pausing at step 0", "Ctrl-C cuts them off")
    here.child.send("\x03")
    here.until("^■ A stopped at step 0: cut off", "run goes on")
    here.line("runs", "▸  A")
    here.child.send("\x04")
    assert here.end() == 0
