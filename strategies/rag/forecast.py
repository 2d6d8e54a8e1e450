"""How many tokens a reading will cost, from what earlier ones cost.

L = Σ over calls of the input tokens, a sum over what stands in the prompts:

    L̂ = T_call · calls + T_doc · documents + T_demo · demonstrations + T_line · lines

    drag (n = 1)       1 call,  k (m + 1) documents,  m demonstrations
    iterdrag (t = n)   2t + 1 calls; the j-th group of k documents is read in all calls from its own on

The T are fitted to logged readings (`calibrated`), `margin` is the 95th percentile of L / L̂ on them.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from typing import NamedTuple

from .algebra import least_squares


class Theta(NamedTuple):
    """k documents for each query, m demonstrations, n iterations (1: a single call)."""

    k: int
    m: int
    n: int


class Sent(NamedTuple):
    """What stood in the prompts of a reading, summed over its calls."""

    calls: float
    documents: float
    demonstrations: float
    lines: float


def sent(theta: Theta) -> Sent:
    """The most that a reading with these parameters sends.

    >>> sent(Theta(5, 1, 1))
    Sent(calls=1, documents=10, demonstrations=1, lines=0)
    >>> sent(Theta(5, 0, 2))
    Sent(calls=5, documents=55, demonstrations=0, lines=10)
    """
    k, m, n = theta
    if n <= 1:
        return Sent(1, k * (m + 1), m, 0)
    calls = 2 * n + 1
    groups = sum(calls - (2 * j - 1) for j in range(1, n + 1))  # the j-th follow-up's, from its answer on
    return Sent(calls, k * (m + 1) * calls + k * groups, m * calls, calls * (calls - 1) // 2)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of each part: what every call costs (instruction and question), a document, a demonstration
    without its documents, a line."""

    call: float = 80.0
    document: float = 130.0  # means of MuSiQue's passages
    demonstration: float = 40.0
    line: float = 15.0
    margin: float = 1.2

    def total(self, of: Sent) -> float:
        """What was sent, in tokens."""
        call, document, demonstration, line, _ = astuple(self)
        return float(
            call * of.calls + document * of.documents + demonstration * of.demonstrations + line * of.lines
        )


@dataclass(frozen=True, slots=True)
class Costs:
    """Instruction and demonstrations are longer where follow-ups are asked, so each way has tokens of its
    own."""

    single: Tokens = Tokens()
    iterated: Tokens = Tokens(call=150.0, demonstration=90.0)

    def forecast(self, theta: Theta, *, hard: bool = True) -> float:
        """L̂(θ); `hard`: what 95 % of the readings stay below."""
        of = self.single if theta.n <= 1 else self.iterated
        return of.total(sent(theta)) * (of.margin if hard else 1.0)


def calibrated(runs: Iterable[tuple[Sent, float]], usual: Tokens) -> Tokens:
    """The tokens of each part that explain the logged readings of one way best: pairs of what was sent and
    its input tokens. Relative errors count. A part that was never sent, or only ever together with others,
    keeps what is usual."""
    rows = [(of, total) for of, total in runs if total > 0]
    found = list(astuple(usual)[:4])
    active = [i for i in range(4) if any(of[i] for of, _ in rows)]
    while active:
        rest = [total - sum(found[i] * of[i] for i in range(4) if i not in active) for of, total in rows]
        x = [[of[i] / total for i in active] for of, total in rows]
        t = least_squares(x, [left / total for left, (_, total) in zip(rest, rows, strict=True)])
        if t is None:
            active.pop()
        elif min(t) < 0:
            found[active.pop(t.index(min(t)))] = 0.0
        else:
            for i, value in zip(active, t, strict=True):
                found[i] = value
            break
    call, document, demonstration, line = found
    made = Tokens(call, document, demonstration, line, 1.0)
    shares = sorted(total / max(1e-9, made.total(of)) for of, total in rows)
    if not shares:
        return usual
    return replace(made, margin=max(1.0, shares[min(len(shares) - 1, int(0.95 * len(shares)))]))
