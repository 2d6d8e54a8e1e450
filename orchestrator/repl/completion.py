"""What may be typed next: commands, and their arguments as far as the sitting knows them."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from ...serving import ENGINES
from ...strategies import STRATEGIES, strategy
from ...tools import TOOLS
from ..arguments.memory import VERBS
from .breakpoints import EVENTS, QUANTITIES
from .language import COMMANDS
from .sitting import Sitting


def completions(sitting: Sitting, text: str) -> Iterator[tuple[str, str]]:
    """Words that go on from what stands before the cursor, the last of which may be begun, each with what it
    means. File names are left to the terminal."""
    before, _, begun = text.lstrip().rpartition(" ")
    words = before.split()
    known = _arguments(sitting, words) if words else {name: each.tells for name, each in COMMANDS.items()}
    for word, meaning in known.items():
        if word.startswith(begun):
            yield word, meaning


def _arguments(sitting: Sitting, words: list[str]) -> Mapping[str, str]:
    name, first = words[0], len(words) == 1
    if name in ("compare", "tree", "goto", "show"):
        runs = {run: branch.state for run, branch in sitting.front.branches.items()}
        return runs | (_nodes(sitting) if name in ("goto", "show") else {})
    if name == "break":
        return {"on": "stop when …", "off": "forget breakpoints"} if first else _conditions(sitting, words)
    if name in ("set", "fork"):
        return _keys(sitting)
    one: Mapping[str, Mapping[str, str]] = {
        "strategy": dict.fromkeys(STRATEGIES, ""),
        "model": dict.fromkeys(ENGINES, ""),
        "help": {each: command.tells for each, command in COMMANDS.items()},
        "check": {"numeric=": "a number", "regex=": "a pattern", "off": "no checks"},
        "memory": dict.fromkeys(VERBS, ""),
    }
    if name == "tools":
        return dict.fromkeys((*TOOLS, "off"), "")
    return one.get(name, {}) if first else {}


def _nodes(sitting: Sitting) -> dict[str, str]:
    """The nodes of the run looked at, the newest first."""
    branch = sitting.front.current
    if branch is None:
        return {}
    with branch.lock:
        return {str(node.number + 1): node.text.strip()[:40] for node in reversed(branch.view.nodes[-200:])}


def _conditions(sitting: Sitting, words: list[str]) -> Mapping[str, str]:
    if words[1] != "on" or len(words) > 2:
        return {}
    compared = {f"{name} >=": "compared" for name in QUANTITIES}
    return compared | dict.fromkeys(EVENTS, "") | dict.fromkeys(sitting.recipe.nodes, "a node of the graph")


def _keys(sitting: Sitting) -> dict[str, str]:
    """Keys of a recipe, and parameters of its strategy."""
    kind = strategy(sitting.recipe.strategy.name)
    own = [f.name for f in fields(kind)] if is_dataclass(kind) else []
    found = {f"{name}=": f"of {sitting.recipe.strategy.name}" for name in own if name not in _PARTS}
    return found | {f"{name}=": "of the recipe" for name in (*_PARTS, "strategy", "model", "seed")} | _LIMITS


_PARTS = ("policy", "reward")
_LIMITS = {f"budget.{name}=": "a limit" for name in ("tokens", "calls", "seconds", "output_tokens")}
