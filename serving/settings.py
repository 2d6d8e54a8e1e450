"""What the environment says: the only file that reads environment variables.

ABDUCE_API_KEYS keys of the gateway, name:key,name:key; beside those of --keys
ABDUCE_CACHE    folder of fetched weights; else $XDG_CACHE_HOME/abduce, ~/.cache/abduce
ABDUCE_HOME     folder of runs and memories; else $XDG_STATE_HOME/abduce, ~/.local/state/abduce
ABDUCE_MODEL    weights of the embedded engine, a path or hf:…; else the small model of weights.py
ABDUCE_THREADS  threads of the embedded engine; else half of the cores, 1 to 4, and 1 in CI
"""

import os
from collections.abc import Mapping
from pathlib import Path

from .errors import UsageError


def cache() -> Path:
    """The folder of fetched model weights. It may not exist yet."""
    return _folder("ABDUCE_CACHE", "XDG_CACHE_HOME", "~/.cache")


def home() -> Path:
    """The folder of runs and memories. It may not exist yet."""
    return _folder("ABDUCE_HOME", "XDG_STATE_HOME", "~/.local/state")


def model() -> str | None:
    """The weights to use where the caller names none: a path or `hf:org/repo/file.gguf`."""
    return os.environ.get("ABDUCE_MODEL") or None


def api_keys() -> str:
    """The API keys of the gateway as they were written, `name:key,name:key`; empty if there are none."""
    return os.environ.get("ABDUCE_API_KEYS", "")


def secret(name: str) -> str | None:
    """A key of a hosted model, from the variable that the caller names. It is kept nowhere."""
    return os.environ.get(name) or None


def threads() -> int:
    """Threads for the embedded engine. Raises UsageError if the variable is no positive integer.

    Half of the cores, since llama.cpp's threads wait for each other at every layer: on 2 cores with
    one other busy process, 1 thread gave 155 tokens/s and 2 gave 74 to 93.
    """
    text = os.environ.get("ABDUCE_THREADS")
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise UsageError(
                f"ABDUCE_THREADS must be a positive integer, got {text!r}. Write ABDUCE_THREADS=2."
            )
        return int(text)
    if os.environ.get("CI"):
        return 1
    return max(1, min(4, _cores() // 2))


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process to be started: this one's, with changes."""
    return {**os.environ, **changes}


def set_unset(variables: Mapping[str, str]) -> None:
    """Set what is not set in the environment, for libraries that start processes of their own."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _folder(own: str, shared: str, fallback: str) -> Path:
    if os.environ.get(own):
        return Path(os.environ[own]).expanduser()
    return Path(os.environ.get(shared) or fallback).expanduser() / "abduce"
