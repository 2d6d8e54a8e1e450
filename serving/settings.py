"""What the environment says: the only file that reads environment variables.

ABDUCE_CACHE    folder of fetched weights; else $XDG_CACHE_HOME/abduce, ~/.cache/abduce
ABDUCE_HOME     folder of runs and memories; else $XDG_STATE_HOME/abduce, ~/.local/state/abduce
ABDUCE_MODEL    weights of the embedded engine, a path or hf:…; else the small model of weights.py
ABDUCE_THREADS  threads of the embedded engine; else half of the cores, 1 to 4, and 1 in CI
"""

import os
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


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _folder(own: str, shared: str, fallback: str) -> Path:
    if os.environ.get(own):
        return Path(os.environ[own]).expanduser()
    return Path(os.environ.get(shared) or fallback).expanduser() / "abduce"
