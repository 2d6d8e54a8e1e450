"""Constraints as llama.cpp's grammars: what the embedded engine masks tokens by.

>>> grammar(Choices(("yes", "no")), "")
'root ::= "yes" | "no"'
"""

import json

from .constraints import Choices, Constraint, JsonSchema, Product
from .errors import EngineError


def grammar(constraint: Constraint, prefix: str) -> str:
    """The grammar of what may follow, `prefix` being written already.

    A JSON schema is kept by llguidance, which llama.cpp is built with here. Raises EngineError for what no
    grammar says, with the engines that can.
    """
    if isinstance(constraint, Product) and len(constraint.parts) == 1:
        constraint = constraint.parts[0]
    if isinstance(constraint, Choices):
        rests = [o[len(prefix) :] for o in constraint.options if o.startswith(prefix)]
        if not any(rests):
            raise EngineError(f"No choice goes on from what is written already: {prefix[:100]!r}.")
        return "root ::= " + " | ".join(map(_literal, rests))
    if not isinstance(constraint, JsonSchema):
        raise EngineError(
            f"The embedded engine cannot keep a {type(constraint).__name__}, only JsonSchema and Choices. "
            "The transformers engine keeps every constraint, the sglang engine also Regex."
        )
    if prefix:
        raise EngineError(
            "The embedded engine's grammars begin at the first drawn token: they cannot continue a prefix, "
            "except with Choices. The transformers engine can."
        )
    return f"%llguidance {{}}\nstart: %json {json.dumps(constraint.schema)}\n"


def _literal(text: str) -> str:
    told = (f"\\{c}" if c in '"\\' else c if c >= " " else f"\\x{ord(c):02x}" for c in text)
    return f'"{"".join(told)}"'
