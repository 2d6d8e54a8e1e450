"""Constraints on what a model writes, as data; engines decide how to keep them.

    Regex(r"\\d+ apples")  JsonSchema({"type": "object"})  Choices(("yes", "no"))  Check(prefix, complete)

`a * b` is the constraint that keeps both.

>>> (Regex("[ab]+") * Choices(("ab", "cd"))).parts
(Regex(pattern='[ab]+'), Choices(options=('ab', 'cd')))

`docs/constraints.md` says which engine keeps which, and what the samples of each are.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from .errors import UsageError


@dataclass(frozen=True)
class Constraint:
    """Base of all constraints: a set of texts."""

    def __mul__(self, other: "Constraint") -> "Product":
        return Product((*_parts(self), *_parts(other)))


@dataclass(frozen=True)
class Regex(Constraint):
    """Texts that the pattern matches as a whole. What a pattern may hold: Rust's `regex` syntax."""

    pattern: str


@dataclass(frozen=True)
class JsonSchema(Constraint):
    """JSON texts that keep the schema, properties in the schema's order. `{}` is any JSON value."""

    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Choices(Constraint):
    """Exactly one of these texts."""

    options: tuple[str, ...]


@dataclass(frozen=True)
class Check(Constraint):
    """Texts that a function of yours accepts: `complete(text)` whole ones, `prefix(text)` beginnings of
    such. Whatever is the beginning of a complete text must pass `prefix`."""

    prefix: Callable[[str], bool]
    complete: Callable[[str], bool]


@dataclass(frozen=True)
class Critic(Constraint):
    """Weighs texts where the others forbid them: `complete(text)` is the log-weight of a whole text, −∞ to
    forbid it; `prefix(text)` a guess of it from the beginning, which guides where samples are kept and
    never changes what they stand for."""

    prefix: Callable[[str], float]
    complete: Callable[[str], float]


@dataclass(frozen=True)
class Product(Constraint):
    """Texts that keep every part."""

    parts: tuple[Constraint, ...]


class Form(NamedTuple):
    """A constraint as grammar back ends of servers take it: a regular expression, or a schema in JSON."""

    kind: Literal["regex", "json_schema"]
    text: str


def masking_form(constraint: Constraint) -> Form | None:
    """The form in which a server can mask tokens, or None where there is none. Raises UsageError for a
    schema that is no JSON.

    >>> masking_form(Choices(("yes", "no?")))
    Form(kind='regex', text='(yes|no\\\\?)')
    >>> masking_form(Choices(("yes",)) * Regex("[a-z]+")) is None
    True
    """
    if isinstance(constraint, Regex):
        return Form("regex", constraint.pattern)
    if isinstance(constraint, JsonSchema):
        try:
            return Form("json_schema", json.dumps(dict(constraint.schema)))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{constraint!r} is no JSON schema: {error}.") from None
    if isinstance(constraint, Choices):
        options = (re.sub(r"[\\.+*?()|\[\]{}^$]", r"\\\g<0>", option) for option in constraint.options)
        return Form("regex", f"({'|'.join(options)})")
    if isinstance(constraint, Product) and len(constraint.parts) == 1:
        return masking_form(constraint.parts[0])
    return None


def _parts(constraint: Constraint) -> tuple[Constraint, ...]:
    return constraint.parts if isinstance(constraint, Product) else (constraint,)
