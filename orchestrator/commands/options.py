"""The options that `solve` and `eval` share: from what was typed to a recipe and checks."""

import argparse
from collections.abc import Iterable
from typing import Any

from ...serving.errors import UsageError
from ...strategies.base import Check, Task
from ...strategies.rewards.checks import validate
from .. import strict_yaml
from ..recipe import Recipe, check, default, document


def recipe_of(chosen: argparse.Namespace) -> Recipe:
    """The recipe that was named, with the options that replace parts of it."""
    replaced = {
        key: value
        for key in ("strategy", "model", "reward", "policy", "budget", "seed")
        if (value := getattr(chosen, key)) is not None
    }
    written = document(chosen.recipe) if chosen.recipe else default()
    return check(written, chosen.settings, replaced)


def parse_checks(texts: Iterable[str]) -> tuple[Check, ...]:
    """Each `id`, `id=value` (text, as it stands) or `id={key: value, …}` (YAML); a mistake names the option
    that made it."""
    return tuple(map(_parse_check, texts))


def _parse_check(text: str) -> Check:
    name, equals, value = (part.strip() for part in text.partition("="))
    kwargs: dict[str, Any] = {_TEXT.get(name, "value"): value} if equals else {}
    try:
        if value.startswith("{") and name not in _TEXT:
            kwargs = strict_yaml.scalar(value)
        check = Check(name, kwargs)
        validate(Task("", checks=(check,)))
    except UsageError as error:
        raise UsageError(f"--check {text}: {error} Write e.g. --check numeric=56.") from None
    return check


_TEXT = {
    "regex": "pattern",
    "unit_tests": "tests",
}  # the argument's name; never YAML, whatever it begins with
