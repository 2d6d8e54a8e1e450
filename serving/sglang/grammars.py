"""Constraints as the fields of a request: SGLang's own grammar backend keeps them."""

from typing import Any

from ..constraints import Choices, Constraint, masking_form
from ..errors import EngineError


def fields(constraint: Constraint | None, prefix: str) -> dict[str, Any]:
    """The sampling parameters that keep a constraint, `prefix` being written already.

    Raises EngineError for what SGLang's grammars cannot say, with the engine that can."""
    if constraint is None:
        return {}
    if isinstance(constraint, Choices) and prefix:
        rests = tuple(option[len(prefix) :] for option in constraint.options if option.startswith(prefix))
        if not rests:
            raise EngineError(f"No choice begins with what is written already: {prefix[:100]!r}.")
        constraint = Choices(rests)
    elif prefix:
        raise EngineError(
            "SGLang's grammars begin at the first drawn token: they cannot continue a prefix, except with "
            "Choices. The transformers engine can."
        )
    form = masking_form(constraint)
    if form is None:
        raise EngineError(
            f"SGLang cannot keep a {type(constraint).__name__}, only Regex, JsonSchema and Choices. "
            "The transformers engine can."
        )
    return {form.kind: form.text}
