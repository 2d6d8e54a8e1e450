"""Wraps functions of SGLang, and fails where a function is not there.

SGLang's own HookRegistry logs a hook that cannot be applied and goes on; a plug-in that must not be missing
needs the opposite.
"""

import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

Wrapper = Callable[..., Any]
"""Called with the wrapped function, then that function's own arguments."""


def around(target: str, wrapper: Wrapper) -> None:
    """Let `wrapper(original, *args, **kwargs)` stand for `target`, "module:name" or "module:Class.method".

    Raises LookupError if there is no such function. Wrapping twice with one wrapper has no second effect.
    """
    owner, name = _find(target)
    original = getattr(owner, name)
    if getattr(original, "abduce_wrapper", None) is wrapper:
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    wrapped.abduce_wrapper = wrapper  # type: ignore[attr-defined]
    setattr(owner, name, wrapped)


def is_around(target: str, wrapper: Wrapper) -> bool:
    """Whether `wrapper` stands for `target`, itself or under other wrappers."""
    owner, name = _find(target)
    found = getattr(owner, name)
    while found is not None:
        if getattr(found, "abduce_wrapper", None) is wrapper:
            return True
        found = getattr(found, "__wrapped__", None)
    return False


def _find(target: str) -> tuple[Any, str]:
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for step in owners:
        owner = getattr(owner, step, None)
    if not callable(getattr(owner, name, None)):
        raise LookupError(f"this SGLang has no {target}")
    return owner, name
