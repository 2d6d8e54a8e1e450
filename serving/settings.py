"""What the environment says: the only file that reads environment variables, but for what libraries read.

ABDUCE_API_KEYS keys of the gateway, name:key,name:key; beside those of --keys
ABDUCE_CACHE    folder of fetched weights; else $XDG_CACHE_HOME/abduce, ~/.cache/abduce
ABDUCE_HOME     folder of runs and memories; else $XDG_STATE_HOME/abduce, ~/.local/state/abduce
ABDUCE_KEEP     how many finished runs stay, such as "200 runs, 30 days, 2 GB"; else all
ABDUCE_KV       the KV method of a SGLang server with our plug-in, such as ems:budget=1024; else none
ABDUCE_MODEL    weights of the embedded engine, a path or hf:…; else the small model of weights.py
ABDUCE_SANDBOX  "unsafe" runs programs of the tool python without isolation; else none where it cannot be had
ABDUCE_STORE    where runs are kept, a folder or postgresql://user:password@host/database; else ABDUCE_HOME
ABDUCE_THREADS  threads of the embedded engine; else half of the cores, 1 to 4, and 1 in CI

OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT  where spans go; its presence turns them on
OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_TRACES_HEADERS    sent along; their values are secrets
OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true          spans hold prompts and completions too
OTEL_SDK_DISABLED=true, OTEL_TRACES_EXPORTER=none                no spans, whatever the others say
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from . import redact
from .errors import UsageError


def cache() -> Path:
    """The folder of fetched model weights. It may not exist yet."""
    return _folder("ABDUCE_CACHE", "XDG_CACHE_HOME", "~/.cache")


def home() -> Path:
    """The folder of runs and memories. It may not exist yet."""
    return _folder("ABDUCE_HOME", "XDG_STATE_HOME", "~/.local/state")


def unsafe_sandbox() -> bool:
    """Whether programs may be run without isolation. Raises UsageError for a word that is not known."""
    told = os.environ.get("ABDUCE_SANDBOX") or "isolated"
    if told not in ("isolated", "unsafe"):
        raise UsageError(f"ABDUCE_SANDBOX is unsafe or isolated, not {told!r}.")
    return told == "unsafe"


def store() -> str | None:
    """Where runs are kept, if not at home: a folder, or the URL of a PostgreSQL database."""
    found = os.environ.get("ABDUCE_STORE") or None
    redact.register_password(found or "")
    return found


def keep() -> str | None:
    """How many finished runs are kept, in words."""
    return os.environ.get("ABDUCE_KEEP") or None


def kv_method() -> str | None:
    """The KV method that a SGLang server is to decode by, as it is written."""
    return os.environ.get("ABDUCE_KV") or None


def model() -> str | None:
    """The weights to use where the caller names none: a path or `hf:org/repo/file.gguf`."""
    return os.environ.get("ABDUCE_MODEL") or None


def api_keys() -> str:
    """The API keys of the gateway as they were written, `name:key,name:key`; empty if there are none."""
    told = os.environ.get("ABDUCE_API_KEYS", "")
    for entry in told.split(","):
        redact.register(entry.partition(":")[2])
    return told


def secret(name: str) -> str | None:
    """A key or a password, from the variable that the caller names. It is kept only to be recognised and
    left out of all that is written (`redact.py`)."""
    found = os.environ.get(name) or None
    redact.register(found)
    return found


def register_secrets() -> None:
    """Have every variable that is named like a key (OPENAI_API_KEY, HF_TOKEN …) recognised as a secret."""
    for name, value in os.environ.items():
        if name.upper().endswith(_SECRETS):
            redact.register(value)
    for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"):
        for pair in os.environ.get(name, "").split(","):
            header, _, value = pair.partition("=")
            redact.register_headers({header.strip(): unquote(value.strip())})
    api_keys()


def register_references(text: str) -> None:
    """Have what a recipe refers to as ${secret:NAME} recognised as secrets."""
    for name in re.findall(r"\$\{secret:(\w+)\}", text):
        secret(name)


def otel() -> bool:
    """Whether the environment asks for spans: it names a collector, and does not forbid it."""
    forbidden = _is_true("OTEL_SDK_DISABLED") or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return not forbidden and any(map(os.environ.get, names))


def otel_content() -> bool:
    """Whether the environment asks for prompts and completions in spans."""
    return _is_true("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT")


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


def is_set(name: str) -> bool:
    """Whether a variable that a library reads is set already."""
    return name in os.environ


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process to be started: this one's, with changes."""
    return {**os.environ, **changes}


def set_unset(variables: Mapping[str, str]) -> None:
    """Set what is not set in the environment, for libraries that start processes of their own."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


_SECRETS = ("API_KEY", "ACCESS_KEY", "TOKEN", "SECRET", "PASSWORD")  # others in _KEY are often paths


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in ("true", "1")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _folder(own: str, shared: str, fallback: str) -> Path:
    if os.environ.get(own):
        return Path(os.environ[own]).expanduser()
    return Path(os.environ.get(shared) or fallback).expanduser() / "abduce"
