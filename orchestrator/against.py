"""Two evaluations of the same problems, compared problem by problem: what differs between the problems, most
of an accuracy's uncertainty, is not counted."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..memory.audit import lift
from ..serving.errors import UsageError
from ..serving.flow import Usage
from .evaluate import Outcome


@dataclass(frozen=True)
class Against:
    """The difference of two accuracies with its 95 % interval, over the problems that both answered or failed
    without an error; and the mean tokens of a problem, prompt tokens not found in a cache and output."""

    n: int
    gained: int  # right here, wrong there
    lost: int
    mean: float
    low: float
    high: float
    tokens: float
    tokens_there: float

    def __str__(self) -> str:
        verdict = "no difference is shown"
        if not self.low <= 0 <= self.high:
            verdict = "better" if self.mean > 0 else "worse"
        tokens = f"{self.tokens:,.0f} tokens a problem, {self.tokens_there:,.0f} there"
        return (
            f"{self.mean:+.3f}  [{self.low:+.3f}, {self.high:+.3f}]  {verdict}: {self.gained} gained, "
            f"{self.lost} lost of {self.n}; {tokens}"
        )

    def to_json(self) -> dict[str, Any]:
        """All figures as plain data."""
        return asdict(self)


def against(here: Mapping[str, Outcome], there: Mapping[str, Outcome]) -> Against:
    """The comparison of outcomes by problem. Raises UsageError if there is nothing to compare."""
    pairs = [(here[i], there[i]) for i in here if i in there and not here[i].error and not there[i].error]
    if not pairs:
        raise UsageError("The two evaluations have no problem in common that ended without an error in both.")
    ours = {a.id: float(a.correct) for a, _ in pairs}
    gain = lift(ours, {b.id: float(b.correct) for _, b in pairs})
    return Against(
        n=len(pairs),
        gained=sum(a.correct and not b.correct for a, b in pairs),
        lost=sum(b.correct and not a.correct for a, b in pairs),
        mean=gain.mean,
        low=gain.low,
        high=gain.high,
        tokens=sum(a.usage.tokens for a, _ in pairs) / len(pairs),
        tokens_there=sum(b.usage.tokens for _, b in pairs) / len(pairs),
    )


def outcomes_in(file: Path, sha256: str) -> dict[str, Outcome]:
    """The outcomes by problem, of a file that `abduce eval` wrote. Raises UsageError unless they are of the
    data with this digest."""
    try:
        whole = file.read_bytes().rpartition(b"\n")[0]
        head, *rows = map(json.loads, whole.splitlines())  # as bytes: an answer may hold other line marks
        made = [Outcome(**{**row, "usage": Usage(**row["usage"])}) for row in rows]
        digest = str(head["eval"]["sha256"])
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{file} is no file of results. abduce eval --out FILE writes one.") from None
    if digest != sha256:
        raise UsageError(f"{file} is of other problems. Compare two evaluations of the same file of data.")
    return {outcome.id: outcome for outcome in made}
