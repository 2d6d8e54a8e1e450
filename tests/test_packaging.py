"""What must hold of the package as a whole: layout, direction of imports, speed of import."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("serving", "tools", "memory", "strategies", "orchestrator")  # lower ones first
FOLDERS = (*LAYERS, "recipes")


def sources() -> list[Path]:
    return [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_a_relative_link_below_abduce(folder):
    link = ROOT / "abduce" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..") / folder
    assert (link / "__init__.py").exists()


def imported_layers(file: Path) -> set[str]:
    """The top folders a file imports from, however deep in a function the import stands."""
    here = file.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            assert not any(name.split(".")[0] in ("abduce", *FOLDERS) for name in names), f"{file}: {names}"
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level == 0:
            assert (node.module or "").split(".")[0] not in ("abduce", *FOLDERS), (
                f"{file}:{node.lineno} imports by name; write it relatively"
            )
            continue
        base = here[: len(here) - node.level + 1] if node.level <= len(here) else ()
        parts = (*base, *(node.module or "").split("."))
        if node.level == len(here) + 1 and not node.module:  # from .. import tools
            found.update(alias.name for alias in node.names)
        else:
            found.add(parts[0])
    return found & set(LAYERS)


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_downwards(file):
    layer = file.relative_to(ROOT).parts[0]
    if layer not in LAYERS:
        return
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    assert imported_layers(file) <= allowed


def test_the_import_check_can_fail(tmp_path, monkeypatch):
    folder = tmp_path / "serving"
    folder.mkdir()
    bad = folder / "bad.py"
    bad.write_text("def f():\n    from ..orchestrator.driver import Driver\n    from .flow import Generate\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert imported_layers(bad) == {"orchestrator", "serving"}


@pytest.mark.parametrize(
    "arguments", [["-c", "import abduce"], ["-m", "abduce", "--help"]], ids=["import", "help"]
)
def test_starting_is_quick_and_imports_nothing_heavy(arguments, tmp_path):
    command = [sys.executable, *arguments]
    seconds = []
    for _ in range(3):  # the least of three: other work on the machine only adds
        before = os.times()
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
        after = os.times()
        seconds.append(sum(after[2:4]) - sum(before[2:4]))  # of children, user and system
    assert min(seconds) <= 0.3

    command[1:1] = ["-X", "importtime"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stderr
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in shown.splitlines() if "|" in line}
    assert "abduce" in imported
    assert not imported & {"torch", "langgraph", "litellm", "pydantic", "yaml", "rich", "xllamacpp"}


def test_no_file_is_too_long():
    long = {
        str(f.relative_to(ROOT)): n for f in sources() if (n := len(f.read_text("utf-8").splitlines())) > 450
    }
    assert not long


def test_every_recipe_begins_with_a_comment_and_every_packaged_file_is_shipped():
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert len(recipes) >= 4
    for file in recipes:
        assert file.read_text(encoding="utf-8").startswith("# "), file
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    assert "*.yaml" in shipped


OLD = ('echo 3.9; case "$2" in *"< (3, 11)"*) exit 1;; esac', ["Python 3.11 or newer", "python3 is 3.9"])
BARE = (
    'echo 3.12; case "$2" in *ensurepip*) exit 1;; esac',
    ["venv module", "apt-get install python3.12-venv"],
)
NONE = ("exit 127", ["Python 3.11 or newer", "apt-get install python3 python3-venv", "brew install"])


@pytest.mark.parametrize(("python", "told"), [OLD, BARE, NONE], ids=["old", "bare", "none"])
def test_the_makefile_names_what_is_missing(tmp_path, python, told):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "cat", "rm", "printf", "touch", "make"):
        found = shutil.which(tool)
        if found is None:
            pytest.skip(f"no {tool} here")
        (tools / tool).symlink_to(found)
    (tools / "python3").write_text(f"#!/bin/sh\n{python}\n")
    (tools / "python3").chmod(0o755)
    copy = tmp_path / "a checkout"
    copy.mkdir()
    (copy / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    (copy / "pyproject.toml").touch()
    words = [str(tools / "make"), "test"]
    done = subprocess.run(
        words, cwd=copy, env={"PATH": str(tools)}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    for part in told:
        assert part in done.stdout
    assert not (copy / ".venv").exists()
