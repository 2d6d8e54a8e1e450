"""Constraints on what a model writes, as data; engines decide how to keep them.

    Regex(r"\\d+ apples")  JsonSchema({"type": "object"})  Choices(("yes", "no"))  Check(prefix, complete)

`a * b` is the constraint that keeps both.

>>> (Regex("[ab]+") * Choices(("ab", "cd"))).parts
(Regex(pattern='[ab]+'), Choices(options=('ab', 'cd')))
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


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
    """JSON texts that keep the schema. `{}` is any JSON value."""

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
class Product(Constraint):
    """Texts that keep every part."""

    parts: tuple[Constraint, ...]


def _parts(constraint: Constraint) -> tuple[Constraint, ...]:
    return constraint.parts if isinstance(constraint, Product) else (constraint,)
