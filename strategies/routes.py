"""Who wrote what, where two models share a solution: the steps, and the sums over a run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .base import State, Step

Writer: TypeAlias = Literal["small", "large"]


@dataclass(frozen=True, slots=True)
class RoutedStep(Step):
    """A step, who wrote it, and the entropy that decided (None where the small model was not asked)."""

    writer: Writer = "small"
    entropy: float | None = None


def unread(state: State, reader: Writer) -> int:
    """Tokens that the other model wrote since this one last read: what a switch makes it prefill. They are
    counted as their writer counts them."""
    unread = 0
    for step in reversed(state.steps):
        if not isinstance(step, RoutedStep) or step.writer == reader:
            break
        unread += step.n_tokens
        if reader == "small" and step.entropy is not None:
            break  # it read all that stood before this step when it was asked for the glimpse
    return unread


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over the notes of a run. Tokens are those that were written; probes stand apart."""

    steps: int = 0
    large_steps: int = 0
    small_tokens: int = 0
    large_tokens: int = 0
    probe_tokens: int = 0
    switches: int = 0
    refilled_tokens: int = 0
    errors: int = 0


def tally(notes: Iterable[Mapping[str, Any]]) -> Tally:
    """What the "route" notes of a run say, one note for each state that steps were drawn from."""
    rows = list(notes)
    large = [row for row in rows if row["writer"] == "large"]
    small = [row for row in rows if row["writer"] == "small"]
    return Tally(
        steps=len(rows),
        large_steps=len(large),
        small_tokens=sum(sum(row["tokens"]) for row in small),
        large_tokens=sum(sum(row["tokens"]) for row in large),
        probe_tokens=sum(row["probe_tokens"] for row in rows),
        switches=sum(row["switch"] for row in rows),
        refilled_tokens=sum(row["refilled_small"] + row["refilled_large"] for row in rows),
        errors=sum(row["why"] in ("missing", "failed") for row in rows),
    )
