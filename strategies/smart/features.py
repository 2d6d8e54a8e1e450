"""The context of a decision: what is known of a problem before anything is tried.

    φ(x) = [1, hand features, R h / |h|],   R ~ N(0, 1) of a fixed seed,   h = the model's hidden state

Hand features are centred and scaled by constants, not by what a log happens to hold, so that logs add up.
`signature` names all of this: sums of one signature mean nothing under another.
"""

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from random import Random

_TAGS = 8
_KINDS: tuple[tuple[str, str], ...] = (
    ("how many", r"\bhow (many|much|long|far|old|often)\b"),
    ("which", r"\b(which|who|where|when)\b"),
    ("prove", r"\b(prove|show that|explain why)\b"),
    ("choose", r"\b(choose|select|pick) |\([A-E]\)"),
)
"""Kinds of question, the first that fits; else "other"."""

_SCALES: dict[str, tuple[float, float]] = {
    "log length": (math.log(150), 1.0), "digits": (math.log(8), 0.8), "operators": (0.7, 0.8),
    "sentences": (math.log(3), 0.6),
}  # fmt: skip
"""Centre and scale of each; lengths and counts are taken as logarithms."""

N_HAND = len(_SCALES) + 2 + len(_KINDS) + 1 + _TAGS


def features(
    question: str, *, tag: str = "", hidden: Sequence[float] = (), dims: int = 0
) -> tuple[float, ...]:
    """φ of a problem. `tag` names its kind where that is known; `dims` is m, the length of R h."""
    values = {
        "log length": math.log(1 + len(question)),
        "digits": math.log(1 + len(re.findall(r"\d", question))),
        "operators": math.log(1 + len(re.findall(r"[+*/=<>^×÷]|(?<=\d)\s*[-x]\s*(?=\d)", question))),
        "sentences": math.log(1 + len(re.findall(r"[.!?](?:\s|$)", question))),
    }
    hand = [(values[name] - centre) / scale for name, (centre, scale) in _SCALES.items()]
    hand.append(float(bool(re.search(r"```|\bdef \w+\(|\w+\(\)|;\s*$", question, re.MULTILINE))))
    hand.append(float(bool(re.search(r"^\s*(?:[-*]|\d+[.)])\s", question, re.MULTILINE))))
    lower = question.lower()
    kind = next((i for i, (_, words) in enumerate(_KINDS) if re.search(words, lower, re.I)), len(_KINDS))
    hand += [float(i == kind) for i in range(len(_KINDS) + 1)]
    slot = blake2b(tag.encode(), digest_size=1).digest()[0] % _TAGS if tag else -1
    hand += [float(i == slot) for i in range(_TAGS)]
    return tuple(round(value, 6) for value in (1.0, *hand, *_projected(hidden, dims)))


def signature(dims: int) -> str:
    """The name of φ: equal only if every feature means the same."""
    return blake2b(f"1 {_SCALES} {_KINDS} {_TAGS} {dims}".encode(), digest_size=6).hexdigest()


def _projected(hidden: Sequence[float], dims: int) -> list[float]:
    """R h / |h|; zeros where there is no state, so that hand features alone decide."""
    norm = math.sqrt(sum(value * value for value in hidden))
    if not dims or not norm:
        return [0.0] * dims
    rows = _matrix(dims, len(hidden))
    return [sum(r * value for r, value in zip(row, hidden, strict=True)) / norm for row in rows]


@lru_cache(maxsize=4)
def _matrix(n: int, width: int) -> tuple[tuple[float, ...], ...]:
    rng = Random(f"projection {n} {width}")
    return tuple(tuple(rng.gauss(0.0, 1.0) for _ in range(width)) for _ in range(n))
