"""Training data from attempts: the paper's step, preference pairs, and outcomes of every arm.

| file           | a record for                          | what is learnt                            |
|----------------|---------------------------------------|-------------------------------------------|
| `sft.jsonl`    | a right attempt, whichever it was     | name the strategy, then solve             |
| `pairs.jsonl`  | a right and a wrong arm of one problem | the right one                             |
| `router.jsonl` | a problem on which all arms were run  | which arms are right                      |

Implicit biasing: what was right at the third attempt is written as if it had been the first, against the
problem alone. Source: SMART, arXiv 2410.16128. Nothing is trained here.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from ...serving.errors import demand
from ...serving.seeds import derive
from .arms import SYSTEM
from .router import Attempt

Record = dict[str, Any]
SURE = frozenset({"gold", "executable", "user"})
"""Verifiers whose word is enough to learn from."""


@dataclass(frozen=True)
class Records:
    """The records by kind."""

    sft: tuple[Record, ...]
    pairs: tuple[Record, ...]
    router: tuple[Record, ...]

    def write(self, folder: Path | str) -> None:
        """A file for each kind; `messages`, and `prompt`, `chosen`, `rejected`, in the forms of TRL."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("sft", "pairs", "router"):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in getattr(self, name))
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def records(
    rows: Iterable[Attempt],
    *,
    select: Literal["cheapest", "policy", "all"] = "cheapest",
    verifiers: Collection[str] = SURE,
    cap: int | None = None,
    held_out: float = 0.1,
) -> Records:
    """What is to be learnt from attempts whose texts were kept.

    `select`: of several right arms the one of fewest tokens, the one of largest π, or all with weight
    1/count. `cap`: most SFT records of an arm. `held_out`: share of problems of the split "test".
    """
    demand(select in ("cheapest", "policy", "all"), "select", select, "write cheapest, policy or all")
    usable = [row for row in rows if row.question and row.y is not None and row.kind in verifiers]
    sft: list[Record] = []
    pairs: list[Record] = []
    router: list[Record] = []
    for question, group in groupby(sorted(usable, key=lambda row: row.question), lambda row: row.question):
        tried = _distinct(list(group))
        split = "test" if derive(0, "split", question) % 10_000 < held_out * 10_000 else "train"
        right = [row for row in tried if row.y and row.text]
        wrong = [row for row in tried if not row.y and row.text]
        for row in _selected(right, select):
            sft.append(_sft(row, split, 1 / len(right) if select == "all" else 1.0))
        pairs += [_pair(a, b, split) for a in right[:1] for b in wrong if b.arm != a.arm]
        full = {row.arm: row.y for row in tried if row.full}
        if full:
            router.append({"question": question, "outcomes": full, "meta": {"split": split}})
    return Records(tuple(_capped(sft, cap)), tuple(pairs), tuple(router))


def _distinct(rows: Sequence[Attempt]) -> list[Attempt]:
    """One row for each arm and answer, the first."""
    kept: dict[tuple[str, str], Attempt] = {}
    for row in sorted(rows, key=lambda row: (row.attempt, row.arm, row.trace)):
        kept.setdefault((row.arm, re.sub(r"\s+", " ", str(row.answer)).strip().casefold()), row)
    return list(kept.values())


def _selected(right: Sequence[Attempt], select: str) -> Sequence[Attempt]:
    if select == "all" or len(right) < 2:
        return right
    if select == "cheapest":
        return [min(right, key=lambda row: row.tokens)]
    return [max(right, key=lambda row: row.pi.get(row.arm, 0.0))]


def _capped(records: Sequence[Record], cap: int | None) -> Iterable[Record]:
    """At most `cap` records of an arm, drawn by their problems' hashes rather than by their order."""
    order = sorted(records, key=lambda record: derive(0, "cap", record["messages"][1]["content"]))
    seen: dict[str, int] = {}
    kept = []
    for record in order:
        arm = record["meta"]["arm"]
        seen[arm] = seen.get(arm, 0) + 1
        if cap is None or seen[arm] <= cap:
            kept.append(record)
    return sorted(kept, key=lambda record: (record["messages"][1]["content"], record["meta"]["arm"]))


def _sft(row: Attempt, split: str, weight: float) -> Record:
    said = [*_asked(row), {"role": "assistant", "content": _solution(row)}]
    return {"messages": said, "weight": weight, "meta": _meta(row, split)}


def _pair(right: Attempt, wrong: Attempt, split: str) -> Record:
    chosen, rejected = ([{"role": "assistant", "content": _solution(row)}] for row in (right, wrong))
    return {"prompt": _asked(right), "chosen": chosen, "rejected": rejected, "meta": _meta(right, split)}


def _asked(row: Attempt) -> list[Mapping[str, str]]:
    system = SYSTEM.format(arms=", ".join(sorted(row.arms)))
    return [{"role": "system", "content": system}, {"role": "user", "content": row.question}]


def _solution(row: Attempt) -> str:
    return f"<strategy>{row.arm}</strategy>\n{row.text.strip()}"


def _meta(row: Attempt, split: str) -> Record:
    return {
        "trace": row.trace,
        "arm": row.arm,
        "attempt": row.attempt,
        "verifier": row.kind,
        "tokens": row.tokens,
        "model": row.model,
        "version": row.version,
        "split": split,
    }
