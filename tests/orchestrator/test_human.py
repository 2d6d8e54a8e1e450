"""Whoever sits at the terminal is asked, and the run waits where nobody does."""

import io
import sys

import pyte
import pytest
from rich.console import Console

from abduce.orchestrator.cli import main
from abduce.orchestrator.commands.human import at_terminal
from abduce.orchestrator.live import Screen, watch
from abduce.orchestrator.services import AnswerNeeded
from abduce.orchestrator.trace import RunStarted

RECIPE = """name: asked
model: {engine: scripted, replies: {"": "The answer is 7."}}
pipeline:
  - solve: {strategy: chain_of_thought}
  - ask: {question: "Is {answer} right?", use: verdict}
"""


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.mark.parametrize(
    ("text", "said"), [("yes\n", "yes"), (" N \n", "no"), ("yse\n", "yes"), ("\nperhaps\nyes\n", "yes")]
)
async def test_a_choice_is_known_by_its_beginning_or_a_near_spelling(monkeypatch, capsys, text, said):
    typed(monkeypatch, text)
    assert await at_terminal([])("Right?", ("yes", "no")) == said
    assert capsys.readouterr().err.count("Type one of the choices.") == text.count("\n") - 1


async def test_without_choices_anything_is_an_answer(monkeypatch):
    typed(monkeypatch, "\n  anything at all \n")
    assert await at_terminal([])("What?", ()) == "anything at all"


async def test_at_the_end_of_the_input_nobody_is_there(monkeypatch):
    typed(monkeypatch, "")
    with pytest.raises(AnswerNeeded, match="What"):
        await at_terminal([])("What?", ())


async def test_what_a_model_wrote_is_shown_as_text(monkeypatch, capsys):
    typed(monkeypatch, "x\n")
    await at_terminal([])("\x1b[2J[red]Right?", ())
    assert "[red]Right?" in (told := capsys.readouterr().err)
    assert "\x1b[2J" not in told


def test_a_run_that_waits_goes_on_with_resume(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ABDUCE_HOME", str(tmp_path))
    (tmp_path / "asked.yaml").write_text(RECIPE)
    typed(monkeypatch, "")
    assert main(["solve", "?", "--recipe", str(tmp_path / "asked.yaml"), "--no-trace"]) == 1
    told = capsys.readouterr().err
    assert "incomplete: waits for an answer to: Is 7 right?\n" in told
    assert "answer it with: abduce resume" in told
    typed(monkeypatch, "yes\n")
    assert main(["resume", "last", "--no-trace"]) == 0
    assert capsys.readouterr().out == "7\n"


def test_question_and_answer_stay_on_the_terminal(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=20)
    terminal = pyte.Screen(60, 20)
    with watch(console=console) as screen:
        assert isinstance(screen, Screen)
        screen(RunStarted("", "6 x 7 =", 0, {}))
        for question in ("First?", "Second?"):
            with screen.aside():
                console.print(f"{question}\n> well")
    stream = pyte.Stream(terminal)
    stream.feed(console.file.getvalue().replace("\n", "\r\n"))  # type: ignore[attr-defined]
    shown = [line.rstrip() for line in terminal.display]
    for question in ("First?", "Second?"):
        assert shown[shown.index(question) + 1] == "> well"
