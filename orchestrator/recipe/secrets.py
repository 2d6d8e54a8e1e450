"""Secrets in recipes: a recipe says which environment variable holds one, never the secret.

    model: {engine: sglang, url: "http://gpu:30000", api_key: "${secret:SGLANG_KEY}"}
    memory: {store: "postgresql://me:${secret:PG_PASSWORD}@db/concepts"}

The reference is what is kept, shown and written into run.json; the value is put in its place where the
engine is made. It may stand only where a secret belongs, so that no recipe can send the environment into a
prompt; and there only a reference may stand, so that no secret is written down with a recipe.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ...serving.errors import UsageError
from ...serving.settings import secret
from .parts import Fault

_REFERENCE = re.compile(r"\$\{secret:([A-Za-z_][A-Za-z0-9_]*)\}")
_KEYS = frozenset({"api_key", "key", "token", "password", "secret"})
_HEADERS = frozenset({"headers", "extra_headers"})
_PASSWORD_IN_URL = re.compile(r"^[a-z][a-z0-9+.-]*://[^/@\s]*:([^/@\s]+)@")
_WRITE = "Write ${secret:NAME}, where NAME is the environment variable that holds it."


def faults(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[Fault]:
    """References where no secret belongs, and secrets that are written out. No message holds a secret."""
    if isinstance(data, Mapping):
        for key, part in data.items():
            yield from faults(part, (*path, key))
    elif isinstance(data, list):
        for i, part in enumerate(data):
            yield from faults(part, (*path, i))
    elif isinstance(data, str):
        yield from _faults(data, path)


def resolve(data: Any) -> Any:
    """The same data with every reference replaced by its value. Raises UsageError for a variable that is
    not set; a text that is no reference stays as it is."""
    if isinstance(data, Mapping):
        return {key: resolve(part) for key, part in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(resolve(part) for part in data)
    return _REFERENCE.sub(_value, data) if isinstance(data, str) else data


def _faults(text: str, path: tuple[str | int, ...]) -> Iterator[Fault]:
    if not _is_secret(path):
        found = _PASSWORD_IN_URL.match(text)
        is_store = path in (("memory",), ("memory", "store"))
        if found and is_store and not _REFERENCE.fullmatch(found[1]):
            yield Fault(path, f"a password does not belong in a recipe. {_WRITE}")
        elif "${secret:" in text and not is_store:
            allowed = ", ".join(sorted(_KEYS))
            yield Fault(path, f"a secret may stand only in {allowed}, headers and the memory's store.")
        elif "${secret:" in _REFERENCE.sub("", text):
            yield Fault(path, f"is no reference to a secret. {_WRITE}")
    elif not _REFERENCE.search(text) or "${" in _REFERENCE.sub("", text):
        yield Fault(path, f"a secret does not belong in a recipe. {_WRITE}")


def _is_secret(path: tuple[str | int, ...]) -> bool:
    keys = [str(key).lower() for key in path if not isinstance(key, int)]
    return bool(keys) and (keys[-1] in _KEYS or any(key in _HEADERS for key in keys[:-1]))


def _value(reference: re.Match[str]) -> str:
    if (found := secret(reference[1])) is None:
        raise UsageError(f"The recipe needs the environment variable {reference[1]}, which is not set.")
    return found
