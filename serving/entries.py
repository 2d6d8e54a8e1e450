"""What a memory keeps and finds: entries, where they come from, and why they were found.

    Entry ── evidence ──► Evidence (which run, which verifier, how sure)
    Match = an entry, its score, and why it was found

They are here and not in `memory/` because requests carry them (`flow.py`: Recall, Remember).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Status: TypeAlias = Literal["active", "retired"]


@dataclass(frozen=True)
class Evidence:
    """Why an entry is believed.

    `verifier` is what judged the run that wrote it: "tests" (the task's own checks, too), "python",
    "calculator", "agreement", "judge", "reward", "user", "gold", or "" for nothing; `confidence` in [0, 1].
    `source` names the problem or document. `read` names the entries that the run had read: it is no
    independent support of these.
    """

    run: str = ""
    source: str = ""
    verifier: str = ""
    confidence: float = 0.0
    read: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One thing remembered. `name` is its key in a store; writing the same name again makes a new version.

    `text` is what is searched and shown; `data` are further fields (JSON), such as a concept's parameters.
    `uses` counts the problems it was shown for, `wins` those of them that were solved.
    """

    name: str
    text: str
    kind: str = "note"
    data: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    status: Status = "active"
    evidence: tuple[Evidence, ...] = ()
    uses: int = 0
    wins: int = 0


@dataclass(frozen=True)
class Match:
    """An entry that was found; higher scores are better, within one search. `why` is one line for people."""

    entry: Entry
    score: float
    why: str
