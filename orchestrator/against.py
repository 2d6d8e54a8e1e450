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


def against(here: Mapping[str, Outcome], sha256: str, file: Path) -> Against:
    """The comparison with the results in `file`. Raises UsageError unless they are of the same data."""
    digest, there = _read(file)
    if digest != sha256:
        raise UsageError(f"{file} is of other problems. Compare two evaluations of the same file of data.")
    pairs = [(here[i], there[i]) for i in here if i in there and not here[i].error and not there[i].error]
    if not pairs:
        raise UsageError(f"{file} has no problem in common with these results that ended without an error.")
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


def _read(file: Path) -> tuple[str, dict[str, Outcome]]:
    """The digest of the data and the outcomes by problem, of a file that `abduce eval` wrote."""
    try:
        whole = file.read_text(encoding="utf-8").rpartition("\n")[0]
        head, *rows = map(json.loads, whole.splitlines())
        made = [Outcome(**{**row, "usage": Usage(**row["usage"])}) for row in rows]
        return str(head["eval"]["sha256"]), {outcome.id: outcome for outcome in made}
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{file} is no file of results. abduce eval --out FILE writes one.") from None
