"""The plug-in's frame: what it imports, how it wraps, that it fails aloud."""

import json
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from abduce.serving.sglang import plugin
from abduce.serving.sglang.plugin import hooks
from abduce.serving.sglang.plugin.tally import Tally

LIGHT = """
import json, sys
import abduce.serving.sglang.plugin, abduce.serving.sglang.plugin.tries, abduce.serving.sglang.plugin.start
names = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(names - set(sys.stdlib_module_names))))
"""


def test_the_entry_point_imports_nothing_that_a_server_lacks() -> None:
    told = subprocess.run([sys.executable, "-S", "-c", LIGHT], capture_output=True, text=True, check=False)
    if told.returncode:  # -S hides the site packages; an editable install needs them to find abduce itself
        told = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    imported = set(json.loads(told.stdout))
    assert not imported & {
        "pydantic",
        "orjson",
        "aiohttp",
        "langgraph",
        "networkx",
        "yaml",
        "rich",
        "xllamacpp",
    }
    assert "abduce" in imported


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Something to wrap."""

    class Thing:
        def double(self, x: int) -> int:
            return 2 * x

    made = ModuleType("wrapped_thing")
    made.Thing = Thing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def add_one(original: Callable[..., int], *args: Any) -> int:
    return original(*args) + 1


def add_ten(original: Callable[..., int], *args: Any) -> int:
    return original(*args) + 10


def test_a_wrapper_stands_for_the_function_once(module: ModuleType) -> None:
    target = "wrapped_thing:Thing.double"
    assert not hooks.is_around(target, add_one)
    hooks.around(target, add_one)
    hooks.around(target, add_one)
    assert module.Thing().double(4) == 9
    hooks.around(target, add_ten)
    assert module.Thing().double(4) == 19
    assert hooks.is_around(target, add_one) and hooks.is_around(target, add_ten)


@pytest.mark.parametrize(
    "target", ["wrapped_thing:Thing.triple", "wrapped_thing:Nothing.double", "wrapped_thing:x"]
)
def test_what_is_not_there_cannot_be_wrapped(target: str, module: ModuleType) -> None:
    with pytest.raises(LookupError, match=target):
        hooks.around(target, add_one)


def test_a_member_that_cannot_register_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ModuleType("broken")

    def register() -> None:
        raise LookupError("this SGLang has no such place")

    broken.register = register  # type: ignore[attr-defined]
    monkeypatch.setattr(plugin, "MEMBERS", ("broken",))
    monkeypatch.setitem(sys.modules, f"{plugin.__name__}.broken", broken)
    with pytest.raises(SystemExit, match=r"could not register 'broken'.*no such place.*SGLANG_PLUGINS"):
        plugin.register()


class Rows(list[list[int]]):
    def tolist(self) -> list[list[int]]:
        return list(self)


def test_the_tally_counts_kept_rows_by_source() -> None:
    tally = Tally()
    sources = [[None, "prompt", "prompt", "outputs"], [None, "texts", None, None]]
    tally.count(sources, Rows([[0, 1, 3, -1], [4, -1, -1, -1]]), 4)
    table = tally.table()
    assert (table["forwards"], table["tokens"], table["edl"]) == (2, 4, 2.0)
    assert table["sources"]["prompt"] == {"drafted": 2, "kept": 1, "runs": 1}
    assert table["sources"]["outputs"] == {"drafted": 1, "kept": 1, "runs": 0}
    assert table["sources"]["texts"] == {"drafted": 1, "kept": 0, "runs": 0}
