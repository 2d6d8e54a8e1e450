"""What is a command, what is a problem, and what is a mistake."""

import pytest

from abduce.orchestrator.repl.language import COMMANDS, GROUPS, command, count, parse
from abduce.serving.errors import UsageError


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_is_one(name):
    assert parse(COMMANDS[name].example)[0] == name
    assert COMMANDS[name].tells


def test_groups_hold_each_command_once():
    assert sum(map(len, GROUPS.values())) == len(COMMANDS)


@pytest.mark.parametrize("line", ["24 x 3", "write abc", "What is 7 x 8?", "Stop the car at 5 m/s", "7*8="])
def test_what_begins_with_no_command_is_a_problem(line):
    assert parse(line) == ("solve", line)


@pytest.mark.parametrize(
    ("line", "meant"), [("stpe", "step"), ("stpe 3", "step"), ("compre A", "compare"), ("Tree", "tree")]
)
def test_a_command_misspelt_is_told_with_the_nearest_one(line, meant):
    with pytest.raises(UsageError, match=rf"Did you mean '{meant}'\?.*solve {line}"):
        parse(line)


def test_a_word_alone_is_no_problem():
    with pytest.raises(UsageError, match="Write help"):
        parse("zzzz")
    with pytest.raises(UsageError, match="Did you mean 'fork'"):
        command("frok")


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", "²"])
def test_counts_are_whole_numbers_above_zero(text):
    assert count("step", "") == 1
    assert count("step", "12") == 12
    with pytest.raises(UsageError, match=r"step takes a whole number above 0, got .*Write e\.g\. step 3"):
        count("step", text)
