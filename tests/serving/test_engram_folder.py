"""What an Engram model's config.json may say, and what the command line makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from abduce.orchestrator.cli import main
from abduce.serving.engram_folder import MODEL_TYPE, Shape, shape_in, shape_of
from abduce.serving.errors import UsageError
from abduce.serving.sglang import launch

TOLD = {"layers": [1, 3], "max_order": 3, "n_heads": 4, "d_head": 16, "base": 1000, "n_compressed": 90}
CONFIG = {"model_type": MODEL_TYPE, "num_hidden_layers": 4, "vocab_size": 100, "engram": TOLD}


def folder(path: Path, **changes: Any) -> Path:
    (path / "config.json").write_text(json.dumps(CONFIG | changes))
    return path


def test_a_shape_is_read_as_it_was_written() -> None:
    shape = shape_of(CONFIG)
    assert shape == Shape((1, 3), 3, 4, 16, 1000, 90)
    assert shape.n_columns == 8
    assert shape_of(CONFIG | {"engram": shape.told()}) == shape


def test_other_folders_are_not_taken_for_it(tmp_path: Path) -> None:
    assert shape_in(tmp_path) is None
    assert shape_in("org/name") is None
    assert shape_in(folder(tmp_path, model_type="llama")) is None
    (tmp_path / "config.json").write_text("[")
    assert shape_in(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"engram": None}, 'has no "engram"'),
        ({"engram": {**TOLD, "layers": [1, 4]}}, "among 0 to 3"),
        ({"engram": {**TOLD, "layers": []}}, "among 0 to 3"),
        ({"engram": {**TOLD, "layers": [3, 1]}}, "rising"),
        ({"engram": {**TOLD, "layers": 1}}, "rising"),
        ({"engram": {**TOLD, "max_order": 1}}, "whole number from 2, not 1"),
        ({"engram": {**TOLD, "n_heads": True}}, "whole number from 1, not True"),
        ({"engram": {**TOLD, "base": "9"}}, "whole number from 2"),
        ({"engram": {**TOLD, "pad": 100}}, "a vocabulary of 100"),
        ({"engram": {**TOLD, "convolve": True}}, "look at convolve"),
        ({"engram": {k: v for k, v in TOLD.items() if k != "base"}}, "look at base"),
        ({"vocab_size": None}, "config.json"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=r"config\.json") as caught:
        shape_in(folder(tmp_path, **changes))
    assert told in str(caught.value)


def test_the_command_recognises_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", str(folder(tmp_path)), "--dry-run"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == (
        "  Engram at layers 1, 3: n-grams of 2 to 3 tokens, about 16,000 rows of 16 numbers, "
        "in the memory of the host"
    )
    assert main(["engine", str(folder(tmp_path, engram={})), "--dry-run"]) == 2
    assert "look at base" in capsys.readouterr().err


def test_without_the_plugin_it_is_not_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho \'{"sglang": true, "router": true, "plugin": false}\'\n')
    python.chmod(0o755)
    assert main(["engine", str(folder(tmp_path)), "--python", str(python)]) == 2
    assert f"The Engram model {tmp_path} needs our plug-in" in capsys.readouterr().err


def test_a_gpu_server_captures_no_graphs() -> None:
    def words(**more: Any) -> list[str]:
        return [" ".join(flag.words) for flag in launch.flags(gpu=True, amx=False, **more)]

    assert set(words(engram=True)) - set(words()) == {
        "--disable-decode-cuda-graph",
        "--disable-prefill-cuda-graph",
    }
