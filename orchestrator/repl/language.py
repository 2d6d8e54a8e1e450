"""What may be typed: the commands, with their arguments, meaning and an example each.

A line that begins with no command is a problem to be solved, unless it looks like a command misspelt.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import NamedTuple

from ...serving.errors import UsageError
from .breakpoints import EVENTS


class Command(NamedTuple):
    """One command as `help` tells it."""

    name: str
    arguments: str
    tells: str
    example: str
    more: str = ""


_RUNNING = (
    Command("solve", "PROBLEM", "ask a problem; a line that is no command does the same", "solve 24 x 3"),
    Command(
        "check",
        "[ID=VALUE … | off]",
        "demands on the answers of what is asked from now on",
        "check numeric=72",
    ),
    Command("step", "[N]", "carry out the next step, or the next N, and stop again", "step 3"),
    Command("run", "", "go on until the end or a breakpoint", "run"),
    Command("pause", "", "stop before the next step; Ctrl-C does the same", "pause"),
    Command(
        "back",
        "[N]",
        "go back one step, or N: a new run that begins with all but the last N steps of this one",
        "back 3",
    ),
    Command(
        "fork",
        "[KEY=VALUE …]",
        "a new run from here, with other values; replies that still fit are kept, the rest is asked anew",
        "fork strategy=particle_filter particles=4",
        "Keys are those of a recipe (budget.tokens, reward, seed …); others are parameters of the strategy.",
    ),
    Command(
        "goto",
        "NODE | RUN",
        "go to the moment at which a node was found (a new run, as with back), or to another run",
        "goto 12",
        "NODE is the number before a node in the tree, RUN the letter of a run, B:12 node 12 of run B.",
    ),
    Command(
        "break",
        "[on CONDITION | off [N]]",
        "stop when something happens; alone, list what is set",
        "break on score >= 0.8",
        "CONDITION is a number compared (score, depth, tokens, calls, steps, seconds) or a kind of event:\n"
        f"{', '.join(EVENTS)}; or a node of the recipe's graph.",
    ),
    Command("answer", "TEXT", "answer what the run asks you", "answer yes"),
)
_LOOKING = (
    Command("tree", "[RUN]", "the whole tree of partial solutions", "tree"),
    Command(
        "show",
        "[NODE | RUN]",
        "a node: prompt, completion, log-probs, scores; a run: its recipe and figures; alone, the best node",
        "show 12",
    ),
    Command("calls", "[N]", "the last calls: what was asked of models, tools and memory", "calls 5"),
    Command("runs", "", "the runs of this sitting: A, B, C …", "runs"),
    Command("compare", "RUN RUN", "two runs side by side, and where they parted", "compare A B"),
    Command(
        "budget",
        "[LIMITS | off]",
        "what is spent; with limits, those of what is asked next",
        "budget 8k tokens",
    ),
)
_SETTING = (
    Command("set", "[KEY=VALUE …]", "change the recipe for what is asked next, and for fork", "set seed=7"),
    Command("strategy", "[NAME]", "the strategies, or the one to use next", "strategy a_star"),
    Command("model", "[NAME]", "the engines, or the one to use next", "model embedded"),
    Command("tools", "[NAME … | off]", "the tools, or those to use next", "tools calculator"),
    Command(
        "memory",
        "[QUERY | VERB …]",
        "what the memory holds for a query; or look after it",
        "memory search products --graph",
        "VERB: list, show, search, audit, diff, export, import, forget, retire or rollback; each has --help.",
    ),
)
_FILES = (
    Command(
        "save", "FILE", "write the sitting into one file: commands, runs, replies, events", "save a.sitting"
    ),
    Command(
        "replay", "FILE", "show a saved sitting again, step by step, without any engine", "replay a.sitting"
    ),
    Command("close", "", "leave a replay", "close"),
    Command(
        "export",
        "FILE",
        "the tree of this run as data: .json, .graphml, or .jsonl for its events",
        "export a.json",
    ),
    Command("help", "[COMMAND]", "what may be typed", "help fork"),
    Command("quit", "", "leave; unfinished runs can be gone on with: abduce resume RUN", "quit"),
)
GROUPS: Mapping[str, tuple[Command, ...]] = {
    "run": _RUNNING,
    "look": _LOOKING,
    "set": _SETTING,
    "keep": _FILES,
}
COMMANDS: Mapping[str, Command] = {each.name: each for group in GROUPS.values() for each in group}
LOOKING = frozenset({"tree", "show", "calls", "runs", "compare", "help", "export"})
"""Commands that change nothing: a replay does them as the sitting did."""


def parse(line: str) -> tuple[str, str]:
    """A line's command and the rest of it. Raises UsageError for what seems to be a command misspelt."""
    word, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if word in COMMANDS:
        return word, rest
    if word in _ALIASES:
        return _ALIASES[word], rest
    near = get_close_matches(word.lower(), COMMANDS, n=1, cutoff=0.7)
    if word.isalpha() and (not rest or (near and len(rest.split()) == 1)):
        hint = f" Did you mean {near[0]!r}?" if near else " Write help for all of them."
        raise UsageError(f"No command named {word!r}.{hint} If it is a problem: solve {line.strip()}")
    return "solve", line.strip()


_ALIASES = {"exit": "quit", "?": "help", "b": "break", "s": "step", "r": "run"}


def command(name: str) -> Command:
    """A command by name. Raises UsageError with the nearest spelling."""
    name = _ALIASES.get(name, name)
    if name in COMMANDS:
        return COMMANDS[name]
    near = get_close_matches(name, COMMANDS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise UsageError(f"No command named {name!r}. {hint}Known: {', '.join(COMMANDS)}.")


def count(name: str, text: str, default: int = 1) -> int:
    """A command's number. Raises UsageError unless it is a whole number above 0."""
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise _misused(name, f"takes a whole number above 0, got {text!r}")
    return int(text)


def words(name: str, text: str, least: int, most: int) -> list[str]:
    """A command's words. Raises UsageError if there are too few or too many."""
    found = text.split()
    if not least <= len(found) <= most:
        raise _misused(name, f"takes {COMMANDS[name].arguments or 'nothing'}, got {text!r}")
    return found


def _misused(name: str, problem: str) -> UsageError:
    return UsageError(f"{name} {problem}. Write e.g. {COMMANDS[name].example}.")
