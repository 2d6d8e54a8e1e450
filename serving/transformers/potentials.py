"""Constraints at work: what a text that is being written may go on with.

    potential(Regex("[0-9]+"), vocabulary)  ── start() ──►  Matcher: allows(token), take(token), complete()

A potential is a set of texts, told by two functions: `complete(text)`, is it one of them, and `prefix(text)`,
may it still become one. Whatever is complete passes `prefix` at each of its beginnings. A product of
regular expressions, of schemas, or with choices is one exact potential; of other parts each is asked by
itself, so `prefix` may pass a text that no text of the product begins with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from ..constraints import (
    Check,
    Choices,
    Constraint,
    Critic,
    Form,
    JsonSchema,
    Product,
    Regex,
    masking_form,
)
from ..errors import UsageError
from .matchers import Matcher, Vocabulary, both, by_check, by_critic, by_grammar, guidance, one_of
from .timed import Timed


@dataclass(frozen=True)
class Potential:
    """A set of texts. `judged`: critics weigh them."""

    start: Callable[[], Matcher]
    judged: bool = False

    def prefix(self, text: str) -> bool:
        """Whether some text of the set begins with this one (an upper bound: see above)."""
        return self.start().feed(text.encode())

    def complete(self, text: str) -> bool:
        """Whether the text is in the set."""
        matcher = self.start()
        return matcher.feed(text.encode()) and matcher.complete()


def potential(
    constraint: Constraint, vocabulary: Vocabulary | None = None, *, timed: Timed | None = None
) -> Potential:
    """The potential of a constraint over a vocabulary. `timed` calls the user's functions.

    Raises UsageError for a pattern or schema that is none, and for a constraint that no text can keep as
    far as that can be told.
    """
    vocabulary, timed = vocabulary or Vocabulary(), timed or Timed(5.0)
    start = _start(_exact(constraint, vocabulary, timed), vocabulary, timed)
    parts = constraint.parts if isinstance(constraint, Product) else (constraint,)
    return Potential(start, any(isinstance(part, Critic) for part in parts))


# ---------------------------------------------------------------- from data to matchers


def _exact(constraint: Constraint, vocabulary: Vocabulary, timed: Timed) -> Constraint:
    """A product with its regular expressions, schemas and choices merged, each kind into one."""
    if not isinstance(constraint, Product):
        return constraint
    choices = [part for part in constraint.parts if isinstance(part, Choices)]
    if choices:
        others = [part for part in constraint.parts if part not in choices and not isinstance(part, Critic)]
        asked = [potential(part, vocabulary, timed=timed) for part in others]
        common = [text for text in choices[0].options if all(text in other.options for other in choices)]
        kept = tuple(text for text in common if all(each.complete(text) for each in asked))
        if not kept:
            raise UsageError(f"No text keeps {constraint!r}: none of the choices keeps all of its parts.")
        critics = (part for part in constraint.parts if isinstance(part, Critic))
        return Product((Choices(kept), *critics))
    merged: list[Constraint] = [part for part in constraint.parts if not isinstance(part, Regex | JsonSchema)]
    patterns = [part for part in constraint.parts if isinstance(part, Regex)]
    merged += [_Patterns(tuple(part.pattern for part in patterns))] if len(patterns) > 1 else patterns
    schemas = [part for part in constraint.parts if isinstance(part, JsonSchema)]
    if len(schemas) > 1 and not any("$ref" in cast(Form, masking_form(part)).text for part in schemas):
        schemas = [JsonSchema({"allOf": [part.schema for part in schemas]})]  # a $ref is from its own root
    merged += schemas
    return Product(tuple(merged))


def _start(constraint: Constraint, vocabulary: Vocabulary, timed: Timed) -> Callable[[], Matcher]:
    if isinstance(constraint, Product):
        starts = [_start(part, vocabulary, timed) for part in constraint.parts]
        if not starts:
            raise UsageError("A product of no constraints: write at least one part.")
        return starts[0] if len(starts) == 1 else lambda: both([start() for start in starts])
    if isinstance(constraint, Regex | JsonSchema | _Patterns):
        first = _grammar(constraint, vocabulary)
        return first.copy
    if isinstance(constraint, Choices):
        if not constraint.options:
            raise UsageError("No text keeps Choices(()): write at least one option.")
        options = constraint.options
        return lambda: one_of(vocabulary, options)
    if isinstance(constraint, Check):
        return lambda: by_check(vocabulary, constraint, timed)
    if isinstance(constraint, Critic):
        return lambda: by_critic(vocabulary, constraint, timed)
    raise UsageError(
        f"{constraint!r} is no constraint. Write Regex, JsonSchema, Choices, Check, Critic or a product."
    )


@dataclass(frozen=True)
class _Patterns(Constraint):
    """Texts that every pattern matches."""

    patterns: tuple[str, ...]


def _grammar(constraint: Constraint, vocabulary: Vocabulary) -> Matcher:
    """llguidance's matcher of a regular expression or schema at its start."""
    of = guidance().LLMatcher
    try:
        if isinstance(constraint, Regex):
            grammar = of.grammar_from_regex(constraint.pattern)
        elif isinstance(constraint, _Patterns):
            terms = (f"/{guidance().regex_to_lark(each, '')}/" for each in constraint.patterns)
            grammar = of.grammar_from_lark(f"start: TEXT\nTEXT: {' & '.join(terms)}")
        else:
            form = cast(Form, masking_form(constraint))
            grammar = of.grammar_from_json_schema(
                form.text, overrides={"json_allow_general_unicode_escapes": True}
            )
        matcher = of(vocabulary.llguidance, grammar, log_level=0)
        problem = matcher.get_error()
    except ValueError as error:
        problem = str(error)
    if problem:
        raise UsageError(f"{constraint!r} cannot be kept: {' '.join(problem.split())[:400]}")
    first = by_grammar(matcher, vocabulary)
    if not first.complete() and not any(first.copy().feed(bytes([b])) for b in range(256)):
        raise UsageError(f"No text keeps {constraint!r}: not even its first letter can be written.")
    return first
