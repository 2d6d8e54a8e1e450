"""What the documents say is true: Python blocks run, shell lines parse, recipes are correct, links exist."""

import re
import shlex
from pathlib import Path

import pytest

from abduce.orchestrator import recipe, strict_yaml
from abduce.orchestrator.arguments import parser

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *(ROOT / "docs").rglob("*.md"),
]


def blocks(language):
    """(where, text) of every fenced block of a language."""
    for file in DOCUMENTS:
        text = file.read_text(encoding="utf-8")
        for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text[: found.start()].count("\n") + 2
            yield pytest.param(file, line, found[1], id=f"{file.relative_to(ROOT)}:{line}")


@pytest.mark.parametrize(("file", "line", "text"), list(blocks("python")))
def test_python_blocks_run(file, line, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = compile("\n" * (line - 1) + text, str(file), "exec")
    exec(code, {"__name__": "__main__"})
    printed = capsys.readouterr().out.splitlines()
    for said in re.findall(r"print\(.*\)  # (.+)", text):
        assert said in printed


@pytest.mark.parametrize(("file", "line", "text"), list(blocks("sh")))
def test_shell_blocks_parse(file, line, text):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in text.splitlines():
        words = shlex.split(command, comments=True)
        if words[:1] == ["abduce"]:
            parser().parse_args(words[1:])
        if words[:1] == ["make"]:
            assert set(words[1:]) <= targets


@pytest.mark.parametrize(("file", "line", "text"), list(blocks("yaml")))
def test_yaml_blocks_are_correct_recipes(file, line, text):
    recipe.check(strict_yaml.parse(text, file=f"{file.name}:{line}"))


def test_links_lead_somewhere():
    for file in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), f"{file}: {target}"


def test_the_readme_lists_every_strategy_and_no_other():
    from abduce.strategies import STRATEGIES

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Strategies")[2].partition("## Engines")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(STRATEGIES)


def test_named_files_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:serving|strategies|orchestrator|abduce)/\w+\.py)`", text)
    assert named
    for file in named:
        assert (ROOT / file).exists(), file
