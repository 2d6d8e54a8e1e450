"""The factory `abduce.serving.engine`."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from abduce.serving import ENGINES, engine, registry
from abduce.serving.base import Engine
from abduce.serving.embedded import Embedded
from abduce.serving.errors import UnknownName, UsageError
from abduce.serving.scripted import Scripted
from abduce.serving.synthetic import Synthetic
from abduce.strategies import strategy
from abduce.strategies.rewards import reward_class


def test_an_engine_passes_through() -> None:
    mine = Scripted("yes")
    assert engine(mine) is mine


def test_what_follows_the_colon_is_the_first_parameter() -> None:
    made = engine("embedded:some/model.gguf")
    assert isinstance(made, Embedded)
    assert made.model == "some/model.gguf"  # not looked for before the first call


def test_a_mapping_gives_parameters() -> None:
    made = engine({"engine": "synthetic", "alphabet": "xy", "depth": 2})
    assert isinstance(made, Synthetic)
    assert (made.alphabet, made.depth) == ("xy", 2)


@pytest.mark.parametrize(
    ("spec", "error", "told"),
    [
        ("embeded", UnknownName, "Did you mean 'embedded'"),
        ("models/qwen.gguf", UsageError, r"Write embedded:models/qwen\.gguf"),
        ("hf:org/repo/q.gguf", UsageError, r"Write embedded:hf:org/repo/q\.gguf"),
        ("openai/gpt-4o-mini", UsageError, "Write litellm:openai/gpt-4o-mini"),
        ("http://127.0.0.1:30000", UsageError, "sglang:http://127.0.0.1:30000"),
        ({"engine": "nothing"}, UnknownName, "Known: embedded"),
        ({"engine": ["embedded"]}, UnknownName, "Known: embedded"),
        ({"engine": "vllm", "model": "org/m"}, UsageError, "Write litellm:hosted_vllm/org/m, or"),
        ("claude-x", UsageError, "Write e.g. litellm:anthropic/claude-x"),
        ("openrouter:org/m", UsageError, "Write litellm:openrouter/org/m, or"),
        (
            {"engine": "embedded", "modle": "x"},
            UsageError,
            "no parameter 'modle'. Allowed: engine, model, slots",
        ),
        ({"model": "x"}, UsageError, "needs its name"),
        ({"engine": "embedded", "slots": "many"}, UsageError, "slots must be a positive integer"),
        ("scripted", UsageError, "needs 'replies'"),
    ],
)
def test_mistakes_say_what_to_write(spec: Any, error: type[UsageError], told: str) -> None:
    with pytest.raises(error, match=told):
        engine(spec)


def test_third_parties_add_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = EntryPoint("theirs", "abduce.serving.scripted:Scripted", "abduce.engines")
    monkeypatch.setattr(registry, "entry_points", lambda group: [theirs])
    assert isinstance(engine({"engine": "theirs", "replies": "yes"}), Engine)
    with pytest.raises(UnknownName, match="theirs"):
        engine("their")


def test_an_engine_of_theirs_may_have_the_name_of_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = EntryPoint("vllm", "abduce.serving.scripted:Scripted", "abduce.engines")
    monkeypatch.setattr(registry, "entry_points", lambda group: [theirs])
    assert isinstance(engine({"engine": "vllm", "replies": "yes"}), Engine)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("abduce.serving.scripted:Nothing", "cannot be imported: AttributeError"),
        ("no_such_module:X", "cannot be imported: ModuleNotFoundError"),
        ("abduce.serving.flow:Flow", "must be a dataclass"),
    ],
)
def test_what_is_wrong_with_a_third_partys_part_is_told(monkeypatch, value: str, told: str) -> None:
    theirs = [EntryPoint("theirs", value, "any")]
    monkeypatch.setattr(registry, "entry_points", lambda group: theirs)
    for find in (reward_class, strategy):
        with pytest.raises(UsageError, match=told):
            find("theirs")


@pytest.mark.parametrize("name", ENGINES)
def test_engines_are_imported_when_asked_for(name: str) -> None:
    code = f"import sys, abduce.serving; assert 'abduce.serving.{name}' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
